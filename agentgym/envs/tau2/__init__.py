"""What the domains of tau2-bench share: the conversation, a user who may hold a phone, gold runs, and the product of criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import orjson

from agentgym.action import Action, Call, format_action
from agentgym.env import REFUSALS, Reply
from agentgym.envs.judging import Judge
from agentgym.envs.tau import TauEnv, TauState
from agentgym.envs.tau.data import Domain
from agentgym.envs.tau.users import GREETING
from agentgym.envs.tau2.rows import instruction
from agentgym.envs.tau2.scoring import Made, acted, communicated, judged
from agentgym.envs.tau2.users import ENOUGH, MOST_DEEDS, STOPS
from agentgym.envs.user.phone import Device
from agentgym.envs.user.users import Line, User, UserFailure, UserTurn, UserView, deed
from agentgym.errors import JudgeError
from agentgym.outcome import Outcome
from agentgym.snapshot import state_digest
from agentgym.task import Task
from agentgym.tool import Tool, tool
from agentgym.tools.completion import Completion

BY_RULE = ("DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE")  # criteria that need no judge
NO_CALLS = frozenset({"respond", "done"})  # tools that are the agent's words and its end


@dataclass(frozen=True, slots=True)
class Tau2State(TauState):
    """``calls``: what either side called. ``device``: what the user holds, immutable, where the domain has such a thing."""

    calls: tuple[Made, ...] = ()
    device: Any = None


class Tau2Env(TauEnv):
    """A domain of tau2-bench (arXiv 2506.07982). A subclass adds its tools, and what the user has.

    ``user`` talks to the agent, opens the conversation, and ends it with one of `STOPS`. A transfer to a human agent ends nothing by
    itself. Without a user, the task's text is the prompt, what is said is noted, and ``done`` ends. ``judge`` decides on assertions in
    words; it may be given as the arguments of its `Completion`: url, model and key.

    Reward, as the benchmark has it [S2]: 0 unless a side ended the episode; else the product of the criteria that the task names. DB:
    tables and phone are as the task's own actions leave them. ENV_ASSERTION: all assertions on them hold. ACTION: each of the task's own
    actions was called. COMMUNICATE: all that was to be said was said. NL_ASSERTION: the judge agrees. Metrics are those that rules decide.
    Raises `JudgeError` at the end of a task that needs a judge where there is none, and `UserFailure` where the user fails.
    """

    stops: ClassVar[tuple[str, ...]] = STOPS
    max_turns = max_calls = 100
    think = None  # type: ignore[assignment]  # the benchmark has no such tool any more
    state: Tau2State

    def _start(
        self, domain: Domain, user: User | None, judge: Judge | Mapping[str, Any] | None, tools: Sequence[Callable[..., Any]] = ()
    ) -> None:
        self._open(domain, user, tools)
        self.judge = Judge(Completion(**judge)) if isinstance(judge, Mapping) else judge
        self.blocking = self.blocking or judge is not None

    def opened(self, task: Task) -> Tau2State:
        """The state in which an episode of the task begins."""
        return Tau2State(self.domain.tables)

    def holds(self, assertion: Mapping[str, Any]) -> bool:
        """Whether an assertion of the task is true now."""
        raise NotImplementedError(f"{type(self).__name__} has no assertions")

    def user_tools(self) -> Mapping[str, Tool]:
        """What the user can do beside speaking."""
        return {}

    def begin(self, task: Task) -> None:
        self.state = self.opened(task)
        if self.user is not None:
            self.task = replace(task, prompt=self._listen(self.user))

    def act(self, action: Action) -> Reply:
        after = len(self.state.dialogue)
        reply = super().act(action)
        answered = action.calls[: len(reply.messages)]
        self._note(*(Made(call.name, _json(call.arguments), after) for call in answered if call.name not in NO_CALLS))
        return reply

    @tool
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent.

        Args:
            summary: what the user's issue is.
        """
        return "Transfer successful"

    def score(self) -> float:
        agreed = self._agreed()  # before all else: without a judge, a task would count where it is lost, and not where it is won
        return float(self.ended == "done" and all(self.metrics().values()) and agreed())

    def metrics(self) -> dict[str, float]:
        basis = self.task.answer["reward_basis"]
        return {name.lower(): float(self._met(name)) for name in BY_RULE if name in basis}

    def gold(self, task: Task) -> list[str] | None:
        """The task's own actions, then all that is to be said, then the end. None where a user decides on the end."""
        if self.user is not None:
            return None
        calls = [Call(action["name"], action["arguments"]) for action in task.answer["actions"] or ()]
        if told := task.answer["communicate_info"]:
            calls.append(Call("respond", {"content": " ".join(told)}))
        return [format_action(call) for call in (*calls, Call("done", {}))]

    def key(self) -> str:
        """Equal where the same task's tables and phone are equal, the same was said and the last turn showed the same."""
        state = self.state
        return state_digest(self.task.id, state.tables, state.device, state.dialogue, state.shown)

    def play(self, name: str, arguments: Mapping[str, Any], *, as_user: bool = False) -> str:
        """Call a tool of a side at once, outside all counts. Raises what the tool raises, and `ValueError` for what it cannot read."""
        found = self.user_tools().get(name) if as_user else self._tool_by_name.get(name)
        read = f"no tool named {name!r}" if found is None else found.read_arguments(dict(arguments))
        if found is None or isinstance(read, str):
            raise ValueError(read)
        return str(found.function(**read))

    def _agreed(self) -> Callable[[], bool]:
        """Asks the judge about NL_ASSERTION. Raises `JudgeError` where one is needed and there is none."""
        criteria, state, judge = self.task.answer, self.state, self.judge
        asserted = criteria["nl_assertions"] if "NL_ASSERTION" in criteria["reward_basis"] else None
        if not asserted:
            return lambda: True
        if judge is None:
            raise JudgeError(f"task {self.task.id!r} has assertions in words, which a model judges: give judge=Judge(Completion(…))")
        return lambda: judged(asserted, judge, state.dialogue, state.calls, (self.lineage / "judge").seed())

    def _met(self, criterion: str) -> bool:
        criteria, state = self.task.answer, self.state
        match criterion:
            case "DB":
                goal = self._goal_state(self.task)
                return state_digest(state.tables, state.device) == state_digest(goal.tables, goal.device)
            case "ENV_ASSERTION":
                return all(self.holds(one) is one["assert_value"] for one in criteria["env_assertions"] or ())
            case "ACTION":
                return acted(criteria["actions"] or (), state.calls)
            case _:
                return communicated(criteria["communicate_info"] or (), state.dialogue)

    def _goal_state(self, task: Task) -> Tau2State:
        """The state after the task's own actions of both sides. One that is refused changes nothing."""
        now, self.state = self.state, self.opened(task)
        try:
            for action in task.answer["actions"] or ():
                with suppress(*REFUSALS):
                    self.play(action["name"], action["arguments"], as_user=action["requestor"] == "user")
            return self.state
        finally:
            self.state = now

    def _perform(self, call: Call) -> Reply:
        reply = super()._perform(call)
        if reply.outcome is Outcome.TOOL_ERROR:
            reply.text = _with_capital(reply.text)
        return reply

    def _listen(self, user: User) -> str:
        """What the user says next, after what it does with what it holds, which the agent does not see."""
        rng = self.rng("user")
        for _ in range(MOST_DEEDS):
            turn = user.reply(self._view(), rng)
            if not turn.actions and not turn.text.strip():
                raise UserFailure("the simulated user says and does nothing: choose another model for it")
            for call in turn.actions:
                answer = self._used(call)
                self.state = replace(self.state, dialogue=(*self.state.dialogue, deed(call), Line("device", answer)))
            if not turn.actions:
                break
        else:
            if not any(line.speaker == "agent" for line in self.state.dialogue):
                raise UserFailure(f"the simulated user did {MOST_DEEDS} things and more before a word: choose another model for it")
            turn = UserTurn(ENOUGH)  # the agent may have asked for so much: no words of its own leave an episode without a verdict
        self._hear("user", turn.text)
        return turn.text

    def _view(self) -> UserView:
        data = self.task.data
        dialogue = (Line("agent", GREETING), *self.state.dialogue)
        return UserView(instruction(data["scenario"]), data["scenario"], data["persona"], Device(), "", dialogue)

    def _used(self, call: Call) -> str:
        """What a call of the user's is answered. An error is for the user to mend."""
        self._note(Made(call.name, _json(call.arguments), len(self.state.dialogue)))
        try:
            return self.play(call.name, call.arguments, as_user=True)
        except REFUSALS as error:
            return _with_capital(f"Error: {error}")

    def _note(self, *calls: Any) -> None:
        self.state = replace(self.state, calls=(*self.state.calls, *calls))


def _json(arguments: Mapping[str, Any]) -> str:
    return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()


def _with_capital(error: str) -> str:
    prefix, _, words = error.partition("Error: ")
    return f"{prefix}Error: {words[:1].upper()}{words[1:]}"
