"""Benchmark suites: which environment plays an official test set, by which metric, and what others have reached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from agentgym.errors import AgentGymError
from agentgym.evaluation import Evaluation

_DATA = {".json", ".jsonl", ".toml", ".csv", ".sql", ".gz", ".md", ".pddl", ".txt"}
_ABOUT = {"README.md", "tools.md", "apis.md"}


class Suite(BaseModel):
    """``tasks``: of the whole official set. ``file``: within the folder of its data; empty where the environment takes the folder.

    ``metric``: the figure of the report that is the official one, or a ratio of two, ``a/b``. ``reference``: published scores, by model.
    ``known``: the versions of the data that our tests play, by their `fingerprint`. ``note``: what the figures depend on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    env: str
    split: str
    metric: str
    tasks: int
    licence: str
    source: str
    file: str = ""
    reference: dict[str, float] = {}
    known: dict[str, str] = {}
    note: str = ""

    def data(self, folder: Path | None) -> Path:
        """What the environment takes as ``data``. Raises `AgentGymError` where it is not there, and says where to get it."""
        found = folder / self.file if folder is not None else None
        if found is None or not found.exists():
            versions = f" ({self.versions})" if self.known else ""
            what = found or f"its data{f', {self.file},' if self.file else ''}"
            raise AgentGymError(f"{what} is missing{versions}: get it from {self.source}, and give the folder with --data")
        return found

    def official(self, result: Evaluation) -> float:
        """The official figure of a result."""
        figures = {"success": result.success.average, **result.metrics}
        above, _, below = self.metric.partition("/")
        return figures[above].estimate / (figures[below].estimate if below else 1.0)

    @property
    def versions(self) -> str:
        return ", ".join(f"sha256 {digest}… is {name}" for digest, name in self.known.items())


@cache
def suites() -> Mapping[str, Suite]:
    """All suites, by name."""
    rows = yaml.safe_load((Path(__file__).parent / "suites.yaml").read_text())
    return {name: Suite.model_validate(row) for name, row in rows.items()}


def fingerprint(data: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256; of a folder: of its data's names and hashes, without runs that lie there."""
    if data.is_dir():
        runs = {path.parent for path in data.rglob("run.json")}
        files = sorted(path for path in data.rglob("*") if path.suffix in _DATA and path.name not in _ABOUT and path.is_file())
        read = [path for path in files if not runs & {*path.parents}]
        text = "".join(f"{path.relative_to(data).as_posix()} {_sha256(path)}\n" for path in read)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    return _sha256(data)[:16]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
