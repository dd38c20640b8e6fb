"""``agentgym/Simulated-v0``: tasks, users, tools and judgements that a language model makes up, of any difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from agentgym.action import Action, Call, call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.judging import share
from agentgym.envs.simulated.knobs import LEAST, MOST
from agentgym.envs.simulated.scenario import Scenario, SimulatedTool
from agentgym.envs.simulated.simulator import Simulator
from agentgym.errors import AgentGymError, ToolError
from agentgym.seeds import Lineage
from agentgym.snapshot import Kind, Snapshot, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict, freeze

SIZES = {"train": 200, "validation": 40, "test": 40}
SPARE_TURNS = 4  # beside two for each call and each turn of talk that a task expects


@dataclass(frozen=True, slots=True)
class SimulatedState:
    world: FrozenDict
    messages: tuple[tuple[str, str], ...]  # role and text, for the judge
    dialogue: tuple[tuple[str, str], ...]  # who and what, for the user: it sees no calls, and no thoughts
    malformed: bool = False  # whether the agent wrote something that is no action
    met: tuple[bool, ...] = ()  # of the checklist, once it was judged


class Simulated(AgentEnv):
    """Do what a simulated user wants with simulated tools. Reward: 1 where the judge finds every item met; else -1 after a malformed
    action, else 0.

    By default a house simulated by rules. ``simulator``, or ``url``, ``model`` and ``key`` (the name of an environment variable) of an
    OpenAI-compatible endpoint, which all environments of a process share; a split then has ``size`` tasks that the model writes when
    they are first asked for. `Simulator.write` makes tasks of one difficulty, for `agentgym.trainers.sources.difficulty`.

    Source: Democratizing Tool Learning with Environments Fully Simulated by a Free 8B Language Model (TRUSTEE), arXiv 2604.17739: one
    model in all roles, rewards in {-1, 0, 1}, difficulty by knobs [S-2nd]; what earns which reward, prompts and forms [R].
    """

    splits = tuple(SIZES)
    reward_range = (-1.0, 1.0)
    snapshots: Kind = "value"
    state: SimulatedState

    def __init__(
        self,
        simulator: Simulator | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if (url is None) is not (model is None) or (simulator is not None and url is not None):
            raise AgentGymError("a model as the simulator takes url= and model= together, and then no simulator=")
        self.simulator = simulator or (_house() if url is None or model is None else _served(url, model, key))
        self.size = size
        self.blocking = self.simulator.blocking
        self._fixed = list(self.tools)

    def tasks(self, split: str) -> Sequence[Task]:
        """Tasks of difficulties from 1 to 100, in even steps."""
        if split not in SIZES:
            return ()
        return _written(self.simulator, split, SIZES[split] if self.size is None else self.size)

    def begin(self, task: Task) -> None:
        self._enter()
        opening = (("user", self.scenario.request),)
        self.state = SimulatedState(freeze(self.scenario.state), opening, opening)

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._enter()

    def act(self, action: Action) -> Reply:
        """Plain words are said to the user, as with ``say``."""
        talks = action.problem is None and not action.calls and bool(action.content)
        malformed = self.state.malformed or not (talks or action.calls)
        self._record("assistant", action.text)
        self.state = replace(self.state, malformed=malformed)
        return Reply(self._reply(action.content)) if talks else super().act(action)

    @tool
    def say(self, text: str) -> str:
        """Say something to the user, or ask.

        Args:
            text: your words.
        """
        if not text.strip():
            raise ToolError("say something to the user")
        return self._reply(text)

    @tool(ends=True)
    def done(self) -> str:
        """End, once the user has all that it wants."""
        return "Goodbye."

    def score(self) -> float:
        if not self.state.met:
            messages: list[Mapping[str, Any]] = [{"role": role, "content": text} for role, text in self.state.messages]
            seed = (self.lineage / "judge").seed() >> 32
            self.state = replace(self.state, met=self.simulator.grade(self.task.answer, messages, self.state.world, seed))
        return 1.0 if all(self.state.met) else -1.0 if self.state.malformed else 0.0

    def metrics(self) -> dict[str, float]:
        return {"checklist": share(self.state.met), "malformed": float(self.state.malformed)}

    def gold(self, task: Task) -> list[str]:
        """What the task's writer planned."""
        return [*(call(step["name"], **step["arguments"]) for step in task.data["scenario"]["plan"]), call("done")]

    def key(self) -> str:
        """Equal where the world of the same task is in the same state, and the same was said or shown last."""
        return state_digest(self.task.id, self.state.world, self.state.messages[-1])

    def _enter(self) -> None:
        """The task's own tools, words and limits."""
        self.scenario, knobs = Scenario.model_validate(self.task.data["scenario"]), self.task.data["knobs"]
        self.tools = [*self._fixed, *(SimulatedTool(sketch, self._run) for sketch in self.scenario.tools)]
        self._tool_by_name = {tool.name: tool for tool in self.tools}
        self.system = self.scenario.system
        self.max_turns = SPARE_TURNS + 2 * (knobs["calls"] + knobs["turns"])

    def _run(self, name: str, arguments: dict[str, Any]) -> str:
        result, world = self.simulator.run(self.task.id, self.scenario, self.state.world, Call(name, arguments))
        self.state = replace(self.state, world=world)
        self._record("tool", result)
        return result

    def _reply(self, words: str) -> str:
        dialogue = (*self.state.dialogue, ("agent", words))
        text = self.simulator.reply(self.task.id, self.scenario, self.task.data["knobs"]["persona"], dialogue)
        self.state = replace(self.state, dialogue=(*dialogue, ("user", text)))
        self._record("user", text)
        return text

    def _record(self, role: str, text: str) -> None:
        self.state = replace(self.state, messages=(*self.state.messages, (role, text)))


@cache
def _house() -> Simulator:
    from agentgym.envs.simulated.house import House

    return Simulator(House(), blocking=False, votes=1)  # rules do not waver


@cache
def _served(url: str, model: str, key: str | None) -> Simulator:
    from agentgym.tools.completion import Completion

    return Simulator(Completion(url, model, key))


@cache
def _written(simulator: Simulator, split: str, size: int) -> list[Task]:
    step = (MOST - LEAST) / max(1, size - 1)
    tasks = [simulator.write(LEAST + step * number, Lineage.of(0, "simulated", split, number)) for number in range(size)]
    return [replace(task, split=split) for task in tasks]
