"""Users of the conversations with agents: a model that is told what it wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agentgym.envs.tau.users import GREETING, InstructedUser
from agentgym.envs.user.phone import Device
from agentgym.envs.user.users import Line, UserView

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

FINISH = "finish conversation"  # with which either side ends it
Listen = Callable[[Sequence[Line]], str]  # what a user says next, after a dialogue


def view(wish: str, dialogue: Sequence[Line]) -> UserView:
    """To a user, the agent spoke first, always the same words."""
    return UserView(wish, {}, "", Device(), "", (Line("agent", GREETING), *dialogue))


def role(view: UserView) -> str:
    """The benchmark's rules for a user, in our words [S]."""
    return (
        f"You are somebody who has an assistant do something. This is who you are and what you want:\n\n{view.goal}\n\n"
        "Write one line each time, what you say next and nothing else, in your own words and in character. Do not tell all at once, but "
        "tell the whole of what the present step needs: a title, a text and a time for a reminder, say. What is not written above you do "
        "not know: say so, and make nothing up. Names written above are full names. Asked to confirm something, or which message to "
        "delete, answer as the text above has it. Offer no help. Where the text speaks of a way there and back, begin with that. Asked "
        f"whether there is more, think of what is still to be done. Once everything is done, write {FINISH} alone, which ends it."
    )


def instructed(completion: Completes) -> InstructedUser:
    return InstructedUser(completion, role)
