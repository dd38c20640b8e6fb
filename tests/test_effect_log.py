"""Forks of environments that cannot be copied: what changed something is done again, and must be answered as it was."""

from __future__ import annotations

import pickle
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from broken_envs import GoodLog
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rollout import Forks, play

from agentgym import AgentEnv, AgentGymError, Outcome, Reply, SnapshotMismatch, Task, ToolError, call, tool
from agentgym.action import Action
from agentgym.snapshot import Effect, effects, state_digest
from agentgym.tool import Tool
from agentgym.turn import total_reward

TASK = Task("b2", "Borrow 2 books, then hand in.", answer=2)


class Library(GoodLog):
    """Notes what really ran in this instance since it last began."""

    max_turns = 8
    max_calls = 12

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.ran: list[str] = []

    @tool
    def borrow(self, title: str) -> str:
        """Borrow a book."""
        self.ran.append(f"borrow {title}")
        return super().borrow(title)

    @tool(effect="read")
    def loans(self) -> list[list[Any]]:
        """List what is borrowed."""
        self.ran.append("loans")
        return super().loans()

    @tool
    def lose(self) -> str:
        """Lose all books, and complain."""
        self.ran.append("lose")
        self.state.execute("delete from loans")
        raise ToolError(f"all is lost, {self.rng('excuse').randrange(1000)}")

    def key(self) -> str:
        return repr(self.rows())


class Threaded(Library):
    blocking = True


class Spoken(GoodLog):
    """Has no tools: it takes whole actions."""

    max_turns = 8

    def act(self, action: Action) -> Reply:
        if action.content == "list":
            return Reply(str(self.rows()))
        return Reply(self.borrow(action.content) + self.borrow("a copy of it"), reward=0.25, ends=action.content == "end")


BORROW, LOANS, LOSE, END = call("borrow", title="Emma"), call("loans"), call("lose"), call("hand_in")
ODD = [call("fly"), call("borrow", name=1), "no call"]
ACTIONS = [BORROW, LOANS, LOSE, END, call("count"), *ODD, BORROW * 2, LOANS + BORROW, BORROW + LOSE]
plans = st.lists(st.sampled_from(ACTIONS), max_size=5)
speeches = st.lists(st.sampled_from(["Emma", "Ulysses", "list", "end"]), max_size=5)


def follow(env: AgentEnv, actions: Sequence[str]) -> list[Any]:
    seen = []
    for action in actions:
        if env.ended:
            break
        seen.append(env.step(action)[:4])
    return seen


def started(make: type[AgentEnv] = Library, *actions: str) -> Any:
    env = make()
    env.reset(seed=3, options={"task": TASK})
    follow(env, actions)
    return env


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.tuples(st.just(Library), plans, plans, plans), st.tuples(st.just(Spoken), speeches, speeches, speeches)))
def test_a_fork_has_its_parents_future_and_leaves_the_parent_alone(plan: tuple[Any, list[str], list[str], list[str]]) -> None:
    make, before, after, other = plan
    parent, child = started(make, *before), make()
    expected = follow(started(make, *before), after)
    snapshot = parent.snapshot()
    for actions in (other, after):
        child.restore(snapshot)
        assert child.snapshot().digest == snapshot.digest
        seen = follow(child, actions)
    assert seen == expected
    assert follow(parent, after) == expected
    parent.restore(snapshot)
    assert follow(parent, after) == expected


def test_only_what_may_have_changed_something_is_replayed() -> None:
    parent, child = started(Library, BORROW, LOANS, LOSE + LOANS, *ODD, LOANS + BORROW), Library()
    child.restore(parent.snapshot())
    assert [name for name in parent.ran if name != "loans"] == child.ran == ["borrow Emma", "lose", "borrow Emma"]
    assert (child.turn, child.calls, child.rows()) == (parent.turn, parent.calls, parent.rows())


def test_a_tool_that_declares_no_effect_counts_as_one_that_writes() -> None:
    def look() -> str:
        """Look."""
        return "It is dark."

    assert {tool.name: tool.effect for tool in Library().tools} == {
        **dict.fromkeys(("borrow", "hand_in", "lose"), "write"),
        **dict.fromkeys(("loans", "count"), "read"),
    }
    assert Tool(look).effect == "write"
    assert "annotations" not in Tool(look).mcp
    assert Tool(tool(effect="read")(look)).mcp["annotations"] == {"readOnlyHint": True}


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(AgentGymError, match="'read' or 'write', not 'none'"):
        tool(effect="none")  # type: ignore[call-overload]


def test_snapshots_share_their_log() -> None:
    env = started(Library, BORROW)
    first = env.snapshot().state[0]
    follow(env, [LOANS])
    assert env.snapshot().state[0] is first
    follow(env, [BORROW])
    other = Library()
    other.restore(env.snapshot())
    follow(other, [BORROW])
    assert other.snapshot().state[0].before is env.snapshot().state[0]
    assert env.snapshot().state[0].before is first
    assert len(effects(other.snapshot().state[0])) == 3


def test_a_long_log_is_hashed_and_replayed() -> None:
    class Long(GoodLog):
        max_turns = 3000
        max_calls = 3000

    env, fork = started(Long, *[BORROW] * 2500), Long()
    fork.restore(env.snapshot())
    assert fork.rows() == env.rows()


def test_snapshots_of_different_pasts_have_different_digests() -> None:
    pasts = [(), (LOANS,), (LOANS, LOANS), (BORROW,), (BORROW, LOANS), (LOANS, BORROW), (BORROW * 2,), (BORROW, BORROW), (END,)]
    assert len({started(GoodLog, *past).snapshot().digest for past in pasts}) == len(pasts)


def test_equal_replays_draw_the_same_whatever_call_of_a_turn_they_are() -> None:
    parent, child = started(Library, LOANS + BORROW * 3, BORROW * 2), Library()
    shelves = [shelf for _, shelf in parent.rows()]
    assert len(set(shelves)) == 5
    child.restore(parent.snapshot())
    assert [shelf for _, shelf in child.rows()] == shelves


def test_a_replay_that_diverges_names_the_call_what_was_expected_and_what_it_got() -> None:
    class SoldOut(Library):
        stock = 3

        @tool
        def borrow(self, title: str) -> str:
            """Borrow a book."""
            self.stock -= 1
            return f"{super().borrow(title)} {self.stock} are left."

    env = started(SoldOut, LOANS, BORROW)
    with pytest.raises(SnapshotMismatch) as caught:
        env.restore(env.snapshot())
    words = str(caught.value)
    assert words.startswith("SoldOut, task b2: replayed, turn 2, '<tool_call>")
    assert '"name": "borrow"' in words
    got, expected = words.split("gives ")[1].split(", expected ")
    assert "1 are left" in got
    assert "2 are left" in expected
    with pytest.raises(AgentGymError, match=r"after the end \(an error in restore\(\)\)"):
        env.step(BORROW)


def test_a_replay_that_ends_in_another_state_names_both_keys() -> None:
    class Silent(Library):
        @tool(effect="read")
        def borrow(self, title: str) -> str:
            """Borrow a book."""
            return super().borrow(title)

    env = started(Silent, BORROW)
    with pytest.raises(SnapshotMismatch, match=r"key\(\) after turn 1 gives \[\], expected \[\['Emma'") as caught:
        Silent().restore(env.snapshot())
    assert "must not be declared to read" in str(caught.value)


def test_a_snapshot_that_was_tampered_with_is_refused() -> None:
    env = started(Library, BORROW)
    with pytest.raises(SnapshotMismatch, match="digest"):
        env.restore(replace(env.snapshot(), turn=4))


def test_a_restore_is_no_new_episode() -> None:
    plain, forked = started(), started()
    forked.restore(forked.snapshot())
    for env in (plain, forked):
        env.reset(options={"task": TASK})
    assert follow(plain, [BORROW * 2]) == follow(forked, [BORROW * 2])


@pytest.mark.parametrize("make_env", [Library, Threaded])
def test_the_engine_forks_a_live_database_from_an_interior_turn(make_env: type[Library]) -> None:
    made: list[Library] = []

    def make() -> Library:
        made.append(make_env())
        return made[-1]

    script = [BORROW, LOANS + BORROW, END]
    forest = play([TASK, replace(TASK, id="other")], script=script, make_env=make, expander=Forks(3))
    for tree in forest:
        shared = tree.turns[1]
        assert len(shared.children) == 4
        assert len({child.observation for child in shared.children}) == 1, "equal pasts draw the same"
        assert [total_reward(leaf) for leaf in tree.leaves()] == [1.0] * 4
        assert {leaf.depth for leaf in tree.leaves()} == {3}
    assert forest[0].turns[2].observation != forest[1].turns[2].observation
    assert len(made) > 2, "siblings stand in environments of their own"


def test_a_fork_that_diverges_has_no_verdict_and_ends_no_other_episode() -> None:
    class Worn(Library):
        """Each instance can be begun once."""

        begun = 0

        def begin(self, task: Task) -> None:
            super().begin(task)
            Worn.begun += 1
            if Worn.begun > 1:
                self.state.execute("insert into loans values ('dust', 0)")

        @tool
        def borrow(self, title: str) -> str:
            """Borrow a book."""
            super().borrow(title)
            return f"You have {len(self.rows())}."

    (tree,) = play([TASK], script=[BORROW, BORROW, END], make_env=Worn, expander=Forks(2))
    assert [(leaf.end, leaf.outcome, total_reward(leaf)) for leaf in tree.leaves()] == [
        ("done", Outcome.OK, 1.0),
        *[("error", Outcome.INFRASTRUCTURE, None)] * 2,
    ]
    assert all("replayed, turn 1" in leaf.error and "You have 2." in leaf.error for leaf in tree.leaves()[1:])


@dataclass
class Shelf:
    connection: sqlite3.Connection | None = None
    itself: Any = None


def holding(state: Any, kind: Any = "copy") -> AgentEnv:
    class Holds(GoodLog):
        snapshots = kind

        def begin(self, task: Task) -> None:
            self.state = state

        def close(self) -> None:
            pass

    env = Holds()
    env.reset(seed=0)
    return env


def live() -> Iterator[tuple[Any, str]]:
    connection = sqlite3.connect(":memory:")
    circle = Shelf()
    circle.itself = circle
    circle.connection = connection
    yield connection, "state: sqlite3.Connection"
    yield Shelf(connection), "state.connection: sqlite3.Connection"
    yield circle, "state.connection: sqlite3.Connection"
    yield {"shelves": [Shelf(), Shelf(connection)]}, "state['shelves'][1].connection: sqlite3.Connection"
    yield {"lock": threading.Lock()}, "state['lock']: _thread.lock"
    yield {"rows": (n for n in (1, 2))}, "state['rows']: builtins.generator"


@pytest.mark.parametrize(("state", "part"), list(live()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_copied_is_named_by_its_place(state: Any, part: str) -> None:
    with pytest.raises(AgentGymError, match=r"Declare snapshots = 'log'.* or write snapshot\(\) and restore\(\)") as caught:
        holding(state).snapshot()
    assert f"Holds cannot be forked: {part} cannot be saved" in str(caught.value)


def test_what_cannot_be_compared_is_named_by_its_place() -> None:
    with pytest.raises(AgentGymError, match=r"state\['rows'\]\[1\]: builtins.object cannot be saved"):
        holding({"rows": [1, object()]}, "value").snapshot()


def test_the_same_state_can_be_forked_by_its_log() -> None:
    env = holding({"rows": [1, object()]}, "log")
    env.restore(env.snapshot())


def test_a_digest_of_ones_own_stands_for_its_object() -> None:
    class Hashed:
        def __init__(self, name: str) -> None:
            self.name, self.other = name, object()

        def __state_digest__(self) -> str:
            return self.name

    class Other(Hashed):
        pass

    assert state_digest([Hashed("a")]) == state_digest([Hashed("a")])
    assert len({state_digest(value) for value in (Hashed("a"), Hashed("b"), Other("a"), "a", {2**70: Hashed("a")})}) == 5


def test_a_log_of_thousands_of_effects_can_be_brought_to_another_process():
    log = None
    for turn in range(5000):
        log = Effect(log, turn, 0, turn, "borrow", f"book {turn}", str(turn))
    found = effects(pickle.loads(pickle.dumps(log)))
    assert [(e.turn, e.calls, e.answer, e.digest) for e in found] == [(e.turn, e.calls, e.answer, e.digest) for e in effects(log)]
