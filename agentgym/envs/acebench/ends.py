"""How the tasks of agents are judged: by the fields of the apps at the end, and by the calls on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.action import Call

Fields = Mapping[str, Any]
_SPACED_OR_QUOTED = re.compile(r"[\s'\"\\]")


def reached(found: Mapping[str, Fields], wanted: Sequence[Mapping[str, Fields]], *, official: bool = False) -> bool:
    """Whether the apps are as they are wanted. ``found``: their fields, by name. ``wanted``: the same, one app each.

    There must be as many as are wanted, and each field that is found must equal the wanted one. As in the benchmark's program, what is
    wanted of an app that the task does not have is not looked at: names are misspelt. ``official``: of a field with entries, such as the
    messages, only those that are wanted are looked at. Source: ACEBench (arXiv 2501.12851), the checker of its program [S].
    """
    if len(wanted) != len(found):
        return False
    named = [(name, fields) for one in wanted for name, fields in one.items() if len(one) == 1 and name in found]
    return all(field in fields and _is(value, fields[field], official) for name, fields in named for field, value in found[name].items())


def _is(value: Any, wanted: Any, official: bool) -> bool:
    if official and isinstance(wanted, dict):
        return all(name in value and value[name] == part for name, part in wanted.items())
    return bool(value == wanted)


def share_met(asked: Sequence[str], milestones: Sequence[Sequence[str]]) -> float:
    """The share of milestones that were met in their order, of the alternative that fares best. After one that was not, none counts.

    ``asked``: the calls of each action, as `written` or as they came. They are compared with a milestone without spaces and quotes, since
    tool calls have none; the program [S] compares letter by letter.
    """
    return max((_share(asked, stones) for stones in milestones), default=1.0)


def _share(asked: Sequence[str], stones: Sequence[str]) -> float:
    rest = iter([_bare(text) for text in asked])
    return sum(_bare(stone) in rest for stone in stones) / len(stones) if stones else 1.0


def written(calls: Sequence[Call]) -> str:
    """Calls in the benchmark's form: ``[name(parameter='value')]``."""
    return f"[{', '.join(f'{call.name}({_arguments(call)})' for call in calls)}]"


def _arguments(call: Call) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())


def _bare(text: str) -> str:
    return _SPACED_OR_QUOTED.sub("", text)
