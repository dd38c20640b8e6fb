"""The tasks of agents: what somebody wants is done with the functions of a phone or of an airline, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentgym.action import Action, Call, format_action
from agentgym.env import Reply
from agentgym.envs.acebench.ends import reached, share_met, written
from agentgym.envs.acebench.solving import solution
from agentgym.envs.acebench.users import FINISH, Listen
from agentgym.envs.acebench.world import Answer, World
from agentgym.envs.calls import Json, calls_alone
from agentgym.envs.user.users import Line
from agentgym.outcome import Outcome
from agentgym.snapshot import state_digest
from agentgym.task import Task

MOST_ACTIONS = 20  # of the agent: with the answers, 40 messages
OVER = "The conversation is over."
NOBODY = f"Nobody answers: use what you know, call a function, or write {FINISH} when all is done."
UNCALLED = Answer("This was not called, since a call before it broke down.", "broken")
ALONE = (
    "You are an assistant on a phone. Do what the user asks for with the functions, step by step: look at what a function gives before you "
    "call the next. Nobody answers questions. Give the parameters that are needed, in the user's words where the description asks for no "
    "other form."
)
WITH_USER = (
    "You are an assistant who serves a user with functions. Call them when you know all that they need, and ask the user for what you do "
    "not know; make nothing up and give no advice. Either call functions or talk to the user, not both at once, and call several at once "
    "only where they are the same function."
)
ENDING = f"When all is done, write: {FINISH}"
PHONE = (
    "It is 16:00 on 11 June 2024 in Beijing. You send messages, keep reminders and order food. Names that the user gives are whole names.\n"
    "- Messages: know who sends and who receives before you send or look. Before you look, log in to the device. Afterwards, ask whether "
    "the message should become a reminder, whether to answer it and, if it speaks of food, whether to order that. If the memory is full, "
    "ask which message to delete.\n"
    "- Reminders: know title and content; the time is now unless another is given. Look at a message first if it is to be the content. "
    "After looking at a reminder by its title, ask whether to do what it says.\n"
    "- Food: ask for name and password of the account and log in to the platform; ask for merchant, product and number where they are not "
    "given. Order from one merchant at a time. If the balance is too low, say so and ask whether to change the order.\n"
    "Tell the user how it went, and do not repeat a call in vain."
)
FLIGHTS = (
    "It is 8:00 on 15 July 2024 in Beijing. You book, change and cancel flights of an airline. Before anything is changed, list what you "
    "will do and let the user agree, once for each kind of thing. Refuse what is against these rules.\n"
    "- Booking: ask for user ID and password, then for the cities. Search first. There and back are two bookings. Where no flight goes "
    "directly, ask for a city on the way, and book both flights at once. Ask whether cash or bank pays. Bags are free up to 1 in economy "
    "and 2 in business class, for silver members 2 and 3, for gold members 3 and 3; each more costs 50 yuan.\n"
    "- Changing: ask for user ID and password; reservations are found by the user. The cities stay as they are. Another cabin costs, or "
    "gives back, the difference, and is the same on all flights of a reservation. Bags can be added, not taken away. Ask how it is paid.\n"
    "- Cancelling: ask for user ID, reservation and reason. It is free within 24 hours of booking, where the airline cancelled and in "
    "business class; else economy class loses 20%. Nothing that has been flown in part is cancelled."
)


@dataclass(frozen=True, slots=True)
class Doings:
    """``asked``: what each action asked of the functions. ``ran``: whether they answered at all. ``shown``: what the last turn said."""

    world: World
    dialogue: tuple[Line, ...] = ()
    asked: tuple[str, ...] = ()
    actions: int = 0
    ran: bool = False
    shown: str = ""

    def instruction(self, task: Task) -> str:
        rules = {"BaseApi": PHONE, "Travel": FLIGHTS}
        parts = [WITH_USER, *(rules[name] for name in rules if name in self.world.apps)] if task.data["talks"] else [ALONE]
        return "\n\n".join([*parts, ENDING])

    def most_turns(self, task: Task) -> int:
        return MOST_ACTIONS

    def functions(self, task: Task) -> list[Json]:
        found: list[Json] = task.data["functions"]
        return found

    def act(self, task: Task, action: Action, listen: Listen | None) -> tuple[Reply, Doings]:
        """As in the benchmark, the first action ends nothing, and words that end the conversation come before calls."""
        if action.problem is not None:
            reply, after = Reply(f"Error: {action.problem}", outcome=Outcome.MODEL_ERROR), self
        elif FINISH in action.content and self.actions:
            reply, after = Reply(OVER, ends=True), self
        elif calls := action.calls or tuple(calls_alone(action.content)):
            answers, after = self._call(calls, goes_on=not task.data["talks"])
            after = replace(after, asked=(*self.asked, written(calls) if action.calls else action.content))
            reply = _told(action.calls, answers)
        elif listen is not None and task.data["talks"] and action.content:
            reply, after = self._talk(action.content, listen)
        else:
            after = self if task.data["talks"] else replace(self, asked=(*self.asked, action.content))
            reply = Reply(NOBODY, outcome=Outcome.OK if action.content else Outcome.MODEL_ERROR)
        return reply, replace(after, actions=self.actions + 1, shown=reply.text)

    def score(self, task: Task) -> float:
        return float(self._reaches(task, official=False))

    def metrics(self, task: Task) -> dict[str, float]:
        official = self._reaches(task, official=True)
        return {"official": float(official), "process": 1.0 if official else share_met(self.asked, task.answer["milestones"])}

    def key(self, task: Task) -> str:
        """Equal where the same task's world is equal, the same was said and the last turn showed the same."""
        return state_digest(task.id, self.world, self.dialogue, self.shown)

    def _reaches(self, task: Task, official: bool) -> bool:
        return self.ran and reached(self.world.saved(), task.answer["ends"], official=official)

    def _call(self, calls: Sequence[Call], goes_on: bool) -> tuple[list[Answer], Doings]:
        """As in the benchmark, in a conversation nothing is called after a call that breaks down, as a first one that is unknown does."""
        world, stops = self.world, False
        answers: list[Answer] = []
        for call in calls:
            answer, world = (UNCALLED, world) if stops else world.answer(call)
            stops = stops or (not goes_on and (answer.how == "broken" or (answer.how == "unknown" and not answers)))
            answers.append(answer)
        return answers, replace(self, world=world, ran=self.ran or not stops)

    def _talk(self, words: str, listen: Listen) -> tuple[Reply, Doings]:
        said = (*self.dialogue, Line("agent", words))
        answer = listen(said)
        return Reply(answer, ends=FINISH in answer and self.actions > 0), replace(self, dialogue=(*said, Line("user", answer)))


def _told(calls: Sequence[Call], answers: Sequence[Answer]) -> Reply:
    """Each call of a tool has its answer; calls that were written as text have theirs together."""
    messages = [{"role": "tool", "name": call.name, "content": one.text} for call, one in zip(calls, answers, strict=False)]
    outcome = Outcome.OK if all(one.how == "done" for one in answers) else Outcome.TOOL_ERROR
    return Reply("\n".join(one.text for one in answers), outcome=outcome, messages=messages)


def known_actions(task: Task, world: World) -> list[str] | None:
    """Calls that leave the world as it is wanted, and the end. None where none are found."""
    ends, milestones = task.answer["ends"], task.answer["milestones"]
    calls = solution(world, ends, milestones, lambda after: reached(after.saved(), ends))
    return None if calls is None else [*(format_action(call) for call in calls), FINISH]
