"""The canonical text of actions, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import Action, Call, call, format_action, parse_action
from agentgym.action import DEEPEST

text = st.text(st.characters(exclude_categories=["Cs"]))
plain = text.filter(lambda t: "<" not in t).map(str.strip)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
calls = st.lists(st.builds(Call, st.text("abc_", min_size=1), st.dictionaries(text, values, max_size=3)), max_size=3)


@given(calls, plain, plain)
def test_reading_inverts_writing(made: list[Call], thought: str, content: str) -> None:
    written = format_action(*made, thought=thought, content=content)
    assert parse_action(written) == Action(written, thought, content, tuple(made))


@given(text)
def test_reading_never_raises(anything: str) -> None:
    action = parse_action(anything)
    assert action.text == anything
    assert action.problem is None or not action.calls


@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "a"}', "{", " ", "word"])))
def test_reading_never_raises_on_broken_markup(parts: list[str]) -> None:
    action = parse_action("".join(parts))
    assert action.problem is None or not action.calls


@pytest.mark.parametrize("end", ["</tool_call>", "<tool_call>", "</think>", "<think>"])
def test_an_argument_may_hold_the_markup_itself(end: str) -> None:
    assert parse_action(call("write", code=f"print('{end}')")).calls == (Call("write", {"code": f"print('{end}')"}),)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("<tool_call>{</tool_call>", "not JSON"),
        ('<tool_call>{"name": "a"}', "not closed: </tool_call>"),
        ('<tool_call>{"name": "a"}</tool_call> and <tool_call>', "not closed: </tool_call>"),
        ("<tool_call>[1]</tool_call>", "needs a name"),
        ('<tool_call>{"name": 3}</tool_call>', "needs a name"),
        ('<tool_call>{"name": "a", "arguments": []}</tool_call>', "'a' must be a JSON object"),
        ("<think>on and on", "not closed: </think>"),
    ],
)
def test_what_is_malformed_is_named(written: str, problem: str) -> None:
    action = parse_action(written)
    assert problem in (action.problem or "")
    assert action.calls == ()


def test_one_malformed_call_spoils_the_whole_action() -> None:
    action = parse_action(call("good", a=1) + "<tool_call>{</tool_call>")
    assert action.calls == ()
    assert action.problem is not None


def test_a_call_without_arguments_has_none() -> None:
    assert parse_action('<tool_call>{"name": "a"}</tool_call>').calls == (Call("a", {}),)


def test_words_around_the_calls_are_the_content() -> None:
    action = parse_action(f"<think> plan </think>first {call('a')} then {call('b')} last")
    assert (action.thought, action.content) == ("plan", "first  then  last")
    assert [made.name for made in action.calls] == ["a", "b"]


def test_words_around_malformed_calls_are_the_content_too() -> None:
    """What grades words must not see fewer of them because a call among them was wrong."""
    action = parse_action(f"first <tool_call>{{bad}}</tool_call> then {call('a')} last")
    assert (action.calls, action.content) == ((), "first  then  last")
    assert "not JSON" in str(action.problem)
    cut = parse_action(f"first {call('a')} then <tool_call>{{\"name")
    assert (cut.calls, cut.content) == ((), 'first  then <tool_call>{"name')
    assert cut.problem == "The tool call is not closed: </tool_call> is missing."


def test_a_call_in_a_thought_is_not_made() -> None:
    action = parse_action(f"<think>perhaps {call('a')}</think>no")
    assert (action.calls, action.content) == ((), "no")


def test_arguments_nested_deeper_than_can_be_written_again_are_a_problem():
    def nested(levels):
        return f'<tool_call>{{"name": "f", "arguments": {{"x": {"[" * levels + "]" * levels}}}}}</tool_call>'

    assert parse_action(nested(DEEPEST - 1)).problem is None
    for levels in (DEEPEST, 300, 1000):
        assert parse_action(nested(levels)).problem == f"The arguments of 'f' are nested deeper than {DEEPEST} levels."
    format_action(*parse_action(nested(DEEPEST - 1)).calls)
