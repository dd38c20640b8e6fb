"""Chat to tokens and back, token-exactly: what a policy sampled is bridged to the next turn and never rendered again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from agentgym.action import Call, format_action
from agentgym.turn import Message

_SURROGATE = re.compile("[\ud800-\udfff]")


class Renderer(Protocol):
    """The part of the ``renderers`` package that we use; every renderer of that package fits."""

    def render_ids(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = False) -> list[int]: ...
    def bridge_to_next_turn(
        self, previous_prompt_ids: list[int], previous_completion_ids: list[int], new_messages: Any
    ) -> Any: ...
    def parse_response(self, token_ids: list[int]) -> Any: ...
    def get_stop_token_ids(self) -> list[int]: ...


class Chat:
    """One model's chat format. ``tokenizer`` needs ``encode`` and ``decode``; ``renderer`` is of the ``renderers`` package.

    ``control``: tokens by which a text could end its own message. In what tools and users say, a zero-width space breaks
    them. None are needed for a renderer that encodes such texts as plain characters.
    """

    def __init__(self, tokenizer: Any, renderer: Renderer, control: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.renderer = renderer
        self._control = re.compile("|".join(map(re.escape, control))) if control else None
        self.stop_ids = frozenset(renderer.get_stop_token_ids())

    @classmethod
    def of(cls, tokenizer: Any, config: Any = None) -> Chat:
        """The chat format of a Hugging Face tokenizer, found by its name, or by an explicit ``renderers`` config."""
        from renderers import create_renderer

        return cls(tokenizer, create_renderer(tokenizer, config), tokenizer.all_special_tokens)

    def open(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The tokens of a whole conversation, up to where the assistant begins to write."""
        specs = [spec["function"] for spec in tools] or None
        return self.renderer.render_ids(self._harmless(messages), tools=specs, add_generation_prompt=True)

    def bridge(self, before: list[int], completion: list[int], messages: Sequence[Message]) -> list[int] | None:
        """The tokens between a sampled completion and the next one; None where the template must rewrite history.

        ``before`` are the tokens from the last opening of an assistant turn or earlier, up to the completion: bridging
        looks at no more, so that a turn costs the same after 8 turns and after 1,024.
        """
        bridged = self.renderer.bridge_to_next_turn(before, completion, self._harmless(messages))
        if bridged is None:
            return None
        ids: list[int] = bridged if isinstance(bridged, list) else bridged.token_ids
        start, end = len(before), len(before) + len(completion)
        return ids[end:] if ids[:start] == before and ids[start:end] == completion else None

    def _harmless(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._control is None:
            return messages
        return [
            {**message, "content": self._control.sub(_broken, message["content"])}
            if message["role"] in ("tool", "user") and isinstance(message["content"], str)
            else message
            for message in messages
        ]

    def read(self, completion: list[int]) -> str:
        """The canonical text of a sampled completion (see `agentgym.action`)."""
        parsed = self.renderer.parse_response(completion)
        calls = [read for call in parsed.tool_calls or () if (read := _well_formed(call)) is not None]
        if parsed.tool_calls and len(calls) == len(parsed.tool_calls):
            text = format_action(*calls, thought=parsed.reasoning_content or "", content=parsed.content or "")
            if not _SURROGATE.search(text):  # JSON may hold half a pair, but no file and no tokenizer can
                return text
        return self.decode(completion)

    def decode(self, completion: list[int]) -> str:
        """The text as it was sampled, without its stop token."""
        ids = completion[:-1] if completion and completion[-1] in self.stop_ids else completion
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def write(self, action: str) -> list[int]:
        """Tokens for an action that nobody sampled, such as an expert's. They never enter an importance ratio."""
        ids: list[int] = self.tokenizer.encode(action, add_special_tokens=False)
        return [*ids, self.renderer.get_stop_token_ids()[0]]


def _broken(control: re.Match[str]) -> str:
    return f"{control[0][0]}\u200b{control[0][1:]}"


def _well_formed(call: Any) -> Call | None:
    name, arguments = getattr(call, "name", None), getattr(call, "arguments", None)
    return Call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None
