"""Partial turns: an action that is written in segments, each a node that can be forked."""

import asyncio

import pytest
from test_rollout import Counter, tiny_chat

from agentgym import Limits, Lineage, Rollout, Start, Task, call
from agentgym.expand import Close, Extend, Idle, LeafDone, Started, TurnDone
from agentgym.pack import pack
from agentgym.policies import tiny
from agentgym.policies.scripted import Scripted
from agentgym.policy import Generation, Prompt
from agentgym.rollout import episode
from agentgym.store import RunStore
from agentgym.turn import begun, context_ids, path, total_reward


class Writes:
    """Samples the tokens of given actions, one action for each whole turn, as many at a time as it may."""

    def __init__(self, chat, actions):
        self.chat, self.actions = chat, actions
        self.asked = []

    async def generate(self, prompt, sampling):
        done = [turn for turn in path(prompt.turn)[1:] if not turn.partial]
        written = [token for segment in begun(prompt.turn) for token in segment.ids]
        rest = self.chat.write(self.actions[len(done)])[len(written) :]
        self.asked.append(sampling.max_tokens)
        ids = rest[: sampling.max_tokens]
        return Generation(ids, [-1.0] * len(ids), [(0, len(ids))], "stop" if len(ids) == len(rest) else "length")


class Segments:
    """Segments of ``size`` tokens; below the first one, ``forks`` continuations."""

    forks = True

    def __init__(self, size, branches=1):
        self.size, self.branches = size, branches

    def plan(self, forest, event):
        match event:
            case Started(tree):
                yield Extend(tree, tree.root, max_tokens=self.size, segment=True)
            case TurnDone(tree, turn):
                forked = turn.partial and turn.parent is tree.root
                yield Extend(tree, turn, self.branches if forked else 1, max_tokens=self.size, segment=True)
            case Idle():
                for tree in forest:
                    if not tree.closed:
                        yield Close(tree)
            case LeafDone():
                pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def metrics(self):
        return {}


ACTIONS = [call("add", n=3), call("add", n=4), call("stop_here")]
TASK = Task("t", "Count!")


def play(expander, actions=ACTIONS, limits=None, actor=None, make_env=Counter, **more):
    chat = tiny_chat()
    actor = actor or Writes(chat, actions)
    rollout = Rollout(make_env, expander, {"policy": actor}, chat, Lineage.of(0), limits=limits, **more)
    (tree,) = asyncio.run(rollout.run([Start(TASK)]))
    return tree, actor


def test_an_action_in_segments_is_executed_once_and_whole():
    whole, _ = play(Segments(10_000))
    (tree, _) = play(Segments(4))
    (leaf,) = tree.leaves()
    assert [turn.action for turn in episode(leaf)] == ACTIONS
    assert context_ids(leaf) == context_ids(whole.leaves()[0])
    assert (leaf.end, total_reward(leaf)) == ("done", 0.07)
    partial = [turn for turn in tree.turns if turn.partial]
    assert partial
    assert all(len(turn.ids) == turn.sampled_tokens == 4 and not turn.replies and not turn.executed for turn in partial)
    assert Prompt(tree, leaf).messages == Prompt(whole, whole.leaves()[0]).messages


def test_a_fork_in_mid_action_shares_what_was_written_and_starts_from_the_state_before_the_action():
    tree, _ = play(Segments(4, branches=3))
    first = tree.turns[1]
    assert first.partial
    assert len(first.children) == 3
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.07] * 3
    assert len({turn.seed for turn in tree.turns}) == len(tree.turns)


def test_a_fork_in_mid_action_of_an_environment_without_snapshots_fails_by_name():
    expander = Segments(4, branches=2)
    expander.forks = False
    tree, _ = play(expander, actions=[ACTIONS[0], *ACTIONS])
    assert any(total_reward(leaf) is not None for leaf in tree.leaves())


def test_the_segments_of_one_action_share_its_token_limit():
    tree, actor = play(Segments(3), limits=Limits(turn_tokens=4))
    assert set(actor.asked) == {3, 1}
    turns = [turn for turn in tree.turns if turn.parent is not None]
    assert turns[0].partial
    assert not turns[1].partial  # cut off at its limit, and executed as it stands
    assert turns[1].action == tiny_chat().decode(turns[0].ids + turns[1].ids[:1])
    assert "Error" in turns[1].observation


def test_a_budget_spent_in_mid_action_ends_the_episode_with_its_score():
    whole, _ = play(Segments(10_000))
    after_one = whole.turns[1].length
    tree, _ = play(Segments(4), limits=Limits(tokens=after_one + 19))
    (leaf,) = tree.leaves()
    assert (leaf.end, leaf.partial, total_reward(leaf)) == ("budget", True, 0.03)


def test_a_whole_action_and_a_text_are_never_partial():
    tree, _ = play(Segments(4), actor=Scripted(ACTIONS))
    assert not any(turn.partial for turn in tree.turns)
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.07]


def test_segments_are_stored_and_read_back(tmp_path):
    store = RunStore.create(tmp_path / "run", {})
    tree, _ = play(Segments(4, branches=2), committed=store.turn)
    (read,) = store.trees()
    assert [(turn.partial, turn.executed, turn.ids, turn.action) for turn in read.turns] == [
        (turn.partial, turn.executed, turn.ids, turn.action) for turn in tree.turns
    ]
    assert len(read.leaves()) == 2


def test_a_packed_tree_holds_each_segment_once():
    tree, _ = play(Segments(4, branches=3))
    for turn in tree.turns:
        turn.streams["weight"] = turn.sampled.astype(float)
    (packed,) = pack([tree], 10_000)
    assert len(packed) == sum(len(turn.ids) for turn in tree.turns)


@pytest.mark.parametrize("branches", [1, 4])
def test_the_embedded_policy_runs_no_token_twice(branches):
    pytest.importorskip("torch")
    from agentgym.policies.transformers import TransformersPolicy

    model, chat = tiny.load()
    policy = TransformersPolicy(model, chat, slots=64)
    limits = Limits(tokens=400, turn_tokens=60)
    rollout = Rollout(Counter, Segments(7, branches), {"policy": policy}, chat, Lineage.of(3), limits=limits)
    (tree,) = asyncio.run(rollout.run([Start(TASK)]))
    assert sum(turn.partial for turn in tree.turns) >= 2
    predicted = {turn for turn in tree.turns if turn.children}  # what nothing follows is never put through the model
    unique = sum(len(turn.ids) for turn in predicted)
    endings = sum(turn.action_tokens - 1 for turn in tree.turns if turn not in predicted)
    assert policy.tokens_computed == unique + endings
