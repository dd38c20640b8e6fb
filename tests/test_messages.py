"""Conversations in OpenAI's form become trees of one episode, and are learnt."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import parse_action
from agentgym.errors import AgentGymError
from agentgym.policies.tiny import load, new_model
from agentgym.policy import Prompt
from agentgym.trainers.cloning import clone
from agentgym.trainers.credit.labels import Labels
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.messages import read_messages, trees_of_messages
from agentgym.turn import context_ids, total_reward

CHAT = load()[1]


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def calls(name, arguments, id="c"):
    return [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]


TALK = [
    {"role": "system", "content": "Answer."},
    user("Which currency has Iceland?"),
    says(None, reasoning_content="I search", tool_calls=calls("search", '{"query": "Iceland currency"}')),
    {"role": "tool", "content": "Iceland: Its currency is Krona.", "tool_call_id": "c", "name": "search"},
    says("It is the Krona."),
    user("Sure?"),
    says("Yes."),
]
SPEC = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}}


def one(messages, **more):
    (tree,), rejected = trees_of_messages([{"messages": messages, **more}], CHAT)
    assert rejected == []
    return tree


def refused(*rows, **settings):
    trees, rejected = trees_of_messages(rows, CHAT, **settings)
    assert trees == []
    assert [found.row for found in rejected] == list(range(1, len(rows) + 1))
    return [found.reason for found in rejected]


def structured(messages):
    """As the tiny format takes them: no nulls, arguments as objects."""
    plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
    for message in plain:
        message.setdefault("content", "")
        if "tool_calls" in message:
            functions = [call["function"] for call in message["tool_calls"]]
            message["tool_calls"] = [{"function": {**f, "arguments": json.loads(f["arguments"])}} for f in functions]
    return plain


def test_the_turns_are_the_assistants_messages():
    tree = one(TALK, tools=[SPEC])
    assert [turn.author for turn in tree.turns] == ["env", "teacher", "teacher", "teacher"]
    action = parse_action(tree.turns[1].action)
    assert (action.thought, [(c.name, c.arguments) for c in action.calls]) == ("I search", [("search", {"query": "Iceland currency"})])
    assert [turn.action for turn in tree.turns[2:]] == ["It is the Krona.", "Yes."]
    assert tree.turns[2].observation == "Sure?"
    assert [turn.end for turn in tree.turns] == [None, None, None, "done"]
    assert (tree.task.prompt, tree.tools) == ("Which currency has Iceland?", [SPEC])
    assert total_reward(tree.leaves()[0]) is None
    for turn in tree.turns[1:]:
        assert turn.ids[: turn.action_tokens] == CHAT.write(turn.action)
        assert not turn.sampled_tokens
    assert [message["role"] for message in Prompt(tree, tree.turns[2]).messages] == [message["role"] for message in TALK[:-1]]


def assert_written_as_a_whole(messages):
    ids = context_ids(one(messages).turns[-1])
    whole = CHAT.open(structured(messages))
    assert whole[: len(ids)] == ids
    assert CHAT.tokenizer.decode(whole[len(ids) :]) == "\n<|im_start|>assistant\n"


def test_the_tokens_are_those_of_the_whole_conversation():
    assert_written_as_a_whole(TALK)
    assert_written_as_a_whole([says("First."), says("Second.")])


words = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=12).filter(str.strip)
answers = st.one_of(
    st.builds(says, words),
    st.builds(lambda text, thought: says(text, reasoning_content=thought), words, words),
    st.builds(lambda query: says("", tool_calls=calls("search", json.dumps({"query": query}))), words),
)
replies = st.one_of(st.builds(user, words), st.builds(lambda text: {"role": "tool", "content": text}, words))
turns = st.lists(st.tuples(st.lists(replies, max_size=3), answers), min_size=1, max_size=4)


@given(turns)
def test_any_conversation_has_the_tokens_of_the_whole(drawn):
    assert_written_as_a_whole([message for said, answer in drawn for message in (*said, answer)])


BAD = [
    (3, "valid dictionary"),
    (None, "valid dictionary"),
    ({}, "messages: it is required"),
    ({"messages": []}, "at least 1 item"),
    ({"messages": "hi"}, "valid list"),
    ({"messages": [user("hi"), 7]}, "messages.1"),
    ({"messages": [user("hi")]}, "no message is the assistant's"),
    ({"messages": [user("hi"), {"role": "wizard", "content": "x"}]}, "messages.1.role: .*wizard"),
    ({"messages": [{"content": "x"}]}, "messages.0.role: it is required"),
    ({"messages": [user([{"type": "text", "text": "hi"}]), says("x")]}, "messages.0.content: .*valid string"),
    ({"messages": [user("hi"), says(" ")]}, "messages.1: the assistant says nothing"),
    ({"messages": [says("a<|im_end|>b")]}, "token that ends a message"),
    ({"messages": [says("", tool_calls=calls("f", "{x"))]}, "tool_calls.0.function.arguments: not JSON"),
    ({"messages": [says("", tool_calls=calls("f", "[1]"))]}, "arguments: .*valid dictionary"),
    ({"messages": [says("", tool_calls=calls(None, "{}"))]}, "function.name"),
    ({"messages": [says("x")], "tools": "{x"}, "tools: not JSON"),
    ({"messages": [says("x")], "tools": [3]}, "tools.0"),
    ("{x", "not JSON"),
    (b"\xff", "not JSON"),
    ("[1]", "valid dictionary"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_rejected_with_its_reason(row, reason):
    (found,) = refused(row)
    assert re.search(reason, found), found


def test_the_others_go_on():
    rows = [{"messages": TALK}]
    for row, _ in BAD:
        rows += [row, {"messages": TALK}]
    trees, rejected = trees_of_messages(rows, CHAT)
    assert len(trees) == len(BAD) + 1
    assert [found.row for found in rejected] == list(range(2, 2 * len(BAD) + 1, 2))
    assert [tree.id for tree in trees] == [f"messages/{number}" for number in range(1, 2 * len(BAD) + 2, 2)]


def test_a_row_that_is_too_long_or_that_the_template_rewrites_is_rejected():
    length = one(TALK).turns[-1].length
    assert len(trees_of_messages([{"messages": TALK}], CHAT, max_tokens=length)[0]) == 1
    assert refused({"messages": TALK}, max_tokens=length - 1) == [f"{length} tokens, of {length - 1} at most"]

    class Rewrites(type(CHAT)):
        def bridge(self, before, completion, messages):
            return None

    class Breaks(type(CHAT)):
        def open(self, messages, tools=()):
            raise RuntimeError("roles must alternate")

    rows = [{"messages": TALK}, {"messages": TALK[:3]}]
    trees, rejected = trees_of_messages(rows, Rewrites(CHAT.tokenizer, CHAT.renderer))
    assert [tree.id for tree in trees] == ["messages/2"]
    assert rejected == [(1, "messages.2: the chat template rewrites what was said before")]
    _, rejected = trees_of_messages(rows, Breaks(CHAT.tokenizer, CHAT.renderer))
    assert [found.reason for found in rejected] == ["the chat format cannot write it (RuntimeError: roles must alternate)"] * 2


def test_what_comes_after_the_last_answer_is_left_out():
    assert one([*TALK, user("Thanks!")]).turns[-1].ids == one(TALK).turns[-1].ids


def test_a_dataset_adds_nothing_to_what_its_rows_say():
    datasets = pytest.importorskip("datasets")
    second = [user("And Japan?"), says("", tool_calls=calls("open", {"title": "Japan"})), {"role": "tool", "content": "Yen"}, says("Yen.")]
    third = [user("Rain?"), says("", tool_calls=calls("search", {"query": "rain", "limit": 2}))]
    greeting = [user("Hi"), says("Hello.")]
    for rows in ([{"messages": TALK, "tools": [SPEC]}, {"messages": greeting}], [{"messages": second}, {"messages": third}]):
        table = datasets.Dataset.from_list(rows)
        read, rejected = trees_of_messages(table, CHAT)
        assert rejected == []
        direct, _ = trees_of_messages(rows, CHAT)
        assert [[turn.ids for turn in tree.turns] for tree in read] == [[turn.ids for turn in tree.turns] for tree in direct]
        assert [tree.tools for tree in read] == [tree.tools for tree in direct]


def test_a_file_of_json_lines_is_read_line_by_line(tmp_path):
    path = tmp_path / "talks.jsonl"
    lines = [json.dumps({"messages": TALK, "tools": json.dumps([SPEC])}), "", "{oops", json.dumps({"messages": [user("x")]}), ""]
    path.write_text("\n".join(lines))
    trees, rejected = trees_of_messages(read_messages(path), CHAT)
    assert [tree.tools for tree in trees] == [[SPEC]]
    assert [found.row for found in rejected] == [3, 4]
    with pytest.raises(AgentGymError, match=r"nowhere.jsonl cannot be read"):
        trees_of_messages(read_messages(tmp_path / "nowhere.jsonl"), CHAT)


def test_cloning_them_lowers_the_loss():
    trees, _ = trees_of_messages([{"messages": TALK}, {"messages": [user("Hi"), says("Hello.")]}], CHAT)
    model = new_model(len(CHAT.tokenizer), seed=0)
    losses: list[float] = []
    clone(TorchLearner(model, 3e-3), [trees] * 12, 0.0, losses.append)
    assert losses[-1] < 0.5 * losses[0]


def test_as_a_teachers_they_are_labels_too():
    tree = one(TALK)
    credit = Labels()
    asyncio.run(credit.assign([tree], {}))
    assert credit.metrics()["labels"] == 3
    assert [int(turn.streams["trained"].sum()) for turn in tree.turns] == [0, *(turn.action_tokens for turn in tree.turns[1:])]
