"""Tools that live elsewhere: their arguments are checked by a JSON schema, their answers are cut, and nothing waits for ever."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import orjson

from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.snapshot import excerpt
from agentgym.tool import Effect, Tool

LONGEST_RESULT = 8_000  # characters that the policy reads of one answer
SHORTEST_SECRET = 8  # characters: what is shorter stands in texts by chance
WITH_PATTERNS = ("pattern", "patternProperties", "unevaluatedProperties")  # keywords that search by regular expressions
Result = TypeVar("Result")


class SchemaTool(Tool):
    """A tool whose arguments are described by a JSON schema rather than by a signature.

    Raises `AgentGymError` where ``parameters`` is no JSON schema, of the draft that it names or of 2020-12. A reference in it
    is resolved within it, and never fetched. Patterns are told to the policy but left to the service to check: a regular
    expression from elsewhere may run for hours.
    """

    def __init__(
        self, name: str, description: str, parameters: Mapping[str, Any], function: Callable[..., Any], effect: Effect = "write"
    ) -> None:
        from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]
        from referencing import Registry

        def named(**arguments: Any) -> Any:
            return function(**arguments)

        named.__name__ = name
        super().__init__(named)
        self.description, self.parameters, self.effect = description, dict(parameters), effect
        draft = validator_for(self.parameters, default=Draft202012Validator)
        try:
            draft.check_schema(self.parameters)
        except SchemaError as error:
            raise AgentGymError(f"the parameters of tool {name} are no JSON schema: {error.message}") from error
        self._validator = _without_patterns(draft)(self.parameters, registry=Registry())

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        """The arguments as they are, or one sentence about what is wrong with them."""
        try:
            orjson.dumps(arguments)
            errors = sorted(self._validator.iter_errors(arguments), key=lambda error: [str(part) for part in error.absolute_path])
        except (orjson.JSONEncodeError, RecursionError):
            return f"{self.name}: the arguments are nested too deeply, or hold what is no JSON."
        except Exception as error:  # a reference that leads nowhere
            raise InfrastructureError(f"the schema of tool {self.name} cannot be applied: {type(error).__name__}: {error}") from error
        if not errors:
            return arguments
        return f"{self.name}: {'; '.join(map(_sentence, errors[:3]))}."


def _without_patterns(draft: Any) -> Any:
    from jsonschema.validators import extend

    def additional(validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]) -> Iterable[Any]:
        return () if "patternProperties" in schema else draft.VALIDATORS["additionalProperties"](validator, allowed, instance, schema)

    def unchecked(*_: Any) -> Iterable[Any]:
        return ()

    return extend(draft, {"additionalProperties": additional, **dict.fromkeys(WITH_PATTERNS, unchecked)})


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
    """``text`` without any of ``secrets``, nor the words of them, as they are or quoted for a URL. Before a text is cut."""
    words = {word for secret in secrets for word in (secret, *re.split(r"[\s;=]+", secret)) if len(word) >= SHORTEST_SECRET}
    forms = {form for word in words for form in (word, quote(word, safe=""), quote_plus(word))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "(secret)")
    return text
