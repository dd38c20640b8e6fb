"""The calculator: agrees with Python on arithmetic, and refuses everything else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentgym.errors import ToolError
from agentgym.tool import Tool
from agentgym.tools.calculator import LARGEST_EXPONENT, LONGEST_EXPRESSION, calculator

numbers = st.integers(0, 99).map(str) | st.floats(0, 99, allow_subnormal=False).map(lambda x: f"{x:.2f}")
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | st.tuples(inner, st.sampled_from([" - ", "*", " % ", "//"]), inner).map("".join)
        | inner.map(lambda text: f"-{text}")
    ),
    max_leaves=8,
)


@given(expressions)
@example("2 ** 3 ** 2")
@example("-2 ** 2 * 3")
@example("2 ** -1 ** 2 - 3 - 4")
@example("- - 2 + + 3 % -4 // 5 * 6")
@example("1. + .5e1 + 2E-1")
def test_it_agrees_with_python(expression: str) -> None:
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="cannot calculate"):
            calculator(expression)
        return
    assert float(calculator(expression)) == float(expected)


@pytest.mark.parametrize(
    ("expression", "result"),
    [("2 + 3 * 4", "14"), ("7 / 2", "3.5"), ("8 / 2", "4"), ("2 ** 70", "1180591620717411303424"), (" -2 ** 2 ", "-4"), ("1_0.5", "10.5")],
)
def test_results_are_written_as_a_person_writes_them(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        *("__import__('os')", "abs(1)", "x + 1", "'a' * 9", "True + 1", "[1][0]", "(1).real", "1 if 1 else 2", "lambda: 1"),
        *("1, 2", "1 +", "", "1j", "1 < 2", "2 << 9", "~1", "not 1", "1\x00"),
        *("(1", "1)", "()", "2 3", "٣", "nan", "inf", "1__0", "* 2", "2 ** * 3"),
    ],
)
def test_anything_but_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(ToolError):
        calculator(expression)


@pytest.mark.parametrize(
    "expression",
    [
        *("9**9**9", "(9**99)**99", f"2**{LARGEST_EXPONENT + 1}", "(10**1000)*(10**1000)", "10**999 / 3"),
        *("1e308*10", "1e999", "1e999 - 1e999", "(-8)**0.5", "0**-1", "1/0", "5 % 0"),
        *("1" * (LONGEST_EXPRESSION + 1), "-" * 9999 + "1", "(" * 250 + "1"),
    ],
)
def test_what_is_too_large_or_undefined_is_refused(expression: str) -> None:
    with pytest.raises(ToolError):
        calculator(expression)


def test_towers_of_powers_are_refused_before_they_are_computed() -> None:
    with pytest.raises(ToolError, match="the power is too large"):
        calculator("(9**99)**99")


def test_it_is_a_tool() -> None:
    tool = Tool(calculator)
    assert tool.parameters["required"] == ["expression"]
    assert tool(expression="6 * 7") == "42"
