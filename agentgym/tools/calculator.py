"""Arithmetic on expressions, read by Python's parser and never executed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

from agentgym.errors import ToolError
from agentgym.tools.syntax import expression_of

LONGEST_EXPRESSION = 300  # characters
LARGEST_EXPONENT = 1000
LARGEST_BASE = 2**64
LARGEST_RESULT = 10**1000
Number = int | float


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and brackets, such as (3 + 4) * 2.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolError(f"the expression is longer than {LONGEST_EXPRESSION} characters; calculate it in parts")
    try:
        value = _value(expression_of(expression.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolError(f"{expression!r} is not an arithmetic expression") from error
    except ArithmeticError as error:
        raise ToolError(f"cannot calculate: {error}") from error
    if not abs(value) <= LARGEST_RESULT or not (isinstance(value, int) or math.isfinite(value)):
        raise ToolError("the result is too large")
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value)


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]  # just checked
    if isinstance(node, ast.BinOp) and (binary := _BINARY.get(type(node.op))) is not None:
        return binary(_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and (unary := _UNARY.get(type(node.op))) is not None:
        return unary(_value(node.operand))
    raise ToolError(f"only arithmetic is allowed, not {ast.unparse(node)!r}")


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > LARGEST_EXPONENT or abs(base) > LARGEST_BASE:
        raise ToolError("the power is too large")
    value: int | float | complex = base**exponent
    if isinstance(value, complex):
        raise ToolError(f"{base} ** {exponent} is not a real number")
    return value


_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
