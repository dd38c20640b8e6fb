"""Who acts: the seam between the rollout engine and anything that writes actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentgym.action import Action, parse_action
from agentgym.turn import Message, Turn, TurnTree, context_ids, path

Finish = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 is greedy. ``seed`` belongs to this one generation; equal prompts and seeds give equal tokens."""

    temperature: float = 1.0
    max_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an actor is asked to continue: the context after ``turn``. Tokens and messages are made when asked for."""

    tree: TurnTree
    turn: Turn

    @property
    def ids(self) -> list[int]:
        return context_ids(self.turn)

    @property
    def length(self) -> int:
        return self.turn.length

    @property
    def cache(self) -> Any:
        """What the actor returned as ``Generation.cache`` for this context's last action, if it can still be used."""
        return self.turn.cache

    @property
    def messages(self) -> list[Message]:
        """The conversation so far in OpenAI's form."""
        messages: list[Message] = []
        for turn in path(self.turn):
            if turn.parent is not None and turn.author != "env" and not turn.partial:
                messages.append(assistant_message(turn))
            messages.extend(_numbered(turn))
        return messages


@dataclass(slots=True)
class Generation:
    """One sampled action. An actor that works on text leaves ``ids`` empty; its tokens never enter a ratio.

    ``ids`` and ``logprobs`` have one entry for each sampled token, the stop token included. So has ``entropies``: of the
    distribution that the log-probability is from, over the whole vocabulary, in nats; empty where the actor does not know it.
    ``versions`` are runs ``(policy version, tokens)``. ``cache`` is handed back in the next `Prompt` below this turn.
    ``tokens_read`` and ``tokens_written`` are what a server counted, where the ids are not known here.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    finish: Finish = "stop"
    text: str | None = None
    cache: Any = None
    entropies: list[float] = field(default_factory=list)
    tokens_read: int = 0
    tokens_written: int = 0


class Actor(Protocol):
    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation: ...


@dataclass(slots=True)
class Scores:
    """Log-probabilities of given tokens: ``logprobs`` of shape (T,); with ``topk``: ids and log-probabilities (T, k)."""

    logprobs: Any
    topk_ids: Any = None
    topk_logprobs: Any = None


class Scorer(Protocol):
    async def score(self, ids: list[int], *, topk: int = 0, hint: list[int] | None = None) -> Scores: ...


def assistant_message(turn: Turn) -> Message:
    """A turn's action as a chat message with structured tool calls, where it was well-formed; else as plain content."""
    action: Action = parse_action(turn.action)
    if action.problem is not None:
        return {"role": "assistant", "content": turn.action}
    message: Message = {"role": "assistant", "content": action.content}
    if action.thought:
        message["reasoning_content"] = action.thought
    if action.calls:
        message["tool_calls"] = [
            {"type": "function", "id": _call_id(turn, i), "function": {"name": call.name, "arguments": call.arguments}}
            for i, call in enumerate(action.calls)
        ]
    return message


def _call_id(turn: Turn, number: int) -> str:
    return f"call_{turn.depth}_{number}"


def _numbered(turn: Turn) -> list[Message]:
    """The replies, each tool result with the id of the call that it answers."""
    numbered: list[Message] = []
    calls = 0
    for message in turn.replies:
        if message["role"] == "tool":
            message = {**message, "tool_call_id": _call_id(turn, calls)}
            calls += 1
        numbered.append(message)
    return numbered
