"""ACEBench's metric: calls that agree with the known ones, answers that name what is wrong, and the scores of groups of categories."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from statistics import fmean
from types import MappingProxyType
from typing import Any

from agentgym.action import Call
from agentgym.envs.calls import Json, bare, tool_name

MISSING, INCORRECT, LIMITED = "Missing necessary parameters", "There is incorrect value", "the limitations of the function"
PHRASES = {"special_incomplete": MISSING, "special_error_param": INCORRECT, "special_irrelevant": LIMITED}
WEIGHTS = {"normal": 0.578, "special": 0.2676, "agent": 0.1545}
_SENTENCE = re.compile(rf"(?:{MISSING}|{INCORRECT}) \((.{{0,2000}}?)\) for the (?:api|parameters) \(([^()]*)\)")
_NUMBERED = re.compile(r"_\d+$")  # a function that is wanted more than once


def fault(calls: Sequence[Call], functions: Sequence[Json], wanted: Json, *, official: bool = False) -> str:
    """What is wrong with ``calls``, in one sentence; empty where they are right. ``wanted``: ``{name: {parameter: value}}``.

    The functions must be those that are wanted, each as often, in any order, and each parameter that is wanted be given, no other,
    with a value that `agrees`; each call stands for one. ``official``: as the benchmark's program grades, a call may leave out what its
    description does not require, values are compared by `agrees_loosely`, and one call may stand for several of its function.

    Source: ACEBench (arXiv 2501.12851), the checker of its program [S]. One thing is mended: the program takes the spaces out of an
    answer but not out of the known one, and so refuses some known answers.
    """
    names = [function_name(name, functions) for name in wanted]
    if Counter(tool_name(call.name) for call in calls) != Counter(map(tool_name, names)):
        return f"{', '.join(call.name for call in calls) or 'nothing'} is called, not {', '.join(names)}"
    fitting = []
    for name, values in zip(names, wanted.values(), strict=True):
        parameters = next(function["parameters"] for function in functions if function["name"] == name)
        same = [number for number, call in enumerate(calls) if tool_name(call.name) == tool_name(name)]
        faults = [_fault_of_call(calls[number].arguments, parameters, values, official) for number in same]
        if "" not in faults:
            return f"{name}: {faults[0]}"
        fitting.append([number for number, why in zip(same, faults, strict=True) if not why])
    return "" if official or each_has_its_own(fitting) else "one call would have to stand for two"


def each_has_its_own(fitting: Sequence[Sequence[int]]) -> bool:
    """Whether each can be given one of those numbers that fit it, and none twice."""
    owners: dict[int, int] = {}

    def given(one: int, tried: set[int]) -> bool:
        for number in fitting[one]:
            if number not in tried:
                tried.add(number)
                if number not in owners or given(owners[number], tried):
                    owners[number] = one
                    return True
        return False

    return all(given(one, set()) for one in range(len(fitting)))


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
        described = parameters["properties"].get(name, {})
        if not (agrees_loosely(value, wanted[name]) if official else agrees(value, wanted[name], described)):
            return f"{name} is {reprlib.repr(value)}, not {reprlib.repr(wanted[name])}"
    return ""


def agrees(value: Any, wanted: Any, described: Json = MappingProxyType({})) -> bool:
    """Whether a value is the wanted one: a text holds it (without case, spaces and ``,./-_*^``), but is it within a list and where
    ``described`` names the allowed ones; dicts have the same keys; lists the same order; numbers are of one type, but for a whole one in
    place of a float."""
    if isinstance(wanted, str):
        return isinstance(value, str) and (bare(value) == bare(wanted) if "enum" in described else bare(wanted) in bare(value))
    if isinstance(wanted, dict):
        parts = described.get("properties", {})
        same_keys = isinstance(value, dict) and value.keys() == wanted.keys()
        return same_keys and all(agrees(value[key], wanted[key], parts.get(key, {})) for key in wanted)
    if isinstance(wanted, list):
        same_length = isinstance(value, list | tuple) and len(value) == len(wanted)
        return same_length and all(map(partial(_agrees_within_list, described=described.get("items", {})), value, wanted))
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


def _agrees_within_list(value: Any, wanted: Any, described: Json) -> bool:
    return bool(bare(value) == bare(wanted)) if isinstance(wanted, str) else agrees(value, wanted, described)


def tells(category: str, text: str, wanted: Any, *, official: bool = False) -> bool:
    """Whether ``text`` says, in the set sentence of a special category and of no other, what is wrong: its parameters, values and
    function, and no others.

    ``official``: the program of the benchmark [S] looks for the set phrase anywhere, and all names and values, but of incorrect values
    not the parameters.
    """
    phrase, wanted = PHRASES[category], wanted or {}
    if official:
        named = [] if category == "special_error_param" else list(wanted)
        return phrase in text and all(str(part) in text for part in (*named, *chain(*wanted.values())))
    if [one for one in PHRASES.values() if one in text] != [phrase]:
        return False
    found = _SENTENCE.findall(text)
    told = {part for parts, _ in found for part in _listed(parts)}, {tool_name(part) for _, names in found for part in _listed(names)}
    return told == ({part for one in chain(*wanted.values()) for part in _listed(str(one))}, set(map(tool_name, wanted)))


def _listed(text: str) -> list[str]:
    return [part.strip(" '\"`") for part in text.split(",")]


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
