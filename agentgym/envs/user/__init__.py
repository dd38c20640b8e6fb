"""``agentgym/User-v0``: help somebody whose phone has no connection, where agent and user each hold half of what is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentgym.action import Action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.user.expert import Memory, action_of, next_step
from agentgym.envs.user.phone import CONNECTED, PACK, Device, describe, status, use, with_plan
from agentgym.envs.user.quality import Faults, blame, faults, says_goodbye
from agentgym.envs.user.scripted import ScriptedUser
from agentgym.envs.user.tasks import SIZES, mended, phone_tasks, start
from agentgym.envs.user.users import CachedUser, Line, ModelUser, User, UserFailure, UserView, deed
from agentgym.errors import AgentGymError, ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.demonstrations import Demonstrations

GOAL = "You want your phone to have a connection again."
MOST_DEEDS = 4  # of the user, before it says something


@dataclass(frozen=True, slots=True)
class UserState:
    device: Device
    accounts: FrozenDict
    dialogue: tuple[Line, ...]


class UserEnv(AgentEnv):
    """Get a user's phone connected. Reward: 1 where it is in the end, and no account was changed that need not be.

    The agent alone can see and change accounts; the user alone can see and use the phone, and does so when told to. ``user`` is a
    `ScriptedUser` by default; ``url``, ``model`` and ``key`` (the name of an environment variable) make it a model behind an
    OpenAI-compatible endpoint, which all environments of a process share, and ``cache`` is a file that remembers its replies. A user
    that fails to answer raises `UserFailure` out of ``step``: such an episode has no verdict.
    """

    system = "Get the user's phone connected. Change nothing else."
    splits = tuple(SIZES)
    max_turns = 10
    max_calls = 16
    snapshots: Kind = "value"
    state: UserState

    def __init__(
        self,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if (url is None) is not (model is None) or (user is not None and url is not None):
            raise AgentGymError("a model as the user takes url= and model= together, and then no user=")
        found: User = user or (ScriptedUser() if url is None or model is None else _served(url, model, key))
        self.user: User = found if cache is None else CachedUser(found, cache, model or "")
        self.blocking = self.user.blocking

    def tasks(self, split: str) -> Sequence[Task]:
        return phone_tasks(split)

    def begin(self, task: Task) -> None:
        device, accounts = start(task.data)
        self.state = UserState(device, accounts, (Line("user", task.prompt),))

    def act(self, action: Action) -> Reply:
        """Plain words are said to the user, as with ``say``."""
        if action.problem is None and not action.calls and action.content:
            return self._talk(action.content)
        return super().act(action)

    @tool
    def say(self, text: str) -> Reply:
        """Say something to the user, who alone can see and use the phone.

        Args:
            text: one question, or one thing to do.
        """
        if not text.strip():
            raise ToolError("say something to the user")
        return self._talk(text)

    @tool(effect="read")
    def account(self, name: str) -> str:
        """Look up a customer's account.

        Args:
            name: the customer's name.
        """
        return describe(self._account(name))

    @tool
    def unblock(self, name: str) -> str:
        """Open a blocked line.

        Args:
            name: the customer's name.
        """
        if not self._account(name)["blocked"]:
            raise ToolError("the line is not blocked")
        return self._keep(self.state.accounts.set((name, "blocked"), False), name)

    @tool
    def add_data(self, name: str) -> str:
        """Sell a pack of data, for when none is left.

        Args:
            name: the customer's name.
        """
        account = self._account(name)
        if account["plan"] == "Talk":
            raise ToolError("the plan Talk has no data")
        return self._keep(self.state.accounts.set((name, "gb"), account["gb"] + PACK), name)

    @tool
    def set_plan(self, name: str, plan: Literal["Talk", "Small", "Large"]) -> str:
        """Change the plan, to the one that the customer wants. Talk has no data.

        Args:
            name: the customer's name.
            plan: the new plan.
        """
        self._account(name)
        return self._keep(with_plan(self.state.accounts, name, plan), name)

    @tool(ends=True)
    def done(self) -> str:
        """End the conversation, once the phone is connected."""
        return "Goodbye."

    def score(self) -> float:
        return float(self._shown() == CONNECTED and self.state.accounts == mended(self.task.data))

    def metrics(self) -> dict[str, float]:
        """The user's faults, and who has the blame. A fault of the environment ends an episode before."""
        found, success = self.faults(), bool(self.score())
        blamed = blame(success, found)
        return {
            "user_withheld": float(len(found.withheld)),
            "user_stopped_early": float(found.stopped_early),
            "user_invented": float(len(found.invented)),
            "needless_change": float(self.state.accounts != mended(self.task.data) and self._shown() == CONNECTED),
            **{f"blame_{who}": float(blamed == who) for who in ("agent", "user")},
        }

    def faults(self) -> Faults:
        return faults(GOAL, self._knowledge(), self.state.dialogue, self._shown() == CONNECTED)

    def gold(self, task: Task) -> list[str]:
        """What the expert does with a user by rules."""
        env = UserEnv()
        env.reset(seed=0, options={"task": task})
        memory, actions = Memory.of(task.prompt), list[str]()
        while env.ended is None:
            step = next_step(memory)
            actions.append(action_of(step))
            memory.read(step.call, str(env.step(actions[-1])[0]))
        return actions

    def key(self) -> str:
        """Equal where phone and accounts of the same task are in the same state, and the same was said last."""
        return state_digest(self.task.id, self.state.device, self.state.accounts, self.state.dialogue[-1])

    def demonstrations(self, chat: Chat | None, seed: int, mistakes: float) -> Demonstrations:
        """Episodes of an expert that errs with probability ``mistakes`` at each turn, for a warm start."""
        from agentgym.envs.demonstrations import Demonstrations
        from agentgym.envs.user.expert import Expert

        return Demonstrations(UserEnv, Expert(seed=seed, mistakes=mistakes), chat, seed)

    def _talk(self, text: str) -> Reply:
        self._hear(Line("agent", text))
        rng = self.rng("user")
        for _ in range(MOST_DEEDS + 1):
            turn = self.user.reply(self._view(), rng)
            for call in turn.actions:
                self.state = replace(self.state, device=_used(self.state.device, call))
                self._hear(deed(call), Line("device", self._shown()))
            if turn.text.strip():
                self._hear(Line("user", turn.text))
                return Reply(turn.text, ends=says_goodbye(turn.text))
            if not turn.actions:
                raise UserFailure("the simulated user says and does nothing: choose another model for it")
        raise UserFailure(f"the simulated user did {MOST_DEEDS} things and more with the phone before a word: choose another model for it")

    def _view(self) -> UserView:
        data, state = self.task.data, self.state
        return UserView(GOAL, self._knowledge(), data["persona"], state.device, self._shown(), state.dialogue)

    def _knowledge(self) -> dict[str, str]:
        return {"name": self.task.data["name"], "plan": self.task.data["wants"]}

    def _shown(self) -> str:
        return status(self.state.device, self.state.accounts[self.task.data["name"]])

    def _hear(self, *lines: Line) -> None:
        self.state = replace(self.state, dialogue=(*self.state.dialogue, *lines))

    def _account(self, name: str) -> Any:
        if name not in self.state.accounts:
            raise ToolError(f"no customer is named {name}")
        return self.state.accounts[name]

    def _keep(self, accounts: FrozenDict, name: str) -> str:
        self.state = replace(self.state, accounts=accounts)
        return describe(accounts[name])


def _used(device: Device, call: Any) -> Device:
    try:
        return use(device, call)
    except ToolError as error:
        raise UserFailure(f"the simulated user fails with the phone: {error}") from error


@cache
def _served(url: str, model: str, key: str | None) -> ModelUser:
    from agentgym.tools.completion import Completion

    return ModelUser(Completion(url, model, key))
