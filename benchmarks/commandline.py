"""The options that every benchmark has."""

from __future__ import annotations

import argparse


def parser(document: str | None) -> argparse.ArgumentParser:
    """``--json`` and ``--quick``, under the first line of the benchmark's ``__doc__``."""
    found = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    return found
