"""Arithmetic on decimal numbers, with Python's operators and their precedence. Nothing is executed."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable

from agentgym.errors import ToolError

LONGEST_EXPRESSION = 300  # characters
LARGEST_EXPONENT = 1000
LARGEST_BASE = 2**64
LARGEST_RESULT = 10**1000
Number = int | float
_TOKEN = re.compile(r"(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\*\*|//|\S")
_END = ""


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and brackets, such as (3 + 4) * 2.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolError(f"the expression is longer than {LONGEST_EXPRESSION} characters; calculate it in parts")
    tokens = [_END, *reversed(_TOKEN.findall(expression))]
    try:
        if not expression.isascii():  # Python reads the digits of other scripts too
            raise ValueError(expression)
        value = _value(tokens)
        _take(_END, tokens)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"{expression!r} is not an arithmetic expression: numbers with + - * / // % ** and brackets") from error
    except ArithmeticError as error:
        raise ToolError(f"cannot calculate: {error}") from error
    if not abs(value) <= LARGEST_RESULT or not (isinstance(value, int) or math.isfinite(value)):
        raise ToolError("the result is too large")
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value)


def _value(tokens: list[str], above: int = 0) -> Number:
    """Of the tokens at the end of the list, which it takes: up to an operator that binds no tighter than ``above``."""
    value = _operand(tokens)
    while (found := _BINARY.get(tokens[-1])) is not None and found[0] > above:
        tokens.pop()
        value = found[2](value, _value(tokens, found[1]))
    return value


def _operand(tokens: list[str]) -> Number:
    token = tokens.pop()
    if token == "(":
        value = _value(tokens)
        _take(")", tokens)
        return value
    if token in _SIGNS:
        return _SIGNS[token](_value(tokens, _SIGN))
    try:
        return int(token)
    except ValueError:
        return float(token)


def _take(expected: str, tokens: list[str]) -> None:
    if (token := tokens.pop()) != expected:
        raise ValueError(token)


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > LARGEST_EXPONENT or abs(base) > LARGEST_BASE:
        raise ToolError("the power is too large")
    value: int | float | complex = base**exponent
    if isinstance(value, complex):
        raise ToolError(f"{base} ** {exponent} is not a real number")
    return value


_SIGN = 3  # how tightly a sign binds: -2 ** 2 is -4, and 2 ** -1 is 0.5
_SIGNS: dict[str, Callable[[Number], Number]] = {"-": operator.neg, "+": operator.pos}
_BINARY: dict[str, tuple[int, int, Callable[[Number, Number], Number]]] = {  # how tightly it binds, and what its right side must exceed
    "+": (1, 1, operator.add),
    "-": (1, 1, operator.sub),
    "*": (2, 2, operator.mul),
    "/": (2, 2, operator.truediv),
    "//": (2, 2, operator.floordiv),
    "%": (2, 2, operator.mod),
    "**": (4, 3, _power),
}
