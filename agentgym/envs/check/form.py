"""The form of the contract: types, limits, the end, schemas, speed, and Gymnasium's own check."""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson

from agentgym.action import Call, format_action
from agentgym.env import AgentEnv
from agentgym.envs.check.arguments import varied
from agentgym.envs.check.play import (
    MOST_TURNS,
    NotCheckedError,
    Seen,
    Subject,
    finish,
    opening,
    probes,
    specs,
    take,
    words_of,
)
from agentgym.errors import AgentGymError
from agentgym.tool import schema_of

SLOW = 0.05  # seconds of one step
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}


def contract(subject: Subject) -> Iterator[str]:
    """What reset and step return, for good and bad actions."""
    found: dict[str, None] = {}
    for script in subject.scripts:
        for turn, seen in enumerate(subject.alone(script)):
            where = f"{script}, {f'turn {turn}' if turn else 'reset'}"
            action = script.actions[turn - 1] if turn else ""
            found.update((f"{where}: {problem}", None) for problem in _malformed(seen, action))
        if found:
            break
    yield from islice(found, 3)


def _malformed(seen: Seen, action: str) -> Iterator[str]:
    if seen.raised:
        yield (
            f"step({action!r}) raised {seen.raised}: {seen.why}. Whatever a policy writes, answer it; "
            "raise ToolError where a tool refuses"
        )
        return
    if not isinstance(seen.observation, str):
        yield f"the observation is a {type(seen.observation).__name__}, not text"
    if not isinstance(seen.terminated, bool) or not isinstance(seen.truncated, bool):
        yield "terminated and truncated must be bool"
    if seen.terminated and seen.truncated:
        yield "terminated and truncated are both true: an episode ends in one way"
    messages = orjson.loads(seen.messages)
    if not isinstance(messages, list) or not messages:
        yield "info['messages'] must hold the chat messages that the turn adds"
    elif not all(isinstance(message, dict) and "role" in message and "content" in message for message in messages):
        yield "each of info['messages'] needs a role and a content"


def end(subject: Subject) -> Iterator[str]:
    """After the end, step must raise until the next reset."""
    seen_ends = set()
    for script in subject.scripts:
        with subject.new() as env:
            script.reset(env)
            transcript = finish(env, script.actions)
            last = transcript[-1] if transcript else Seen()
            kind = "terminated" if last.terminated else "truncated" if last.truncated else None
            if kind is None or kind in seen_ends:
                continue
            seen_ends.add(kind)
            for action in (*script.actions[:1], "", *script.actions[-1:]):
                if not take(env, action).raised:
                    yield (
                        f"{script}: step() after the episode was {kind} returned instead of raising. "
                        "Raise until reset() is called"
                    )
                    break
            script.reset(env)
    if not seen_ends:
        raise NotCheckedError("no scripted episode came to an end")


def limits(subject: Subject) -> Iterator[str]:
    """No more turns than ``max_turns``, no more tool calls than ``max_calls``."""
    root = subject.seeds("play", 1)[0]
    with subject.new() as env:
        words = words_of(str(opening(env, seed=root).observation))
        going = [format_action(call) for call in probes(env, words, 0)[0]]
        most_turns, most_calls = env.max_turns, env.max_calls
    if not isinstance(most_turns, int) or most_turns < 1:
        yield f"max_turns is {most_turns!r}: it must be a positive integer"
        return
    yield from islice(_endless(subject, root, most_turns, ["", *going]), 1)
    if most_calls is not None and going:
        yield from islice(_too_many_calls(subject, root, most_calls, going), 1)
    if most_turns > MOST_TURNS:
        raise NotCheckedError(f"max_turns = {most_turns} is more than the {MOST_TURNS} turns that are tried")


def _endless(subject: Subject, root: int, most: int, actions: Sequence[str]) -> Iterator[str]:
    if most > MOST_TURNS:
        return
    for action in actions[: 2 if subject.thrifty else 8]:
        with subject.new() as env:
            opening(env, seed=root)
            if not any(take(env, action).ended for _ in range(most)):
                yield (
                    f"max_turns = {most} is not enforced: after {most} turns of {action!r} the episode was neither "
                    "terminated nor truncated"
                )


def _too_many_calls(subject: Subject, root: int, most: int, actions: Sequence[str]) -> Iterator[str]:
    crowd = min(most + 5, 200)
    for action in actions:
        for shape, plan in (("in one turn", [action * crowd]), ("one a turn", [action] * crowd)):
            with subject.new() as env:
                made = _count_calls(env)
                opening(env, seed=root)
                made.clear()
                turns = [take(env, part) for part in plan[: env.max_turns]]
                done = sum(made.values())
                refused = [seen for seen in turns if seen.ended or seen.outcome != "ok"]
            answered = done or (0 if refused else len(turns))
            if answered > most:
                yield (
                    f"max_calls = {most} is not enforced: {answered} calls were answered, {shape}. "
                    "Refuse calls beyond the limit, or truncate"
                )


def _count_calls(env: AgentEnv) -> Counter[str]:
    """Count what really runs, however the environment comes to call its tools."""
    made: Counter[str] = Counter()

    def counted(function: Any, name: str) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            made[name] += 1
            return function(*args, **kwargs)

        return run

    for tool in env.tools:
        try:
            wrapped = counted(tool.function, tool.name)
            if getattr(tool.function, "__self__", None) is env:
                setattr(env, tool.name, wrapped)
            tool.function = wrapped
        except (AttributeError, TypeError):  # not a tool of ours: the answers have to tell
            continue
    return made


def schema(subject: Subject) -> Iterator[str]:
    """What the policy is told of a tool is what its function takes."""
    with subject.new() as env:
        told = opening(env, seed=subject.seeds("play", 1)[0]).info.get("tools")
        tools = list(env.tools)
        counts = Counter(tool.name for tool in tools)
        for name, count in counts.items():
            if count > 1:
                yield f"{count} tools are named {name!r}: names must be unique"
        specified = []
        for tool in tools:
            try:
                specified.append(tool.spec)
                yield from _tool_problems(tool)
            except Exception as error:
                yield f"tool {tool.name!r} has no schema: {type(error).__name__}: {error}"
        if told is not None and _shape(told) != _shape(specified):
            yield "info['tools'] at reset differs from the specifications of env.tools: tell the policy tool.spec"
    yield from _unanswered(subject)


def _tool_problems(tool: Any) -> Iterator[str]:
    spec = tool.spec
    function = spec.get("function", {})
    name, parameters = function.get("name"), function.get("parameters")
    if spec.get("type") != "function" or name != tool.name:
        shape = f"{{'type': 'function', 'function': {{'name': {tool.name!r}, …}}}}"
        yield f"tool {tool.name!r}: its specification must be {shape}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield f"tool name {name!r} must match {NAME.pattern}"
    try:
        orjson.dumps(spec)
    except TypeError as error:
        yield f"tool {tool.name!r}: its specification is not JSON ({error})"
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        yield f"tool {tool.name!r}: its parameters must be a JSON schema of type object"
        return
    yield from (f"tool {tool.name!r}: {problem}" for problem in _schema_problems(parameters))
    callable_ = getattr(tool, "function", None)
    try:
        expected = schema_of(callable_) if callable_ is not None else parameters
    except AgentGymError:  # a tool from outside brings its schema along
        return
    if _shape(parameters) != _shape(expected):
        yield (
            f"tool {tool.name!r}: its schema {_brief(parameters)} differs from its function {_brief(expected)}. "
            "Let agentgym.tool.schema_of write the schema"
        )


def _schema_problems(parameters: Mapping[str, Any]) -> Iterator[str]:
    properties = parameters.get("properties", {})
    unknown = set(parameters.get("required", ())) - set(properties)
    if unknown:
        yield f"required names {sorted(unknown)} that are no properties"
    for name, part in properties.items():
        kinds = part.get("type", "object") if isinstance(part, Mapping) else None
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if not all(kind in TYPES for kind in kinds):
            yield f"{name!r} has the type {kinds}, which JSON schema does not have"


def _unanswered(subject: Subject) -> Iterator[str]:
    """Calls that the schema allows must not fail within the function."""
    root = subject.seeds("play", 1)[0]
    with subject.new() as env:
        words = words_of(str(opening(env, seed=root).observation)) or ["a"]
        calls = [(name, varied(parameters, words, n)) for name, parameters, _ in specs(env) for n in (0, 1)]
    for name, arguments in calls:
        with subject.new() as env:
            opening(env, seed=root)
            seen = take(env, format_action(Call(name, arguments)))
        if seen.raised in ("TypeError", "AttributeError", "KeyError"):
            yield f"tool {name!r} raised {seen.raised} ({seen.why}) for arguments that its schema allows: {arguments}"
            return


def _shape(value: Any) -> Any:
    """A schema without its words."""
    if isinstance(value, Mapping):
        words = {"title", "description"} if not isinstance(value.get("title"), Mapping) else {"description"}
        return {
            key: ({name: _shape(part) for name, part in item.items()} if key == "properties" else _shape(item))
            for key, item in value.items()
            if key not in words
        }
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return value


def _brief(parameters: Mapping[str, Any]) -> str:
    required = parameters.get("required", ())
    parts = parameters.get("properties", {}).items()
    return "(" + ", ".join(f"{name}{'' if name in required else '?'}: {part.get('type', '…')}" for name, part in parts) + ")"


def blocking(subject: Subject) -> Iterator[str]:
    """Slow steps must be declared, or they hold up every other episode."""
    slowest = max(subject.scripts, key=lambda script: max(seen.seconds for seen in subject.alone(script)))
    with subject.new() as env:
        if env.blocking:
            return
    pairs = zip(subject.alone(slowest), subject.play(slowest), strict=False)  # the faster of two: the machine may be busy
    seconds = max(min(a.seconds, b.seconds) for a, b in pairs)
    if seconds > SLOW:
        yield f"{slowest}: a step took {1000 * seconds:.0f} ms. Declare blocking = True, so that it runs in a thread"


def gymnasium(subject: Subject) -> Iterator[str]:
    """Gymnasium's own check."""
    from gymnasium.utils.env_checker import check_env

    with subject.new() as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_env(env, skip_render_check=True)
        except Exception as error:
            yield f"gymnasium.utils.env_checker.check_env: {type(error).__name__}: {error}"
