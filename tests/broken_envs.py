"""Two good environments, and one that breaks each promise of the contract."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar

import numpy as np

from agentgym import AgentEnv, Call, Task, call, parse_action, tool
from agentgym.action import Action
from agentgym.env import Info, Reply
from agentgym.errors import ToolError
from agentgym.snapshot import Snapshot

COLOURS = {"garden": "green", "cellar": "black", "tower": "white", "kitchen": "yellow", "library": "brown", "hall": "red"}
TASKS = tuple(Task(f"t{i}", f"Which colour has the {room}?", answer=colour) for i, (room, colour) in enumerate(COLOURS.items()))


@dataclass(frozen=True, slots=True)
class House:
    notes: tuple[str, ...] = ()
    answer: str | None = None


class Good(AgentEnv):
    """A value state: look into rooms, write notes, throw dice, answer."""

    max_turns = 6
    max_calls = 8
    snapshots = "value"

    def tasks(self, split: str) -> Sequence[Task]:
        return TASKS

    def begin(self, task: Task) -> None:
        self.state = House()

    @tool
    def look(self, room: str) -> str:
        """Look into a room."""
        name = room.strip("?").lower()
        if name not in COLOURS:
            raise ToolError(f"there is no {room}; there are {', '.join(COLOURS)}")
        return f"The {name} is {COLOURS[name]}."

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        self.state = replace(self.state, notes=(*self.state.notes, text))
        return "Noted."

    @tool
    def notes(self) -> list[str]:
        """Read all notes."""
        return list(self.state.notes)

    @tool
    def dice(self, sides: int = 6) -> int:
        """Throw a die."""
        return self.rng("dice").randint(1, max(1, sides))

    @tool(ends=True)
    def answer(self, text: str) -> str:
        """Give the answer."""
        self.state = replace(self.state, answer=text)
        return "Answered."

    def score(self) -> float:
        return float(self.state.answer == self.task.answer)

    def gold(self, task: Task) -> list[str]:
        room = task.prompt.split()[-1].strip("?")
        return [call("look", room=room), call("answer", text=COLOURS[room])]


class GoodCopy(AgentEnv):
    """A mutable state that is copied: a counter and a purse, with a sentence as the last action."""

    max_turns = 5
    reward_range = (-1.0, 1.0)

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"n{n}", f"Save {n} coins, then say stop.", answer={"coins": n}) for n in (2, 3)]

    def begin(self, task: Task) -> None:
        self.state = {"coins": 0, "log": []}

    @tool
    def save(self, coins: int, purse: str = "left") -> dict[str, Any]:
        """Put coins aside."""
        if coins < 0:
            raise ValueError("coins must not be negative")
        self.state["coins"] += coins
        self.state["log"].append(purse)
        return {"coins": self.state["coins"], "log": self.state["log"]}

    def act(self, action: Action) -> Reply:
        if action.content == "stop":
            return Reply("Stopped.", ends=True)
        return super().act(action)

    def score(self) -> float:
        return 1.0 if self.state["coins"] == self.task.answer["coins"] else -1.0

    def gold(self, task: Task) -> list[str]:
        return [call("save", coins=task.answer["coins"]), "stop"]


class GoodLog(AgentEnv):
    """A live database, which cannot be copied: what wrote into it is replayed."""

    max_turns = 6
    max_calls = 9
    snapshots = "log"

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"b{n}", f"Borrow {n} books, then hand in.", answer=n) for n in (1, 2)]

    def begin(self, task: Task) -> None:
        self.close()
        self.state = sqlite3.connect(":memory:", check_same_thread=False)
        self.state.execute("create table loans (title text, shelf integer)")

    @tool
    def borrow(self, title: str) -> str:
        """Borrow a book."""
        shelf = self.rng("shelf").randint(1, 99)
        self.state.execute("insert into loans values (?, ?)", (title, shelf))
        return f"Borrowed from shelf {shelf}."

    def rows(self) -> list[list[Any]]:
        return [list(row) for row in self.state.execute("select title, shelf from loans order by rowid")]

    @tool(effect="read")
    def loans(self) -> list[list[Any]]:
        """List what is borrowed."""
        return self.rows()

    @tool(effect="read")
    def count(self) -> int:
        """Count what is borrowed."""
        return len(self.rows())

    @tool(ends=True)
    def hand_in(self) -> str:
        """End."""
        return "Closed."

    def score(self) -> float:
        return float(len(self.rows()) == self.task.answer)

    def gold(self, task: Task) -> list[str]:
        return [*[call("borrow", title="Ulysses")] * task.answer, call("hand_in")]

    def close(self) -> None:
        if self.state is not None:
            self.state.close()


class SeedSwallowed(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        return super().reset(seed=None, options=options)


class SeedConstant(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        return super().reset(seed=0, options=options)


class SeedConstantForOneTask(SeedConstant):
    """Only the dice tell that the seed is ignored."""

    def tasks(self, split: str) -> Sequence[Task]:
        return TASKS[:1]


class LineageSwallowed(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        return super().reset(seed=seed, options={k: v for k, v in (options or {}).items() if k != "lineage"})


class OwnEntropy(Good):
    @tool
    def dice(self, sides: int = 6) -> int:
        """Throw a die."""
        return int(np.random.default_rng().integers(10**6))


class SharedNotes(Good):
    """Notes that all instances share."""

    board: ClassVar[list[str]] = []

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.board.clear()

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        self.board.append(text)
        return "Noted."

    @tool
    def notes(self) -> list[str]:
        """Read all notes."""
        return list(self.board)


class CurrentTask(Good):
    """The class remembers the last task that any instance began."""

    current: ClassVar[list[Task]] = []

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.current[:] = [task]

    @tool
    def look(self, room: str) -> str:
        """Look into a room."""
        return f"You look for: {self.current[0].prompt}"


class CountedInstances(Good):
    """A count that runs on from episode to episode of the whole process."""

    played: ClassVar[list[int]] = [0]

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.played[0] += 1

    @tool
    def notes(self) -> int:
        """How many were played."""
        return self.played[0]


class GlobalRandom(Good):
    @tool
    def dice(self, sides: int = 6) -> int:
        """Throw a die."""
        return random.randint(1, 10**6)


class GlobalReseeded(Good):
    def begin(self, task: Task) -> None:
        super().begin(task)
        np.random.seed(7)


class StepAfterEnd(Good):
    def step(self, action: str) -> Any:
        if self.ended in ("done", "truncated"):
            return "It is over.", 0.0, True, False, {"messages": [{"role": "user", "content": "It is over."}]}
        return super().step(action)


class EndlessTurns(Good):
    max_calls = None

    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        if self.ended == "truncated":
            self.ended = None
        return observation, reward, terminated, False, info


class EndlessCalls(Good):
    """Calls the tools itself and counts nothing."""

    def act(self, action: Action) -> Reply:
        if action.problem or not action.calls or action.calls[0].name == "answer":
            return super().act(action)
        replies = []
        for asked in action.calls:
            function = getattr(self, asked.name, None)
            replies.append(str(function(**asked.arguments)) if asked.name in COUNTLESS and function else "No.")
        return Reply("\n".join(replies))


COUNTLESS = ("note", "notes", "dice")


class HashOrder(Good):
    @tool
    def notes(self) -> str:
        """List the rooms."""
        return ", ".join(set(COLOURS))


class HashOrderOfTwo(Good):
    @tool
    def notes(self) -> str:
        """List two things."""
        return ", ".join({"spoon", "fork"})


class ProcessNumber(Good):
    system = f"You are process {os.getpid()}."


class LeakingNotes(Good):
    """A mutable list beside the state, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.pad: list[str] = []

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        self.pad.append(text)
        return "Noted."

    @tool
    def notes(self) -> list[str]:
        """Read all notes."""
        return list(self.pad)


class LeakingWithoutSeed(LeakingNotes):
    """Forgets the last episode only when it gets a seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        if seed is not None:
            self.pad.clear()
        return super().reset(seed=seed, options=options)


class LeakingScore(Good):
    """Keeps the best score of all episodes."""

    best = 0.0

    def score(self) -> float:
        self.best = max(self.best, super().score())
        return self.best


class ForkSharesState(GoodCopy):
    """A mutable state that is not copied."""

    def _own_state(self, state: Any) -> Any:
        return state

    def restore(self, snapshot: Snapshot) -> None:
        self.task, self.lineage, self.state = snapshot.task, snapshot.lineage, snapshot.state
        self.turn, self.calls, self.ended = snapshot.turn, snapshot.calls, snapshot.ended


class ForkSaysValueButMutates(GoodCopy):
    snapshots = "value"


class ForkForgets(Good):
    """The notes are not in the snapshot."""

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.pad: list[str] = []

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        self.pad.append(text)
        return "Noted."

    @tool
    def notes(self) -> list[str]:
        """Read all notes."""
        return list(self.pad)


class ForkOwnGenerator(Good):
    """A generator beside the state goes on in each fork where the last one left it."""

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.generator = self.rng("own")

    @tool
    def dice(self, sides: int = 6) -> int:
        """Throw a die."""
        return int(self.generator.randint(1, 10**6))


class ForkForgetsTurn(Good):
    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self.turn = 0


class LogReadsThatWrite(GoodLog):
    """Counting is declared to read, and tidies up."""

    @tool(effect="read")
    def count(self) -> int:
        """Count what is borrowed, and return the oldest."""
        self.state.execute("delete from loans where rowid = (select min(rowid) from loans)")
        return len(self.rows())


class LogNumbersOn(GoodLog):
    """Loans are numbered from one beginning to the next."""

    loans_made = 0

    @tool
    def borrow(self, title: str) -> str:
        """Borrow a book."""
        self.loans_made += 1
        return f"Loan {self.loans_made}. {super().borrow(title)}"


class LogSharesServer(GoodLog):
    """All instances talk to one database."""

    server: ClassVar[sqlite3.Connection] = sqlite3.connect(":memory:", check_same_thread=False)

    def begin(self, task: Task) -> None:
        self.state = self.server
        self.state.execute("drop table if exists loans")
        self.state.execute("create table loans (title text, shelf integer)")

    def close(self) -> None:
        pass


class CopyCannot(GoodLog):
    """A live database said to be copied."""

    snapshots = "copy"


class SchemaByHand(Good):
    def __init__(self) -> None:
        super().__init__()
        self.tools[0].parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}


class SchemaOfType(Good):
    def __init__(self) -> None:
        super().__init__()
        self.tools[3].parameters["properties"]["sides"]["type"] = "string"


class SchemaToldOtherwise(Good):
    @property
    def tool_specs(self) -> list[dict[str, Any]]:
        return super().tool_specs[:2]


def _renamed(function: Any) -> Any:
    @wraps(function)
    def run(self: Any, chamber: str) -> str:
        return str(function(self, chamber))

    return run


class SchemaOfWrapped(Good):
    """The function that runs has another parameter than the one that the schema was read from."""

    @tool
    @_renamed
    def look(self, room: str) -> str:
        """Look into a room."""
        return f"You see the {room}."


class RewardNaN(Good):
    def score(self) -> float:
        return float("nan")


class RewardNaNPast(Good):
    def step(self, action: str) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("inf") if truncated else 0.0, terminated, truncated, info


class RewardTooHigh(Good):
    def score(self) -> float:
        return 2.0 * super().score()


class RewardFarmed(Good):
    """Each note earns something."""

    @tool
    def note(self, text: str) -> Reply:
        """Write a note."""
        return Reply("Noted.", reward=0.4)


class GoldScoresHalf(Good):
    def score(self) -> float:
        return 0.5 * super().score()


class GoldNeverEnds(Good):
    def gold(self, task: Task) -> list[str]:
        return super().gold(task)[:1]


class IdleScores(Good):
    def score(self) -> float:
        return float(self.state.answer is None or super().score())


class EmptyAnswerScores(Good):
    """An empty answer stands in every text."""

    def score(self) -> float:
        return float(self.state.answer is not None and self.state.answer in self.task.answer)


class AnswerInTool(Good):
    @tool
    def notes(self) -> str:
        """Read what is known."""
        return f"Known: {self.task.answer}"


class AnswerBehindWord(Good):
    """Only a file that a listing names shows it."""

    @tool
    def look(self, room: str) -> str:
        """Read a file."""
        return {"": "files: readme.md", "readme.md": "see vault_17", "vault_17": str(self.task)}.get(room, "no such file")


class AnswerInTaskList(Good):
    @tool
    def look(self, room: str) -> str:
        """Look a task up."""
        return next((str(task.answer) for task in self.tasks("train") if task.id == room), "nothing")


class AnswerInMessages(Good):
    def opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": f"The judge expects {self.task.answer}."}, *super().opening()]


class AnswerIsNumber(GoodCopy):
    @tool
    def save(self, coins: int, purse: str = "left") -> str:
        """Put coins aside."""
        self.state["coins"] += coins
        return f"{self.state['coins']} of {self.task.answer['coins']}"


class Slow(Good):
    @tool
    def notes(self) -> str:
        """Read all notes."""
        time.sleep(0.08)
        return "none"


class NotText(Good):
    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (observation.encode(), *rest)


class NoMessages(Good):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, {"outcome": info["outcome"]})


class BothEnds(Good):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


class RaisesOnBadAction(Good):
    def step(self, action: str) -> Any:
        if parse_action(action).problem:
            raise RuntimeError("cannot read this")
        return super().step(action)


class RaisesAtReset(Good):
    def begin(self, task: Task) -> None:
        raise KeyError("the database is missing")


class RaisesInGold(Good):
    def gold(self, task: Task) -> list[str]:
        raise ZeroDivisionError("no plan")


class OutOfObservationSpace(Good):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space.max_length = 3  # type: ignore[attr-defined]


CAUGHT: list[tuple[type[AgentEnv], str, str]] = [
    (SeedSwallowed, "seed", "the same seed gave another episode"),
    (SeedConstant, "seed", "16 different seeds all gave the same episode"),
    (SeedConstantForOneTask, "seed", "16 different seeds all gave the same episode"),
    (LineageSwallowed, "seed", "the same lineage gave another episode"),
    (OwnEntropy, "seed", "the same seed gave another episode"),
    (SharedNotes, "neighbour", "beside another environment"),
    (CurrentTask, "neighbour", "beside another environment"),
    (CountedInstances, "neighbour", "beside another environment"),
    (GlobalRandom, "neighbour", "draws from the global generator of random"),
    (GlobalReseeded, "neighbour", "reseeds the global generator of numpy.random"),
    (StepAfterEnd, "end", "returned instead of raising"),
    (EndlessTurns, "limits", "max_turns = 6 is not enforced"),
    (EndlessCalls, "limits", "max_calls = 8 is not enforced"),
    (HashOrder, "process", "PYTHONHASHSEED"),
    (HashOrderOfTwo, "process", "PYTHONHASHSEED"),
    (ProcessNumber, "process", "another process"),
    (LeakingNotes, "leak", "after an episode"),
    (LeakingWithoutSeed, "leak", "after an episode"),
    (LeakingScore, "leak", "after an episode"),
    (ForkSharesState, "fork", "changed its parent"),
    (ForkSaysValueButMutates, "fork", "the state was changed after its snapshot"),
    (ForkForgets, "fork", "has another future"),
    (ForkOwnGenerator, "fork", "has another future"),
    (ForkForgetsTurn, "fork", "has another future"),
    (LogReadsThatWrite, "fork", "count changes something, though it is declared to read"),
    (LogNumbersOn, "fork", "begin() must make all anew"),
    (LogSharesServer, "fork", "changed its parent"),
    (CopyCannot, "fork", "state: sqlite3.Connection cannot be saved"),
    (SchemaByHand, "schema", "differs from its function (room: string)"),
    (SchemaOfType, "schema", "differs from its function (sides?: integer)"),
    (SchemaToldOtherwise, "schema", "info['tools'] at reset differs"),
    (SchemaOfWrapped, "schema", "for arguments that its schema allows"),
    (RewardNaN, "reward", "must be a finite number"),
    (RewardNaNPast, "reward", "must be a finite number"),
    (RewardTooHigh, "reward", "the return 2 is outside reward_range (0.0, 1.0)"),
    (RewardFarmed, "reward", "is outside reward_range (0.0, 1.0)"),
    (GoldScoresHalf, "gold", "terminated with return 0.5"),
    (GoldNeverEnds, "gold", "did not end"),
    (IdleScores, "idle", "doing nothing scores high: empty actions"),
    (EmptyAnswerScores, "idle", "doing nothing scores high: answer at once"),
    (AnswerInTool, "answer", "the answer can be read in the reply"),
    (AnswerBehindWord, "answer", "the answer can be read in the reply"),
    (AnswerInTaskList, "answer", "the answer can be read in the reply"),
    (AnswerInMessages, "answer", "the answer can be read in the opening"),
    (AnswerIsNumber, "answer", "the answer can be read in the reply"),
    (Slow, "blocking", "Declare blocking = True"),
    (NotText, "contract", "the observation is a bytes, not text"),
    (NoMessages, "contract", "info['messages']"),
    (BothEnds, "contract", "terminated and truncated are both true"),
    (RaisesOnBadAction, "contract", "raised RuntimeError: cannot read this"),
    (RaisesAtReset, "contract", "the environment raised KeyError"),
    (RaisesInGold, "gold", "the environment raised ZeroDivisionError: no plan"),
    (OutOfObservationSpace, "gymnasium", "check_env"),
]

__all__ = ["CAUGHT", "Call", "Good", "GoodCopy", "GoodLog"]
