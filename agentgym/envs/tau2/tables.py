"""tau2-bench's retail and airline from a folder: its tasks and policy, and tau-bench's tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache as once
from pathlib import Path
from typing import Any

import orjson

from agentgym.envs.judging import Judge
from agentgym.envs.tau.data import Domain
from agentgym.envs.tau.users import chosen
from agentgym.envs.tau2 import Tau2Env
from agentgym.envs.tau2.rows import Row, domain_folder, read_tasks, text_of
from agentgym.envs.tau2.users import instructed
from agentgym.envs.user.users import User
from agentgym.errors import AgentGymError
from agentgym.tools.tables import FrozenDict, freeze


class OnTables(Tau2Env):
    """A domain that is tau-bench's too: its class there adds tables and tools.

    ``data``: tau2-bench's folder; ``tables``: tau-bench's, where it does not lie beside it. See `agentgym.envs.tau.users` for ``url`` and
    what follows it.
    """

    def __init__(
        self,
        data: str | Path,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
        judge: Judge | Mapping[str, Any] | None = None,
        tables: str | Path | None = None,
    ) -> None:
        domain = load(data, tables, self.folder, self.table_names)
        self._start(domain, chosen(user, url, model, key, cache, instructed), judge)


@once
def load(data: str | Path, tables: str | Path | None, name: str, table_names: tuple[str, ...]) -> Domain:
    """Read once in a process. ``tables``: tau-bench's folder; None: beside tau2-bench's, or ``db`` within the domain's own."""
    folder = domain_folder(data, name)
    return Domain(_tables(_db(folder, tables, name), table_names), text_of(folder / "policy.md"), read_tasks(folder / "tasks.jsonl", Row))


def _db(folder: Path, tables: str | Path | None, name: str) -> Path:
    own, beside = folder / "db", folder.resolve().parent.parent / "tau-bench" / name / "db"
    places = [own, beside] if tables is None else [Path(tables) / name / "db", Path(tables) / "db", Path(tables)]
    for place in places:
        if place.is_dir():
            return place
    raise AgentGymError(f"{places[0]} is missing: tau2-bench's {name} has the tables of tau-bench, give its folder with tables=")


def _tables(folder: Path, names: tuple[str, ...]) -> FrozenDict:
    records: dict[str, dict[str, Any]] = {name: _records(folder / f"{name}.json") for name in names}
    for id, user in records["users"].items():
        user["user_id"] = id  # all that tau2-bench adds to them
    frozen: FrozenDict = freeze(records)
    frozen.digest  # noqa: B018  (asked for once, so that each episode pays for what it changes alone)
    return frozen


def _records(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = orjson.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise AgentGymError(f"{file} cannot be read ({error}): give tau-bench's folder with tables=") from error
    return found
