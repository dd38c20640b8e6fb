"""Tools that live elsewhere: their arguments are checked by a JSON schema, their answers are cut, and nothing waits for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.snapshot import excerpt
from agentgym.tool import Effect, Tool

LONGEST_RESULT = 8_000  # characters that the policy reads of one answer
SHORTEST_SECRET = 8  # characters: what is shorter stands in texts by chance
Result = TypeVar("Result")


class SchemaTool(Tool):
    """A tool whose arguments are described by a JSON schema rather than by a signature.

    Raises `AgentGymError` where ``parameters`` is no JSON schema. A reference in it is resolved within it, and never fetched.
    """

    def __init__(
        self, name: str, description: str, parameters: Mapping[str, Any], function: Callable[..., Any], effect: Effect = "write"
    ) -> None:
        from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
        from referencing import Registry

        def named(**arguments: Any) -> Any:
            return function(**arguments)

        named.__name__ = name
        super().__init__(named)
        self.description, self.parameters, self.effect = description, dict(parameters), effect
        try:
            Draft202012Validator.check_schema(self.parameters)
        except SchemaError as error:
            raise AgentGymError(f"the parameters of tool {name} are no JSON schema: {error.message}") from error
        self._validator = Draft202012Validator(self.parameters, registry=Registry())

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        """The arguments as they are, or one sentence about what is wrong with them."""
        try:
            errors = sorted(self._validator.iter_errors(arguments), key=lambda error: [str(part) for part in error.absolute_path])
        except Exception as error:  # a reference that leads nowhere or in a circle, a pattern that cannot be read
            raise InfrastructureError(f"the schema of tool {self.name} cannot be applied: {type(error).__name__}: {error}") from error
        if not errors:
            return arguments
        return f"{self.name}: {'; '.join(map(_sentence, errors[:3]))}."


def _sentence(error: Any) -> str:
    where = ".".join(map(str, error.absolute_path)) or "arguments"
    return f"{where}: {excerpt(error.message, error.message)}"


def within(seconds: float, work: Callable[[], Result], who: str) -> Result:
    """What ``work`` gives, in a thread of its own. Raises `InfrastructureError` after ``seconds``, and leaves the thread behind."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled, so that the thread may settle it late

    def settle() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=settle, daemon=True, name=who).start()
    return awaited(future, seconds, who)


def awaited(future: Future[Result], seconds: float, who: str) -> Result:
    """The result of ``future``. Raises `InfrastructureError` after ``seconds``, and cancels it."""
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done() and future.exception() is error:
            raise
        future.cancel()
        raise InfrastructureError(f"{who} did not answer within {seconds:g} s") from error


def cut(text: str, longest: int = LONGEST_RESULT, whole: bool = True) -> str:
    """``text``, or as much of it as the policy may read and how much there is. ``whole``: there is no more than this."""
    if whole and len(text) <= longest:
        return text
    return f"{text[:longest]}… (cut: {longest:,} characters of {len(text):,}{'' if whole else ' or more'})"


def not_shown(kind: str, size: int, whole: bool = True) -> str:
    """What stands for what is no text."""
    return f"({kind}, {size:,} bytes{'' if whole else ' or more'}, not shown)"


def without(text: str, secrets: Iterable[str]) -> str:
    """``text`` without any of ``secrets``, nor the words of them."""
    words = {word for secret in secrets for word in (secret, *re.split(r"[\s;=]+", secret)) if len(word) >= SHORTEST_SECRET}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "(secret)")
    return text
