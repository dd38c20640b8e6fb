import asyncio
import threading
import time
from dataclasses import dataclass, replace

import pytest

from agentgym import AgentEnv, Limits, Lineage, Outcome, Reply, Rollout, Start, Task, call, tool
from agentgym.chat import Chat
from agentgym.errors import AgentGymError, InfrastructureError, JudgeError
from agentgym.expand import Close, Extend, Groups, Idle, LeafDone, Started, Stop, TurnDone
from agentgym.policies.scripted import Scripted
from agentgym.policies.tiny import TinyRenderer, TinyTokenizer
from agentgym.rollout import episode
from agentgym.store import turn_record
from agentgym.turn import context_ids, total_reward, walk

TEXTS = ["<tool_call>\n" + '{"name": "add", "arguments": {"n": 3}}' + "\n</tool_call>", "The sum is 7. Count to ten!"] * 4
TOKENIZER = TinyTokenizer.train(TEXTS)


@dataclass(frozen=True, slots=True)
class Sum:
    values: tuple[int, ...] = ()


class Counter(AgentEnv):
    """Add numbers and say when done; the score is the sum over 100. A task's answer names what goes wrong in it."""

    max_turns = 5
    snapshots = "value"

    def begin(self, task):
        self.state = Sum()
        if task.answer == "no beginning":
            raise InfrastructureError("the machine did not start")

    @tool
    def add(self, n: int) -> str:
        """Add a number.

        Args:
            n: what to add.
        """
        match self.task.answer:
            case "fault":
                raise RuntimeError("the database is gone")
            case "infrastructure":
                raise InfrastructureError("the network is down")
            case "exit":
                raise SystemExit(3)
            case "empty":
                next(iter(()))
            case "surrogate":
                return "\ud800"
            case "hang" if self.blocking:
                threading.Event().wait()
        self.state = replace(self.state, values=(*self.state.values, n))
        return f"The sum is {sum(self.state.values)}; the die shows {self.rng('die').randrange(1000)}."

    @tool
    def stop_here(self) -> Reply:
        """End the episode."""
        return Reply("The end.", ends=True)

    def score(self):
        if self.task.answer == "judge":
            raise JudgeError("the judge did not answer")
        return sum(self.state.values) / 100

    def metrics(self):
        return {"numbers": len(self.state.values)}

    def key(self):
        return str(self.state.values)


class Blocking(Counter):
    blocking = True


ADD_AND_END = [call("add", n=3), call("add", n=4), call("stop_here")]


def play(tasks, script=ADD_AND_END, make_env=Counter, expander=None, chat=None, actors=None, seed=0, **more):
    actors = actors or {"policy": Scripted(script)}
    rollout = Rollout(make_env, expander or Groups(1), actors, chat, Lineage.of(seed), **more)
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def tasks(count, answer=None):
    return [Task(f"t{i}", f"Count, number {i}.", answer) for i in range(count)]


def tiny_chat():
    return Chat(TOKENIZER, TinyRenderer(TOKENIZER))


def test_many_episodes_at_once_each_end_with_their_own_score():
    forest = play(tasks(100), expander=Groups(3), script=lambda prompt: ADD_AND_END[prompt.turn.depth])
    assert [tree.task.id for tree in forest] == [f"t{i}" for i in range(100)]
    for tree in forest:
        assert tree.closed
        assert [total_reward(leaf) for leaf in tree.leaves()] == [0.07] * 3
        assert [leaf.end for leaf in tree.leaves()] == ["done"] * 3
        assert [turn.reward for turn in episode(tree.leaves()[0])] == [0.0, 0.0, 0.07]
        assert tree.leaves()[0].metrics == {"numbers": 2}


@pytest.mark.parametrize("make_env", [Counter, Blocking])
@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("fault", Outcome.INFRASTRUCTURE),
        ("infrastructure", Outcome.INFRASTRUCTURE),
        ("exit", Outcome.INFRASTRUCTURE),
        ("empty", Outcome.INFRASTRUCTURE),
        ("surrogate", Outcome.INFRASTRUCTURE),
        ("no beginning", Outcome.INFRASTRUCTURE),
        ("judge", Outcome.JUDGE),
    ],
)
def test_a_fault_that_is_not_the_policys_gives_no_verdict_and_ends_no_other_episode(make_env, answer, outcome):
    forest = play([*tasks(5), Task("bad", "Count.", answer), Task("t6", "Count.")], make_env=make_env, expander=Groups(2))
    for tree in forest:
        rewards = [total_reward(leaf) for leaf in tree.leaves()]
        if tree.task.id == "bad":
            assert set(rewards) == {None}
            assert {(leaf.end, leaf.outcome) for leaf in tree.leaves()} == {("error", outcome)}
            assert all(leaf.error for leaf in tree.leaves())
        else:
            assert rewards == [0.07, 0.07]
        assert tree.closed


def test_more_hanging_episodes_than_cores_are_timed_out_while_the_others_go_on():
    forest = play([*tasks(20, "hang"), *tasks(20)], make_env=Blocking, limits=Limits(seconds=1.0))
    for number, tree in enumerate(forest):
        (leaf,) = tree.leaves()
        if number < 20:
            assert (leaf.end, leaf.outcome, total_reward(leaf)) == ("error", Outcome.TIMEOUT, None)
        else:
            assert total_reward(leaf) == 0.07


def test_blocking_environments_begin_and_step_together_and_off_the_event_loop():
    count = 24
    together = threading.Barrier(count, timeout=30)
    loop_threads = []

    class Waits(Blocking):
        def begin(self, task):
            super().begin(task)
            together.wait()

        def act(self, action):
            together.wait()  # breaks unless all episodes are in it at once
            loop_threads.append(threading.current_thread() is threading.main_thread())
            return super().act(action)

    forest = play(tasks(count), make_env=Waits)
    assert [total_reward(leaf) for tree in forest for leaf in tree.leaves()] == [0.07] * count
    assert not any(loop_threads)


def test_everything_that_a_blocking_environment_does_is_off_the_event_loop():
    on_loop = []

    class Watched(Blocking):
        def snapshot(self):
            self.note("snapshot")
            return super().snapshot()

        def restore(self, snapshot):
            self.note("restore")
            super().restore(snapshot)

        def key(self):
            self.note("key")
            return super().key()

        def score(self):
            self.note("score")
            return super().score()

        def note(self, what):
            on_loop.append((what, threading.current_thread() is threading.main_thread()))

    play(tasks(1), expander=Forks(2), make_env=Watched)
    play(tasks(1), expander=StopsAfter(1), make_env=Watched)
    assert set(on_loop) == {(what, False) for what in ("snapshot", "restore", "key", "score")}


def test_an_opening_that_leaves_no_room_for_an_action_has_no_verdict_and_says_why():
    chat = tiny_chat()
    (tree,) = play(tasks(1), chat=chat)
    (tree,) = play(tasks(1), chat=chat, limits=Limits(tokens=tree.root.length + 1))
    assert (tree.root.end, tree.root.reward, tree.root.outcome) == ("error", None, Outcome.INFRASTRUCTURE)
    assert "raise Limits.tokens" in tree.root.error


def test_the_width_bounds_how_many_turns_are_played_at_once():
    inside, most = [0], [0]
    lock, three = threading.Lock(), threading.Event()

    class Watched(Blocking):
        def act(self, action):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                if inside[0] == 3:
                    three.set()
            three.wait(timeout=30)
            time.sleep(0.002)
            with lock:
                inside[0] -= 1
            return super().act(action)

    play(tasks(12), make_env=Watched, limits=Limits(width=3))
    assert most[0] == 3


def test_the_turn_limit_truncates_and_keeps_the_score():
    (tree,) = play(tasks(1), script=lambda prompt: call("add", n=1))
    (leaf,) = tree.leaves()
    assert (leaf.end, leaf.depth, total_reward(leaf)) == ("truncated", 5, 0.05)


def test_a_spent_token_budget_ends_the_episode_with_its_score_as_it_stands():
    chat = tiny_chat()
    (tree,) = play(tasks(1), script=lambda prompt: call("add", n=2), chat=chat)
    lengths = [turn.length for turn in tree.turns]
    (tree,) = play(tasks(1), script=lambda prompt: call("add", n=2), chat=chat, limits=Limits(tokens=lengths[2] + 10))
    (leaf,) = tree.leaves()
    assert (leaf.end, leaf.depth, leaf.outcome, total_reward(leaf)) == ("budget", 2, Outcome.OK, 0.04)
    assert leaf.metrics == {"numbers": 2}
    (tree,) = play([Task("t0", "Count, number 0.", "judge")], lambda p: call("add", n=2), chat=chat, limits=Limits(tokens=lengths[2]))
    (leaf,) = tree.leaves()
    assert (leaf.end, leaf.outcome, total_reward(leaf)) == ("error", Outcome.JUDGE, None)


def test_siblings_start_from_one_state_and_do_not_disturb_each_other():
    class Copied(Counter):
        snapshots = "copy"

        def begin(self, task):
            self.state = Sum([])  # the same list everywhere, were it not copied

        @tool
        def add(self, n: int) -> str:
            """Add a number.

            Args:
                n: what to add.
            """
            self.state.values.append(n)
            return f"The sum is {sum(self.state.values)}."

    for make_env in (Counter, Copied):
        first = iter(range(1, 9))
        (tree,) = play(
            tasks(1),
            script=lambda prompt, first=first: call("add", n=next(first)) if prompt.turn.parent is None else call("stop_here"),
            make_env=make_env,
            expander=Groups(8),
        )
        assert sorted(total_reward(leaf) for leaf in tree.leaves()) == [n / 100 for n in range(1, 9)]
        assert len({turn.seed for turn in tree.turns}) == len(tree.turns)


def records(forest):
    return [[turn_record(turn) for turn in tree.turns] for tree in forest]


@pytest.mark.parametrize("make_env", [Counter, Blocking])
def test_a_run_replays_byte_for_byte(make_env):
    chat = tiny_chat()

    def run(expander, **more):
        return play([*tasks(6), *tasks(6)], script=lambda p: ADD_AND_END[p.turn.depth], chat=chat, expander=expander, **more)

    first = records(run(Groups(2), make_env=Counter))
    other = run(Groups(3), seed=1)
    assert [tree[1]["replies"] for tree in records(other)] != [tree[1]["replies"] for tree in first], "the dice never differ"
    again = records(run(Groups(2), make_env=make_env))
    if make_env is Counter:
        assert again == first
    else:  # threads may commit in another order, but every turn is the same
        assert [{turn["seed"]: turn["replies"] for turn in tree} for tree in again] == [
            {turn["seed"]: turn["replies"] for turn in tree} for tree in first
        ]


def test_what_is_played_beside_a_task_changes_nothing_in_it():
    beside = play([*tasks(3), Task("mine", "Count."), Task("mine", "Count.")], expander=Groups(2))
    alone = play([Task("mine", "Count."), Task("mine", "Count.")], expander=Groups(2))
    assert records(beside[3:]) == records(alone)
    assert [tree.id for tree in beside[3:]] == [tree.id for tree in alone]
    assert alone[0].id != alone[1].id
    assert alone[0].turns[1].replies != alone[1].turns[1].replies


class Forks:
    """One episode, then ``more`` from its first turn, and ``labels`` beside them."""

    def __init__(self, more=3, labels=0, forks=True):
        self.more, self.labels, self.forks = more, labels, forks
        self.forked = False

    def plan(self, forest, event):
        match event:
            case Started(tree):
                yield Extend(tree, tree.root)
            case TurnDone(tree, turn) if turn.executed:
                yield Extend(tree, turn)
            case Idle() if not self.forked:
                self.forked = True
                for tree in forest:
                    if tree.turns[1].end is not None:
                        continue
                    yield Extend(tree, tree.turns[1], self.more)
                    if self.labels:
                        yield Extend(tree, tree.turns[1], self.labels, "teacher", execute=False)
            case Idle():
                for tree in forest:
                    if not tree.closed:
                        yield Close(tree)
            case LeafDone() | TurnDone():
                pass


def test_forks_from_an_interior_turn_share_its_past_and_nothing_else():
    script = [call("add", n=3), call("add", n=4), call("stop_here")]
    (tree,) = play(tasks(1), script=script, expander=Forks(3), chat=tiny_chat())
    shared = tree.turns[1]
    assert len(shared.children) == 4
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.07] * 4
    dice = {child.observation for child in shared.children}
    assert len(dice) == 1, "the same turn of the same episode draws the same"
    assert len({turn.seed for turn in walk(tree.root)}) == len(tree.turns)
    assert all(turn.key == "(3, 4)" for turn in shared.children)


def test_a_fork_without_a_snapshot_fails_by_name_and_alone():
    (tree,) = play(tasks(1), expander=Forks(2, forks=False))
    assert [(leaf.end, total_reward(leaf)) for leaf in tree.leaves()] == [("done", 0.07), ("error", None), ("error", None)]
    assert all("forks = True" in leaf.error for leaf in tree.leaves()[1:])


def test_a_label_is_seen_by_no_environment_and_is_no_episode():
    teacher = Scripted(lambda prompt: call("add", n=99))
    actors = {"policy": Scripted(ADD_AND_END), "teacher": teacher}
    (tree,) = play(tasks(1), expander=Forks(1, labels=2), actors=actors, chat=tiny_chat())
    labels = [turn for turn in tree.turns if not turn.executed]
    assert [(label.author, label.action, label.end, label.replies) for label in labels] == [
        ("teacher", call("add", n=99), None, ())
    ] * 2
    assert all(label.ids == tiny_chat().write(label.action) for label in labels)
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.07] * 2


class StopsAfter(Groups):
    def plan(self, forest, event):
        if isinstance(event, TurnDone) and event.turn.depth == 2:
            yield Stop(event.tree, event.turn)
        else:
            yield from super().plan(forest, event)


def test_stop_ends_an_episode_as_truncated_with_its_score_as_it_stands():
    committed = []
    (tree,) = play(tasks(1), expander=StopsAfter(2), committed=lambda tree, turn: committed.append((turn.index, turn.end)))
    assert [(leaf.end, leaf.depth, total_reward(leaf)) for leaf in tree.leaves()] == [("truncated", 2, 0.07)] * 2
    assert tree.closed
    assert {(leaf.index, "truncated") for leaf in tree.leaves()} <= set(committed)


def test_a_state_that_cannot_be_saved_ends_its_episode_alone():
    class Unsaveable(Counter):
        def snapshot(self):
            if self.turn and self.task.answer:
                raise InfrastructureError("no room for a snapshot")
            return super().snapshot()

    forest = play([*tasks(1), Task("bad", "Count.", "full")], make_env=Unsaveable, expander=Forks(0))
    assert [total_reward(leaf) for leaf in forest[0].leaves()] == [0.07]
    (leaf,) = forest[1].leaves()
    assert (leaf.end, leaf.reward, leaf.depth) == ("error", None, 1)


class RewritesHistory(TinyRenderer):
    """A template that drops something from earlier turns: it cannot bridge when a sum is reported."""

    def bridge_to_next_turn(self, before, completion, messages):
        if "sum is 7" in str(messages):
            return None
        return super().bridge_to_next_turn(before, completion, messages)


def test_where_the_template_rewrites_history_the_context_begins_anew():
    chat = Chat(TOKENIZER, RewritesHistory(TOKENIZER))
    script = [call("add", n=3), call("add", n=4), call("add", n=5), call("stop_here")]
    (tree,) = play(tasks(1), script=script, chat=chat)
    (fresh,) = [turn for turn in tree.turns if turn.restarts]
    rewritten = fresh.parent
    assert "sum is 7" in rewritten.observation
    assert (fresh.author, fresh.action, fresh.replies, fresh.key) == ("env", "", (), "(3, 4)")
    assert context_ids(fresh) == fresh.ids
    assert fresh.length == len(fresh.ids)
    text = TOKENIZER.decode(fresh.ids)
    assert text.count("sum is") == 2
    assert text.endswith("<|im_start|>assistant\n")
    assert len(rewritten.ids) == rewritten.action_tokens, "no bridge behind the rewritten turn"
    (leaf,) = tree.leaves()
    assert total_reward(leaf) == 0.12
    assert [turn.action for turn in episode(leaf)] == script


def test_a_renderer_that_fails_on_one_reply_ends_that_episode_alone():
    class Chokes(TinyRenderer):
        def bridge_to_next_turn(self, before, completion, messages):
            if "sum is 9" in str(messages):
                raise KeyError("developer")
            return super().bridge_to_next_turn(before, completion, messages)

    numbers = {"t0": 3, "t1": 9, "t2": 4}
    forest = play(
        tasks(3),
        script=lambda p: call("add", n=numbers[p.tree.task.id]) if p.turn.parent is None else call("stop_here"),
        chat=Chat(TOKENIZER, Chokes(TOKENIZER)),
    )
    assert [total_reward(leaf) for tree in forest for leaf in tree.leaves()] == [0.03, None, 0.04]


def test_a_malformed_action_is_answered_and_the_episode_goes_on():
    (tree,) = play(tasks(1), script=["<tool_call>{", call("add", n="x"), call("nothing"), call("add", n=1), call("stop_here")])
    assert [turn.outcome for turn in tree.turns[1:]] == [Outcome.MODEL_ERROR] * 3 + [Outcome.OK] * 2
    assert total_reward(tree.leaves()[0]) == 0.01


def test_an_expander_that_extends_a_finished_episode_is_told_so():
    class Greedy(Groups):
        def plan(self, forest, event):
            if isinstance(event, LeafDone):
                yield Extend(event.tree, event.turn)
            else:
                yield from super().plan(forest, event)

    with pytest.raises(AgentGymError, match="has ended"):
        play(tasks(1), expander=Greedy(1))


def test_every_turn_is_committed_once_and_after_its_parent():
    seen = []
    forest = play(tasks(5), expander=Groups(3), script=lambda p: ADD_AND_END[p.turn.depth], committed=lambda t, turn: seen.append(turn))
    assert sorted(map(id, seen)) == sorted(id(turn) for tree in forest for turn in tree.turns)
    places = {turn: place for place, turn in enumerate(seen)}
    assert all(turn.parent is None or places[turn.parent] < places[turn] for turn in seen)
