"""Small exercises of our own, for where no data are at hand."""

from __future__ import annotations

from typing import Any

_CLAMP_TEST = """import unittest

from clamp import clamp


class ClampTest(unittest.TestCase):
    def test_within(self):
        self.assertEqual(clamp(5, 1, 9), 5)

    def test_below(self):
        self.assertEqual(clamp(-4, 1, 9), 1)

    def test_above(self):
        self.assertEqual(clamp(12, 1, 9), 9)

    def test_bounds_in_the_wrong_order(self):
        with self.assertRaises(ValueError) as caught:
            clamp(1, 9, 1)
        self.assertEqual(str(caught.exception), "the bounds are in the wrong order")
"""
_CLAMP = """def clamp(x, low, high):
    if low > high:
        raise ValueError("the bounds are in the wrong order")
    return max(low, min(x, high))
"""
_TILL_TEST = """import unittest

from till import Till


class TillTest(unittest.TestCase):
    def test_an_empty_till(self):
        self.assertEqual(Till().total(), 0)

    def test_a_sum(self):
        till = Till()
        till.ring("bread", 310)
        till.ring("milk", 120)
        self.assertEqual(till.total(), 430)

    def test_a_receipt(self):
        till = Till()
        till.ring("tea", 250)
        till.ring("tea", 250)
        expected = ["tea x2 500"]
        self.assertEqual(till.receipt(), expected)

    def test_is_empty(self):
        till = Till()
        self.assertTrue(till.is_empty())
        till.ring("tea", 250)
        self.assertFalse(till.is_empty())
"""
_TILL = """class Till:
    def __init__(self):
        self.prices = {}

    def ring(self, name, price):
        self.prices.setdefault(name, []).append(price)

    def total(self):
        return sum(map(sum, self.prices.values()))

    def is_empty(self):
        return not self.prices

    def receipt(self):
        return [f"{name} x{len(rung)} {sum(rung)}" for name, rung in self.prices.items()]
"""
_TILL_STUB = """class Till:
    def ring(self, name, price):
        pass

    def total(self):
        pass

    def is_empty(self):
        pass

    def receipt(self):
        pass
"""
_RUNS_TEST = """import unittest

from runs import runs


class RunsTest(unittest.TestCase):
    def test_nothing(self):
        self.assertEqual(runs(""), [])

    def test_one_letter(self):
        self.assertEqual(runs("a"), [("a", 1)])

    def test_several(self):
        self.assertEqual(runs("aabccc"), [("a", 2), ("b", 1), ("c", 3)])

    def test_a_letter_comes_back(self):
        self.assertEqual(runs("aba"), [("a", 1), ("b", 1), ("a", 1)])
"""
_RUNS = """from itertools import groupby


def runs(text):
    return [(letter, len(list(same))) for letter, same in groupby(text)]
"""


def _row(name: str, asked: str, stub: str, tests: str, example: str) -> dict[str, Any]:
    return {
        "id": name,
        "instructions": asked,
        "solution_files": {f"{name}.py": stub},
        "test_files": {f"{name}_test.py": tests},
        "example": {f"{name}.py": example},
        "split": "train",
    }


ROWS = (
    _row(
        "clamp",
        "Complete clamp: x, or the nearer of the bounds low and high if x lies outside of them. "
        "Bounds in the wrong order are a ValueError that says: the bounds are in the wrong order",
        "def clamp(x, low, high):\n    pass\n",
        _CLAMP_TEST,
        _CLAMP,
    ),
    _row(
        "till",
        "Complete Till. ring takes the name of a thing and its price. total is the sum of all prices, and is_empty says whether nothing "
        "was rung. receipt is a list with a text such as 'tea x2 500' for each thing, in the order of their first rings: its name, how "
        "often it was rung, and what that costs together.",
        _TILL_STUB,
        _TILL_TEST,
        _TILL,
    ),
    _row(
        "runs",
        "Complete runs: the runs of equal letters in a text, as a list of pairs of letter and length.",
        "def runs(text):\n    pass\n",
        _RUNS_TEST,
        _RUNS,
    ),
)
