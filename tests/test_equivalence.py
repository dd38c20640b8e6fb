"""Which actions count as equivalent: calls, messages and effects."""

from __future__ import annotations

from typing import Any

import pytest
from credits import near
from hypothesis import given
from hypothesis import strategies as st

from agentgym import Outcome, call
from agentgym.action import Call, format_action
from agentgym.errors import AgentGymError
from agentgym.trainers.credit.arguments import Arguments, PerTool
from agentgym.trainers.credit.equivalence import Exact, SameObservation, SameState
from agentgym.trainers.credit.likeness import similarity
from agentgym.turn import Turn


def turn(action: str, observation: str = "", **fields: Any) -> Turn:
    return Turn(1, None, "policy", 0, action=action, replies=[{"role": "tool", "content": observation}], **fields)


def calls(*queries: str) -> str:
    return format_action(*(Call("search", {"query": query}) for query in queries))


def compared(rule: Any, demonstrated: str, tried: str) -> float:
    return rule(turn(demonstrated), turn(tried))


def test_the_similarity_of_texts_as_in_the_worked_examples() -> None:
    one, other = "cancel my order now", "cancel order please"
    assert similarity(one, other) == near(0.285714)
    assert similarity(one, one) == 0.5
    assert similarity("Refund ticket", "ticket refund") == 0.5
    assert similarity("a b", "c d") == 0.0
    assert [compared(Arguments(threshold), calls(one), calls(other)) for threshold in (0.1, 0.3)] == [1.0, 0.0]


def test_several_calls_as_in_the_worked_examples() -> None:
    expected = calls("first thing", "second thing")
    many = calls("second thing", *(f"x{i}" for i in range(20)), "first thing")
    assert compared(Arguments(mode="f1", allow_superset=True), expected, many) == near(0.166667)
    assert compared(Arguments(0.5, allow_superset=True), expected, many) == 1.0
    half = calls("first thing", "fourth")
    assert compared(Arguments(mode="f1"), expected, half) == 0.5
    assert compared(Arguments(mode="fractional"), expected, half) == 0.5
    assert compared(Arguments(), expected, half) == 0.0


def test_too_few_or_too_many_calls_are_admitted_only_where_that_is_allowed() -> None:
    two, one, three = calls("a", "b"), calls("b"), calls("a", "b", "c")
    assert [compared(Arguments(mode=mode), two, few) for mode in ("binary_strict", "fractional", "f1") for few in (one, three)] == [0.0] * 6
    assert compared(Arguments(allow_subset=True), two, one) == 1.0
    assert compared(Arguments(allow_subset=True, mode="f1"), two, one) == near(2 / 3)
    assert compared(Arguments(allow_subset=True), two, calls("c")) == 0.0
    assert compared(Arguments(allow_superset=True, mode="fractional"), two, calls("a", "c", "d")) == 0.5
    # beside a single call, more are free, but for f1
    assert [compared(Arguments(mode=mode), one, three) for mode in ("binary_strict", "fractional", "f1")] == [1.0, 1.0, 0.5]


def test_calls_are_matched_as_many_as_can_be_and_not_greedily() -> None:
    expected = calls("red car", "red")
    assert compared(Arguments(0.0), calls("red car", "blue bike"), calls("blue bike", "red car")) == 1.0
    assert compared(Arguments(), expected, calls("red", "car red")) == 1.0
    vague, exact = calls("a b c d", "a b"), calls("a b", "c d")  # the first one is like both, the second like the first alone
    assert compared(Arguments(0.3), vague, exact) == 1.0


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ({"n": 1}, {"n": 1}, True),
        ({"n": 1}, {"n": 1.0}, False),
        ({"n": 1}, {"n": True}, False),
        ({"n": 1.0}, {"n": 1.0 + 9e-7}, True),
        ({"n": 1.0}, {"n": 1.0 + 2e-6}, False),
        ({"n": None}, {"n": None}, True),
        ({"n": 1}, {"n": 1, "m": 2}, False),
        ({"n": 1, "m": 2}, {"n": 1}, False),
        ({"n": [1, 2]}, {"n": [2, 1]}, False),
        ({"n": [1, 2]}, {"n": [1]}, False),
        ({"n": [{"m": "one two"}]}, {"n": [{"m": "two three"}]}, True),
        ({"t": "Word"}, {"t": "word"}, False),
        ({"t": "two words"}, {"t": "two"}, False),
        ({"t": "Two Words"}, {"t": "words  TWO"}, True),
        ({"t": "one two three four five"}, {"t": "five 6 7 8 9"}, True),
        ({"t": "one two three four five"}, {"t": "five 6 7 8 9 10"}, False),
        ({}, {}, True),
    ],
)
def test_arguments_are_compared_by_type_and_shape_and_words(expected: Any, actual: Any, same: bool) -> None:
    assert compared(Arguments(0.1), format_action(Call("f", expected)), format_action(Call("f", actual))) == same
    assert compared(Arguments(0.1), format_action(Call("f", expected)), format_action(Call("g", actual))) == 0.0


RULES = [Exact(), Arguments(), Arguments(0.5), PerTool({"search": Exact()}), PerTool({}, Exact())]
NOTHING = ["", "  ", "<think>hm</think>", "<think>hm", "<tool_call>{", '<tool_call>{"name": 3}</tool_call>']


@pytest.mark.parametrize("rule", RULES)
def test_a_message_is_like_any_other_and_like_no_call(rule: Any) -> None:
    assert compared(rule, "How are you?", "Fine.") == 1.0
    assert compared(rule, "How are you?", calls("a")) == 0.0
    assert compared(rule, calls("a"), "How are you?") == 0.0


@pytest.mark.parametrize("rule", [*RULES, SameObservation(), SameState()])
@pytest.mark.parametrize("nothing", NOTHING)
def test_what_cannot_be_read_or_says_nothing_is_equivalent_to_nothing(rule: Any, nothing: str) -> None:
    for said in ("How are you?", calls("a"), nothing):
        assert rule(turn(said, key="k"), turn(nothing, key="k")) == rule(turn(nothing, key="k"), turn(said, key="k")) == 0.0


def test_exact_compares_calls_and_their_order_but_no_thoughts() -> None:
    assert compared(Exact(), call("f", n=1, m="x y"), call("f", m="x y", n=1, thought="so")) == 1.0
    assert compared(Exact(), call("f", m="x y"), call("f", m="x  y")) == 0.0
    assert compared(Exact(), calls("a", "b"), calls("b", "a")) == 0.0
    assert compared(Exact(), calls("a"), calls("a", "b")) == compared(Exact(), calls("a", "b"), calls("a")) == 0.0


def test_a_rule_for_each_tool() -> None:
    rule = PerTool({"search": Arguments(0.3), "answer": Exact()}, otherwise=SameObservation())
    assert rule(turn(calls("one two three")), turn(calls("three two four"))) == 1.0
    assert rule(turn(call("answer", text="one two three")), turn(call("answer", text="three two four"))) == 0.0
    assert rule(turn(call("open", title="a"), "page"), turn(call("find", it="b"), "page")) == 1.0
    both = format_action(Call("search", {"query": "a"}), Call("answer", {"text": "b"}))
    assert rule(turn(both, "page"), turn(calls("c"), "page")) == 1.0
    assert rule(turn("Hello", "page"), turn("Bye", "other")) == 0.0


@pytest.mark.parametrize("rule", [SameObservation(), SameState()])
def test_the_same_effect_is_the_same_said_and_where_it_ends_the_same_reward(rule: Any) -> None:
    def effect(said: str, end: Any = None, reward: Any = 0.0, outcome: Outcome = Outcome.OK) -> Turn:
        return turn(calls("a"), said, key=said, end=end, reward=reward, outcome=outcome)

    assert rule(effect("x"), effect("x")) == 1.0
    assert rule(effect("x"), effect("y")) == 0.0
    assert rule(effect("x"), effect("x", "truncated", None, Outcome.CANCELLED)) == 1.0
    assert rule(effect("x", "done", 1.0), effect("x", "done", 1.0)) == 1.0
    assert rule(effect("x", "done", 1.0), effect("x", "done", 0.0)) == 0.0
    assert rule(effect("x", "done", 1.0), effect("x")) == rule(effect("x"), effect("x", "done", 0.0)) == 0.0


def test_a_state_without_a_key_cannot_be_compared() -> None:
    with pytest.raises(AgentGymError, match="no state key after turn 1"):
        SameState()(turn(calls("a")), turn(calls("a"), key="k"))


arguments = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab 'é", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3),
    max_leaves=6,
)
actions = st.lists(st.builds(Call, st.sampled_from("fg"), st.dictionaries(st.text("xyz", max_size=2), arguments, max_size=3)), max_size=4)


@given(actions, st.floats(0, 0.5), st.sampled_from(["binary_strict", "fractional", "f1"]))
def test_identical_actions_are_equivalent_under_every_rule(done: list[Call], threshold: float, mode: Any) -> None:
    action = format_action(*done, content="" if done else "words")
    fields: dict[str, Any] = {"end": "done", "reward": 0.5, "key": "k"}
    for rule in (Exact(), Arguments(threshold, mode), SameObservation(), SameState(), PerTool({"f": Exact()}, Arguments(threshold, mode))):
        assert rule(turn(action, "said", **fields), turn(action, "said", **fields)) == 1.0


@given(actions, actions, st.floats(0, 0.5), st.sampled_from(["binary_strict", "fractional", "f1"]), st.booleans(), st.booleans())
def test_rewards_lie_between_0_and_1(one: Any, other: Any, threshold: float, mode: Any, subset: bool, superset: bool) -> None:
    rule = Arguments(threshold, mode, subset, superset)
    assert 0 <= compared(rule, format_action(*one), format_action(*other)) <= 1
    assert compared(Exact(), format_action(*one), format_action(*other)) <= compared(rule, format_action(*one), format_action(*other))


@pytest.mark.parametrize("wrong", [{"threshold": 0.51}, {"threshold": -0.1}, {"mode": "strict"}])
def test_rules_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(AgentGymError, match=r"threshold is|mode is"):
        Arguments(**wrong)
