"""A calculator without state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json
from agentgym.errors import MissingExtra

LARGEST = 10_000  # bits of a power
MOST_DIGITS = 1_000
METRES = {"km": 1000, "m": 1, "cm": 0.01, "mm": 0.001, "um": 1e-6, "nm": 1e-9}
IMPERIAL: Mapping[tuple[str, str], Callable[[float], float]] = {
    ("cm", "in"): lambda value: value * 0.393701,
    ("in", "cm"): lambda value: value * 2.54,
    ("m", "ft"): lambda value: value * 3.28084,
    ("ft", "m"): lambda value: value * 0.3048,
    ("m", "yd"): lambda value: value * 1.09361,
    ("yd", "m"): lambda value: value * 0.9144,
    ("km", "miles"): lambda value: value * 0.621371,
    ("miles", "km"): lambda value: value * 1.60934,
    ("kg", "lb"): lambda value: value * 2.20462,
    ("lb", "kg"): lambda value: value * 0.453592,
    ("celsius", "fahrenheit"): lambda value: value * 1.8 + 32,
    ("fahrenheit", "celsius"): lambda value: (value - 32) * (5 / 9),
}


class MathAPI(Api):
    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        return {}

    def add(self, a: float, b: float) -> Json:
        return _result(lambda: a + b, a, b)

    def subtract(self, a: float, b: float) -> Json:
        return _result(lambda: a - b, a, b)

    def multiply(self, a: float, b: float) -> Json:
        return _result(lambda: a * b, a, b)

    def divide(self, a: float, b: float) -> Json:
        return {"error": "Cannot divide by zero"} if b == 0 else _result(lambda: a / b, a, b)

    def power(self, base: float, exponent: float) -> Json:
        return _result(lambda: _power(base, exponent), base, exponent)

    def absolute_value(self, number: float) -> Json:
        return _result(lambda: abs(number), number)

    def round_number(self, number: float, decimal_places: int = 0) -> Json:
        if abs(decimal_places) > MOST_DIGITS:
            return {"error": f"No more than {MOST_DIGITS} places"}
        return _result(lambda: round(number, decimal_places), number)

    def percentage(self, part: float, whole: float) -> Json:
        return {"error": "Whole value cannot be zero"} if whole == 0 else _result(lambda: part / whole * 100, part, whole)

    def mean(self, numbers: list[float]) -> Json:
        return _statistic("calculate mean", numbers, lambda: sum(numbers) / len(numbers))

    def standard_deviation(self, numbers: list[float]) -> Json:
        def deviation() -> float:
            mean = sum(numbers) / len(numbers)
            return math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))

        return _statistic("calculate standard deviation", numbers, deviation)

    def min_value(self, numbers: list[float]) -> Json:
        return _statistic("find minimum", numbers, lambda: min(numbers))

    def max_value(self, numbers: list[float]) -> Json:
        return _statistic("find maximum", numbers, lambda: max(numbers))

    def sum_values(self, numbers: list[float]) -> Json:
        return _statistic("calculate sum", numbers, lambda: sum(numbers))

    def logarithm(self, value: float, base: float, precision: int) -> str | Json:
        return _precise(precision, lambda precise: precise.log(value) / precise.log(base))

    def square_root(self, number: float, precision: int) -> Json:
        if number < 0:
            return {"error": "Cannot calculate square root of a negative number"}
        if not 0 < precision <= MOST_DIGITS:
            return _no_such(precision)
        with localcontext(prec=precision):
            return {"result": Decimal(number).sqrt()}

    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> Json:
        if unit_in not in METRES or unit_out not in METRES:
            return _unsupported(unit_in, unit_out)
        return _result(lambda: value * METRES[unit_in] * (1 / METRES[unit_out]), value)

    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> Json:
        if unit_in == unit_out:
            return {"result": value}
        convert = IMPERIAL.get((unit_in, unit_out))
        return _unsupported(unit_in, unit_out) if convert is None else _result(lambda: convert(value), value)


def _result(compute: Callable[[], float], *inputs: object) -> Json:
    if not all(isinstance(value, int | float) for value in inputs):
        return {"error": "All inputs must be numbers"}
    return {"result": compute()}


def _unsupported(unit_in: str, unit_out: str) -> Json:
    return {"error": f"Conversion from '{unit_in}' to '{unit_out}' is not supported"}


def _statistic(name: str, numbers: list[float], compute: Callable[[], float]) -> Json:
    return _result(compute, *numbers) if numbers else {"error": f"Cannot {name} of an empty list"}


def _power(base: float, exponent: float) -> float:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > LARGEST:
        raise OverflowError("the power has too many digits")
    result: float = base**exponent
    return result


def _no_such(precision: int) -> Json:
    return {"error": f"A precision of {precision} digits is not between 1 and {MOST_DIGITS}"}


def _precise(digits: int, compute: Callable[[Any], Any]) -> str | Json:
    """A result with so many significant digits, as the text that Python makes of it: it is no JSON."""
    try:
        from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("mpmath", "maths") from error
    if not 0 < digits <= MOST_DIGITS:
        return _no_such(digits)
    precise = MPContext()
    precise.dps = digits
    try:
        return str({"result": compute(precise)})
    except (TypeError, ValueError, ArithmeticError) as error:
        return {"error": str(error)}
