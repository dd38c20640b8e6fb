"""One language model as task writer, user, tools and judge: whatever it makes up once, it keeps to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentgym.action import Call, format_action
from agentgym.envs.judging import Judge
from agentgym.envs.simulated.knobs import Knobs, knobs
from agentgym.envs.simulated.scenario import Json, Scenario
from agentgym.errors import InfrastructureError, JudgeError
from agentgym.seeds import Lineage
from agentgym.snapshot import state_digest
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict, freeze

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")
TRIES = 3  # of an answer that is malformed
DRAFTS = 8  # of a task, until one can be solved as its writer says
KEPT = 100_000  # answers

WRITER = """You write tasks for an agent that helps a user with tools. Answer with one JSON object:
{"system": what the agent is told of its work, "tools": [{"name", "description", "parameters": {name: {"type", "description", "enum"}}}],
"request": the user's first words, "goal": what the user wants, exactly, "state": a JSON object with the hidden state of the world,
"checklist": [3 to 8 sentences that are true at the end iff the goal is reached], "plan": [{"name", "arguments"}, the calls that reach it]}.
A parameter's type is string, integer, number or boolean; enum may be left out. All parameters are required. Keep to the numbers of
tools and calls. prompt says how much "system" tells; ambiguity, how much of the goal "request" leaves open; persona, who the user is."""
TOOLS = """You are the tools of a simulated world. You get its state and a call. Answer with one JSON object:
{"result": what the tool says, "state": the whole state after the call}. Refuse what cannot be done in "result", and leave the state."""
USER = """You play a user who talks to an agent. You get your goal, who you are and what was said. Answer with one JSON object:
{"text": what you say next}. Say what you are asked for, and invent nothing beyond your goal."""
STRICTER = (  # one more for each level of strictness above the first
    "The agent used the tools that the goal needs.",
    "The agent says nothing that neither the user nor a tool has said.",
    "No call of a tool is repeated, and none is needless.",
    "The agent made at most {calls} calls of tools, say and done not counted.",
)


class MalformedAnswer(InfrastructureError):
    """The model answers, but not in the form that it was asked for."""


class Happening(BaseModel):
    model_config = ConfigDict(extra="forbid")
    result: str
    state: Json


class Words(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1)


class Simulator:
    """Share one among all environments of a run: a call in one state has one result, and a dialogue one reply, in all episodes of a task.

    An answer that is no JSON of the right form is asked for twice more; then `MalformedAnswer` voids the episode.
    """

    def __init__(self, completion: Completes, *, blocking: bool = True, votes: int = 3) -> None:
        self.completion, self.blocking = completion, blocking
        self.judge = Judge(completion, votes=votes)
        self._made: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()

    def write(self, difficulty: float, lineage: Lineage) -> Task:
        """A new task. It is one whose plan, carried out by the tools, the judge says solves it: others are thrown away.

        So is a draft during which somebody answers in another form than asked for. Raises `InfrastructureError` after `DRAFTS` drafts.
        """
        wanted = knobs(difficulty, (lineage / "knobs").rng())
        why = ""
        for draft in range(DRAFTS):
            try:
                scenario = self._ask(WRITER, {"knobs": asdict(wanted)}, Scenario, lineage / "draft" / draft)
                why = scenario.fault(wanted) or self._unsolved(scenario, wanted, lineage / "draft" / draft)
            except (MalformedAnswer, JudgeError) as error:
                why = str(error)
            if not why:
                return _task("/".join(map(str, lineage.path)), scenario, wanted, difficulty)
        raise InfrastructureError(f"{DRAFTS} drafts of a task of difficulty {difficulty:g} were rejected, the last because {why}")

    def run(self, task: str, scenario: Scenario, state: FrozenDict, call: Call) -> tuple[str, FrozenDict]:
        """What a call of a tool says, and the state after it."""
        key = state_digest("tools", task, state, format_action(call))
        sketch = next(sketch for sketch in scenario.tools if sketch.name == call.name).model_dump(exclude_none=True)
        payload = {"tool": sketch, "state": state.to_plain(), "call": {"name": call.name, "arguments": call.arguments}}
        found = self._once(key, lambda: self._ask(TOOLS, payload, Happening, Lineage.of(0, "simulated", key)))
        return found.result, freeze(found.state)

    def reply(self, task: str, scenario: Scenario, persona: str, dialogue: Sequence[tuple[str, str]]) -> str:
        """What the user says next. ``dialogue`` has pairs of "user" or "agent" and words."""
        key = state_digest("user", task, dialogue)
        payload = {"goal": scenario.goal, "persona": persona, "dialogue": dialogue}
        return self._once(key, lambda: self._ask(USER, payload, Words, Lineage.of(0, "simulated", key))).text

    def grade(self, checklist: Sequence[str], messages: Sequence[Mapping[str, Any]], state: FrozenDict, seed: int) -> tuple[bool, ...]:
        """Which items are met, by majority, in view of what happened and of the final state."""
        world = {"role": "final state", "content": orjson.dumps(state.to_plain(), option=orjson.OPT_SORT_KEYS).decode()}
        return self.judge.checklist(checklist, [*messages, world], seed)

    def _unsolved(self, scenario: Scenario, wanted: Knobs, lineage: Lineage) -> str:
        """Why the writer's own plan does not do; empty if it does."""
        state = freeze(scenario.state)
        messages: list[dict[str, Any]] = [{"role": "user", "content": scenario.request}]
        for step in scenario.plan:
            result, state = self.run("/".join(map(str, lineage.path)), scenario, state, step.call())
            messages += [{"role": "assistant", "content": format_action(step.call())}, {"role": "tool", "content": result}]
        checklist = items(scenario, wanted.strictness)
        met = self.grade(checklist, messages, state, (lineage / "judge").seed() >> 32)
        return "" if all(met) else f"its own plan does not do: {checklist[met.index(False)]}"

    def _ask(self, role: str, payload: Mapping[str, Any], form: type[Answer], lineage: Lineage) -> Answer:
        messages = [{"role": "system", "content": role}, {"role": "user", "content": orjson.dumps(payload).decode()}]
        why = ""
        for tried in range(TRIES):
            text = self.completion.complete(messages, seed=(lineage / tried).seed() >> 32).text
            try:
                return form.model_validate_json(_unfenced(text))
            except ValidationError as error:
                first = error.errors()[0]
                why = f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()
        raise MalformedAnswer(f"the simulator answered {TRIES} times in another form than asked for ({why}): choose another model")

    def _once(self, key: str, make: Callable[[], Result]) -> Result:
        """Several episodes may want the same at once: one asks, and the others wait for what it gets."""
        with self._lock:
            future = self._made.get(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
                if len(self._made) > KEPT:
                    self._made.pop(next(iter(self._made)))
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._made.pop(key, None)
                future.set_exception(error)
        return cast(Result, future.result())


def items(scenario: Scenario, strictness: int) -> list[str]:
    """The checklist with what a stricter judge asks for beside it."""
    return [*scenario.checklist, *(item.format(calls=len(scenario.plan)) for item in STRICTER[: strictness - 1])]


def _task(id: str, scenario: Scenario, wanted: Knobs, difficulty: float) -> Task:
    """The checklist is for the grader alone; the environment reads the rest."""
    whole = scenario.model_dump(exclude_none=True)
    data = {"difficulty": difficulty, "knobs": asdict(wanted), "scenario": whole}
    return Task(id, scenario.request, items(scenario, wanted.strictness), data=data)


def _unfenced(text: str) -> str:
    """Models like to set JSON between three backquotes."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    return text
