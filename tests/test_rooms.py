"""The layout on disk is the map: a new kernel file must be under the import contract, and files stay short."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "agentgym"
WINGS = {"tools", "envs", "policies", "trainers"}


def test_every_kernel_module_is_under_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = set(contracts[0]["source_modules"])
    found = {f"agentgym.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    found |= {f"agentgym.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py") if path.parent.name not in WINGS | {"cli"}}
    assert named == found


def test_the_wings_open_from_the_front_door():
    for wing in WINGS:
        assert (ROOT / wing).is_symlink()
        assert (ROOT / wing).resolve() == PACKAGE / wing


def test_sizes():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html", ".js")}
    assert max(lines.values()) < 500
    python = {path.relative_to(PACKAGE).parts: count for path, count in lines.items() if path.suffix == ".py"}
    front = {"cli", "report"}  # where people ask and look
    assert sum(count for parts, count in python.items() if parts[0] not in WINGS | front) < 3500  # the kernel
    assert sum(count for parts, count in python.items() if parts[0] in front) < 2000
    assert lines[PACKAGE / "trainers" / "loop.py"] < 100
    assert len((ROOT / "examples" / "train_search.py").read_text().splitlines()) <= 25


def test_importing_the_package_loads_no_torch():
    code = "import sys, agentgym; print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
