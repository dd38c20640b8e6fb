"""Benchmark suites: which environment plays an official test set, by which metric, and what others have reached."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from agentgym.errors import AgentGymError


class Suite(BaseModel):
    """``tasks``: of the whole official set. ``file``: within the folder of its data; empty where the environment takes the folder.

    ``metric``: the figure of the report that is the official one. ``reference``: published scores, by model.
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

    def data(self, folder: Path | None) -> Path:
        """What the environment takes as ``data``. Raises `AgentGymError` where it is not there, and says where to get it."""
        found = folder / self.file if folder is not None else None
        if found is None or not found.exists():
            raise AgentGymError(f"{found or 'its data'} is missing: get it from {self.source}, and give the folder with --data")
        return found


@cache
def suites() -> Mapping[str, Suite]:
    """All suites, by name."""
    rows = yaml.safe_load((Path(__file__).parent / "suites.yaml").read_text())
    return {name: Suite.model_validate(row) for name, row in rows.items()}
