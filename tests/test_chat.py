import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentEnv, Limits, Lineage, Rollout, Start, Task, call, parse_action
from agentgym.chat import Chat
from agentgym.env import Reply
from agentgym.expand import Groups
from agentgym.policies.tiny import MARKERS, TinyRenderer, TinyTokenizer
from agentgym.policy import Generation
from agentgym.turn import context_ids, path

qwen3 = pytest.importorskip("renderers.qwen3")
from renderers.configs import Qwen3RendererConfig  # noqa: E402

TOKENIZER = TinyTokenizer.train(
    ['<tool_call>\n{"name": "look", "arguments": {"room": "the cellar"}}\n</tool_call>', "system user assistant tool look"] * 3
)
SPECIAL = {TOKENIZER.convert_tokens_to_ids(marker) for marker in MARKERS}
CONTROL = [marker for marker in MARKERS if marker.startswith("<|")]
STOP = TOKENIZER.eos_token_id


def tiny():
    return Chat(TOKENIZER, TinyRenderer(TOKENIZER))


def qwen(retention):
    return Chat(TOKENIZER, qwen3.Qwen3Renderer(TOKENIZER, Qwen3RendererConfig(thinking_retention=retention)), CONTROL)


CHATS = {"tiny": tiny(), "qwen3 all": qwen("all"), "qwen3 tool cycle": qwen("tool_cycle")}

odd = st.text(max_size=30) | st.sampled_from(["नमस्ते 👩🏽‍🚀", "e\u0301\u200d\ufeff", "\r\n\t\x00", "￿𝔘", "  ", "", *MARKERS])
texts = st.lists(odd, max_size=4).map("".join)
calls = st.builds(lambda room, thought: call("look", room=room, thought=thought), texts, texts)
malformed = st.sampled_from(
    ["<tool_call>", "<tool_call>{</tool_call>", "<think>open", "</think>", '<tool_call>{"name": 1}</tool_call>', "<|im_start|>"]
)
lone = st.just('<tool_call>\n{"name": "look", "arguments": {"room": "\\ud800"}}\n</tool_call>')
completions = st.one_of(
    st.tuples(st.one_of(calls, malformed, texts, lone).map(TOKENIZER.encode), st.integers(0, 40), st.booleans()).map(
        lambda drawn: (drawn[0][: drawn[1]] if drawn[2] else [*drawn[0], STOP]) or [STOP]
    ),
    st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12),  # whatever an untrained model samples
)
replies = st.one_of(
    st.lists(st.builds(lambda text: {"role": "tool", "name": "look", "content": text}, texts), min_size=1, max_size=3),
    st.builds(lambda text: [{"role": "user", "content": text}], texts),
)
conversations = st.lists(st.tuples(completions, replies), min_size=1, max_size=5)


class Tells(AgentEnv):
    """Says what it was given to say, whatever the action."""

    def __init__(self, said):
        super().__init__()
        self.said = said
        self.max_turns = len(said)

    def act(self, action):
        messages = tuple(self.said[self.turn])
        return Reply("\n".join(m["content"] for m in messages), messages=messages)


class Samples:
    """An actor whose samples were drawn beforehand; it remembers the contexts that it was shown."""

    def __init__(self, completions):
        self.completions = iter(completions)
        self.shown = []

    async def generate(self, prompt, sampling):
        self.shown.append(prompt.ids)
        ids = next(self.completions)
        return Generation(list(ids), [-1.0] * len(ids), [(0, len(ids))])


def converse(chat, conversation, task=None, limits=None):
    actor = Samples([completion for completion, _ in conversation])
    task = task or Task("t", "What is in the cellar?")
    rollout = Rollout(
        lambda: Tells([said for _, said in conversation]),
        Groups(1),
        {"policy": actor},
        chat,
        Lineage.of(0),
        limits=limits or Limits(tokens=10**6, turn_tokens=10**5),
    )
    (tree,) = asyncio.run(rollout.run([Start(task)]))
    return tree, actor


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=30, deadline=None)
@given(conversation=conversations)
def test_sampled_tokens_are_never_tokenised_again(name, conversation):
    tree, actor = converse(CHATS[name], conversation)
    (leaf,) = tree.leaves()
    assert leaf.error == ""
    played = [turn for turn in path(leaf) if turn.author == "policy"]
    assert len(played) == len(conversation)
    for turn, (completion, _), shown in zip(played, conversation, actor.shown, strict=True):
        assert shown == context_ids(turn.parent)
        assert turn.ids[: turn.action_tokens] == completion
        assert turn.sampled_tokens == len(completion)
        assert context_ids(turn)[: len(shown) + len(completion)] == shown + completion
        for child in turn.children:  # what comes next begins with all of it, or is marked as anew
            assert child.restarts or context_ids(child)[: turn.length] == context_ids(turn)
            assert not child.restarts or len(turn.ids) == turn.action_tokens
        turn.action.encode()  # no half surrogate pair


@pytest.mark.parametrize("name", ["tiny", "qwen3 all"])
@settings(max_examples=30, deadline=None)
@given(conversation=conversations)
def test_the_last_turn_is_enough_to_bridge_to_the_next(name, conversation):
    chat = CHATS[name]
    tree, _ = converse(chat, conversation)
    for turn in tree.turns[1:]:
        if turn.author == "policy" and turn.end is None:
            action = turn.ids[: turn.action_tokens]
            delta = chat.bridge(turn.parent.ids, action, turn.replies)
            assert delta == chat.bridge(context_ids(turn.parent), action, turn.replies)
            assert turn.ids[turn.action_tokens :] == (delta or [])
            assert (delta is None) == any(child.restarts for child in turn.children)


@pytest.mark.parametrize("name", CHATS)
def test_a_well_behaved_conversation_is_what_the_renderer_itself_would_write(name):
    chat = CHATS[name]
    actions = [call("look", room="cellar"), call("look", room="tower")]
    said = [{"role": "tool", "name": "look", "content": "It is black. Ünïcode!"}]
    tree, _ = converse(chat, [([*TOKENIZER.encode(action), STOP], said) for action in actions] + [([STOP], said)])
    messages = [{"role": "user", "content": "What is in the cellar?"}]
    for action in actions:
        arguments = parse_action(action).calls[0].arguments
        function = {"type": "function", "id": "c", "function": {"name": "look", "arguments": arguments}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [function]}, *said]
    second = [turn for turn in tree.turns if turn.author == "policy"][1]
    context = context_ids(next((c for c in second.children if c.restarts), second))
    assert TOKENIZER.decode(context) == TOKENIZER.decode(chat.open(messages))


@settings(max_examples=100, deadline=None)
@given(before=texts, marker=st.sampled_from(MARKERS), after=texts, role=st.sampled_from(["tool", "user"]))
def test_markers_in_what_a_tool_says_stay_ordinary_characters(before, marker, after, role):
    text = before + marker + after
    chat = CHATS["tiny"]
    delta = chat.bridge([], [STOP], [{"role": role, "content": text}])
    empty = chat.bridge([], [STOP], [{"role": role, "content": ""}])
    assert [id for id in delta if id in SPECIAL] == [id for id in empty if id in SPECIAL]
    assert text in TOKENIZER.decode(delta)
    opening = chat.open([{"role": "user", "content": text}])
    assert [id for id in opening if id in SPECIAL] == [id for id in chat.open([{"role": "user", "content": ""}]) if id in SPECIAL]


@settings(max_examples=100, deadline=None)
@given(before=texts, marker=st.sampled_from(CONTROL), after=texts, role=st.sampled_from(["tool", "user"]))
def test_no_text_ends_its_own_message_in_a_format_that_reads_markers_everywhere(before, marker, after, role):
    chat = CHATS["qwen3 all"]
    control = {TOKENIZER.convert_tokens_to_ids(marker) for marker in CONTROL}

    def turns(text):
        opening = chat.open([{"role": "user", "content": text}])
        delta = chat.bridge(opening, [STOP], [{"role": role, "content": text}])
        return [id for id in opening + delta if id in control]

    assert turns(before + marker + after) == turns("nothing")


@pytest.mark.parametrize("name", ["tiny", "qwen3 all"])
def test_a_completion_cut_off_at_its_length_is_closed_by_the_bridge(name):
    cut = TOKENIZER.encode(call("look", room="cellar"))[:6]
    said = [{"role": "user", "content": "Error: not closed."}]
    tree, _ = converse(CHATS[name], [(cut, said), ([STOP], said)])
    first = tree.turns[1]
    bridge = first.ids[first.action_tokens :]
    assert bridge[0] == STOP
    assert first.sampled_tokens == first.action_tokens
    assert TOKENIZER.decode(bridge).endswith("<|im_start|>assistant\n")


def test_a_template_that_drops_thoughts_restarts_and_the_thought_is_gone():
    thought = [*TOKENIZER.encode(call("look", room="cellar", thought="maybe underground")), STOP]
    tree, _ = converse(CHATS["qwen3 tool cycle"], [(thought, [{"role": "user", "content": "Go on."}]), ([STOP], [])])
    (fresh,) = [turn for turn in tree.turns if turn.restarts]
    assert "underground" in TOKENIZER.decode(fresh.parent.ids)
    assert "underground" not in TOKENIZER.decode(context_ids(fresh))
    assert "cellar" in TOKENIZER.decode(context_ids(fresh))
    tree, _ = converse(CHATS["qwen3 all"], [(thought, [{"role": "user", "content": "Go on."}]), ([STOP], [])])
    assert not any(turn.restarts for turn in tree.turns)


def test_half_a_surrogate_pair_in_a_call_is_kept_as_it_was_written():
    ids = TOKENIZER.encode('<tool_call>\n{"name": "look", "arguments": {"room": "\\ud800"}}\n</tool_call>')
    for name in CHATS:
        action = CHATS[name].read([*ids, STOP])
        assert re.search(r"\\ud800", action)
        assert parse_action(action).problem is not None


def test_the_tools_are_written_where_the_renderer_writes_tools():
    spec = {"type": "function", "function": {"name": "look", "description": "Look around.", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "Hi"}]
    assert "Look around." in TOKENIZER.decode(CHATS["qwen3 all"].open(messages, [spec]))
    assert CHATS["tiny"].open(messages, [spec]) == CHATS["tiny"].open(messages)


def test_what_somebody_wrote_is_closed_with_the_stop_token_and_reads_back():
    action = call("look", room="Zürich")
    for chat in CHATS.values():
        ids = chat.write(action)
        assert ids[-1] == STOP
        assert parse_action(chat.read(ids)).calls == parse_action(action).calls
