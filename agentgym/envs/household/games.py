"""ALFWorld's own games, from a folder of JSON lines with their PDDL."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import orjson
from pydantic import BaseModel, Field

from agentgym.envs.household.pddl import Action, parse_domain, parse_problem
from agentgym.envs.household.texts import opening
from agentgym.envs.household.world import Game
from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task

# By the name of a call in a transcript: the command that it stands for.
CALLS = {
    "goto": "go to {}",
    "open": "open {}",
    "close": "close {}",
    "take": "take {} from {}",
    "put": "put {} in/on {}",
    "use": "use {}",
    "heat": "heat {} with {}",
    "clean": "clean {} with {}",
    "cool": "cool {} with {}",
    "slice": "slice {} with {}",
}
_ENTITY = re.compile(r"\w+_bar_\w+")
_CALL = re.compile(r'(\w+)\((".*")\)')


class Parameters(BaseModel):
    """What a game's goal is about, by the names of its kinds."""

    object_target: str
    parent_target: str = ""
    toggle_target: str = ""


class GameRow(BaseModel):
    """One game: its task in words, its PDDL, and what an expert did."""

    id: str = Field(min_length=1)
    task_type: str = Field(min_length=1)
    goal: str = Field(min_length=1)
    domain: str
    pddl_problem: str
    pddl_params: Parameters
    gt_transcript: str = ""


@dataclass(frozen=True)
class OfficialGame:
    row: GameRow
    folder: Path

    @cached_property
    def game(self) -> Game:
        text = self.row.pddl_problem.replace("{COMMON_OBJECTS}", "\n".join(_common_objects(self.folder)))
        problem = parse_problem(_ENTITY.sub(lambda match: match[0].lower(), text))
        return Game(_domain(self.folder / f"{self.row.domain}.pddl"), problem, entity_names(problem.objects))

    @cached_property
    def transcript(self) -> list[tuple[str, str]]:
        """The expert's commands, each with the line that it was answered."""
        lines = self.row.gt_transcript.splitlines()
        calls = [match for line in lines if (match := _CALL.fullmatch(line)) is not None]
        commands = [CALLS[match[1]].format(*orjson.loads(f"[{match[2]}]")) for match in calls]
        said = [line for line in lines if line and line[0] != "<" and line not in ("Assistant:", "Observation:")]
        answers = [line for line in said if _CALL.fullmatch(line) is None]
        return list(zip(commands, answers, strict=True))

    def task(self, split: str) -> Task:
        about = self.row.pddl_params
        target = about.parent_target or about.toggle_target
        data = {"type": self.row.task_type, "object": about.object_target.lower(), "target": kind_of_place(target)}
        receptacles = [self.game.names[id] for id in self.game.receptacles]
        return Task(self.row.id, opening(receptacles, self.row.goal), split=split, data=data)


def read_games(folder: Path) -> dict[str, list[OfficialGame]]:
    """Games by split, which is the name of their file: ``*.jsonl`` or ``*.jsonl.gz``."""
    files = sorted(path for path in folder.glob("*") if path.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise AgentGymError(f"{folder} holds no games: give a folder with *.jsonl.gz, their domain_*.pddl and common_lines.json")
    return {path.name.split(".jsonl")[0]: [OfficialGame(row, folder) for _, row in read(path, GameRow)] for path in files}


def entity_names(objects: Mapping[str, str]) -> dict[str, str]:
    """``mug_bar_…`` is called ``mug 2``: kinds are numbered downwards in the order of their ids."""
    ids = sorted(id for id, kind in objects.items() if kind in ("object", "receptacle") and "_bar_" in id)
    left = Counter(_kind(id) for id in ids)
    names = {}
    for id in ids:
        names[id] = f"{_kind(id)} {left[_kind(id)]}"
        left[_kind(id)] -= 1
    return names


def kind_of_place(name: str) -> str:
    """``sink`` and ``bathtub`` stand for their basins, into which things are put."""
    kind = name.lower()
    return f"{kind}basin" if kind in ("sink", "bathtub") else kind


def _kind(id: str) -> str:
    return id.split("_bar_")[0] + ("basin" if "basin" in id else "")


@cache
def _domain(path: Path) -> dict[str, Action]:
    if not path.is_file():
        raise AgentGymError(f"{path} is missing: games need the domain that they name")
    return parse_domain(path.read_text())


@cache
def _common_objects(folder: Path) -> Sequence[str]:
    path = folder / "common_lines.json"
    if not path.is_file():
        raise AgentGymError(f"{path} is missing: it holds the objects that all games declare")
    lines: Iterable[str] = orjson.loads(path.read_bytes())["objects"]
    return tuple(lines)
