"""ACEBench's metric: calls that agree with the known ones, answers that name what is wrong, and the scores of groups of categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from agentgym.action import Call
from agentgym.envs.calls import Json, bare, tool_name

MISSING, INCORRECT, LIMITED = "Missing necessary parameters", "There is incorrect value", "the limitations of the function"
WEIGHTS = {"normal": 0.578, "special": 0.2676, "agent": 0.1545}
_NUMBERED = re.compile(r"_\d+$")  # a function that is wanted more than once


def fault(calls: Sequence[Call], functions: Sequence[Json], wanted: Json, *, official: bool = False) -> str:
    """What is wrong with ``calls``, in one sentence; empty where they are right. ``wanted``: ``{name: {parameter: value}}``.

    The functions must be those that are wanted, each as often, in any order, and each parameter that is wanted be given, no other,
    with a value that `agrees`. ``official``: as the benchmark's program grades, a call may leave out what its description does not
    require, and values are compared by `agrees_loosely`.

    Source: ACEBench (arXiv 2501.12851), the checker of its program [S]. One thing is mended: the program takes the spaces out of an
    answer but not out of the known one, and so refuses some known answers.
    """
    names = [function_name(name, functions) for name in wanted]
    if Counter(tool_name(call.name) for call in calls) != Counter(map(tool_name, names)):
        return f"{', '.join(call.name for call in calls) or 'nothing'} is called, not {', '.join(names)}"
    for name, values in zip(names, wanted.values(), strict=True):
        parameters = next(function["parameters"] for function in functions if function["name"] == name)
        given = [call.arguments for call in calls if tool_name(call.name) == tool_name(name)]
        faults = [_fault_of_call(arguments, parameters, values, official) for arguments in given]
        if "" not in faults:
            return f"{name}: {faults[0]}"
    return ""


def function_name(name: str, functions: Sequence[Json]) -> str:
    """The function that a known call is of: ``name``, or ``name`` without the number that tells calls of one function apart."""
    return name if any(function["name"] == name for function in functions) else _NUMBERED.sub("", name)


def _fault_of_call(arguments: Json, parameters: Json, wanted: Json, official: bool) -> str:
    needed = parameters["required"] if official and arguments else wanted
    if missing := [name for name in needed if name not in arguments]:
        return f"{missing[0]} is missing"
    for name, value in arguments.items():
        if name not in wanted:
            return f"{name} is not wanted"
        if not (agrees_loosely if official else agrees)(value, wanted[name]):
            return f"{name} is {value!r}, not {wanted[name]!r}"
    return ""


def agrees(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one: a text holds it (without case, spaces and ``,./-_*^``), but is it within a list; dicts
    have the same keys; lists the same order; numbers are of one type, but for a whole one in place of a float."""
    if isinstance(wanted, str):
        return isinstance(value, str) and bare(wanted) in bare(value)
    if isinstance(wanted, dict):
        return isinstance(value, dict) and value.keys() == wanted.keys() and all(agrees(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(_agrees_within_list, value, wanted))
    if isinstance(wanted, bool):
        return value is wanted or value == str(wanted).lower()
    whole = isinstance(wanted, float) and type(value) is int
    return bool(value == wanted) and (whole or type(value) is type(wanted))


def agrees_loosely(value: Any, wanted: Any, within: bool = False) -> bool:
    """As the benchmark's program compares: of numbers and booleans the type alone, but within a dict the text of all that is no list."""
    if isinstance(wanted, dict):
        same_keys = isinstance(value, dict) and value.keys() == wanted.keys()
        return same_keys and all(agrees_loosely(value[key], wanted[key], within=True) for key in wanted)
    if within and not isinstance(wanted, list):
        return str(bare(wanted)).lower() in str(bare(value)).lower()
    if isinstance(wanted, list) and not within and all(isinstance(part, dict) for part in wanted):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(agrees_loosely, value, wanted))
    if isinstance(wanted, bool | int | float):
        return type(value) is type(wanted) or (isinstance(wanted, bool) and value in ("true", "false"))
    return agrees(value, wanted)


def _agrees_within_list(value: Any, wanted: Any) -> bool:
    return bool(bare(value) == bare(wanted)) if isinstance(wanted, str) else agrees(value, wanted)


def tells(category: str, text: str, wanted: Any, *, official: bool = False) -> bool:
    """Whether ``text`` says, in the set phrase of a special category, what is wrong, and names every parameter and value in it.

    ``official``: of incorrect values the program of the benchmark [S] does not ask for the parameters.
    """
    if category == "special_irrelevant":
        return LIMITED in text
    incorrect = category == "special_error_param"
    parts = [part for name, parts in wanted.items() for part in (*parts, *(() if official and incorrect else (name,)))]
    return (INCORRECT if incorrect else MISSING) in text and all(str(part) in text for part in parts)


def telling(category: str, wanted: Any) -> str:
    """The answer in the set form of a special category."""
    if category == "special_irrelevant":
        return f"Due to {LIMITED}, I cannot solve this problem."
    if category == "special_incomplete":
        return "\n".join(f"{MISSING} ({', '.join(map(str, parts))}) for the api ({name})" for name, parts in wanted.items())
    return "\n".join(
        f"{INCORRECT} ({', '.join(map(str, values))}) for the parameters ({name}) in the conversation history."
        for name, values in wanted.items()
    )


def scores(accuracies: Mapping[str, float]) -> dict[str, float]:
    """The benchmark's group scores, from the accuracy of each category that was played.

    ``normal``, ``special`` and ``agent`` are unweighted means of their categories, ``overall`` their weighted sum; it is there
    only where all three are.
    """
    groups = {
        group: fmean(found)
        for group in WEIGHTS
        if (found := [accuracy for category, accuracy in accuracies.items() if category.startswith(f"{group}_")])
    }
    overall = sum(WEIGHTS[group] * score for group, score in groups.items())
    return {**groups, "overall": overall} if groups.keys() == WEIGHTS.keys() else groups
