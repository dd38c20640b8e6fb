"""A person at the terminal: what is typed becomes an action, and any turn can be gone back to."""

from __future__ import annotations

import asyncio

import pytest

from agentgym import AgentEnv, Lineage, Rollout, Start, Task, call, tool
from agentgym.action import Call, format_action
from agentgym.policies.person import Person, written
from agentgym.turn import total_reward


class Sums(AgentEnv):
    snapshots = "value"

    def begin(self, task: Task) -> None:
        self.state = 0

    @tool
    def add(self, number: int, times: int = 1) -> str:
        """Add a number."""
        self.state += number * times
        return str(self.state)

    @tool
    def note(self, text: str) -> str:
        """Write a note."""
        return text

    @tool(ends=True)
    def finish(self) -> str:
        """Say that it is done."""
        return f"{self.state} it is"

    def score(self) -> float:
        return float(self.state == 5)


def play(*lines: str):
    typed, shown = iter(lines), []

    def read(prompt: str) -> str:
        shown.append(prompt)
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    person = Person(read, shown.append)
    rollout = Rollout(Sums, person, {"policy": person}, None, Lineage.of(0))
    (tree,) = asyncio.run(rollout.run([Start(Task("five", "Make five."))]))
    return tree, "\n".join(shown)


def test_going_back_makes_siblings_that_know_nothing_of_each_other():
    tree, shown = play("add 7", "finish", ":back 0", "add number=2 times=2", "add 1", "finish", ":tree", ":quit")
    assert [turn.observation for turn in tree.turns[1:]] == ["7", "7 it is", "4", "5", "5 it is"]
    assert [child.index for child in tree.root.children] == [1, 3]
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.0, 1.0]
    assert "Reward: 1" in shown
    assert "add number=2 times=2" in shown
    assert tree.closed


def test_after_the_end_only_going_back_is_possible_and_a_wrong_command_is_explained():
    tree, shown = play("finish", "add 5", ":back 9", ":nonsense", ":back 0", "add 5", "finish")
    assert "This episode has ended" in shown
    assert "There is no ':back 9'; turns are 0 to 1." in shown
    assert "There is no ':nonsense'" in shown
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.0, 1.0]


def test_a_refusal_is_read_and_the_episode_goes_on():
    tree, shown = play("add five", "hello there", "add 5", "finish")
    assert [str(turn.outcome) for turn in tree.turns[1:]] == ["model_error", "model_error", "ok", "ok"]
    assert "Error:" in shown


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("add 3", call("add", number=3)),
        ("add number=3 times=2", call("add", number=3, times=2)),
        ("note 42", call("note", text="42")),
        ("note a=b and more", call("note", text="a=b and more")),
        ('note text="two words"', call("note", text="two words")),
        ("note it's", call("note", text="it's")),
        ("finish", call("finish")),
        ("note thought=deep", format_action(Call("note", {"text": "thought=deep"}))),
        ("I am done", "I am done"),
        (call("add", number=1), call("add", number=1)),
    ],
)
def test_what_is_typed_is_read_by_the_tools_schema(line: str, action: str):
    assert written(line, Sums().tool_specs) == action
