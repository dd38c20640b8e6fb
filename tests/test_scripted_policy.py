import asyncio

import pytest

from agentgym.errors import AgentGymError
from agentgym.policies.scripted import Scripted
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree


def test_a_script_is_played_by_the_number_of_actions_even_below_a_rewritten_context():
    tree = TurnTree("t", Task("t", ""))
    tree.add(Turn(0, None, "env", 0, ids=[8]))
    first = tree.add(Turn(-1, tree.root, "policy", 0, ids=[9]))
    fresh = tree.add(Turn(-1, first, "env", 0, ids=[8, 9], restarts=True))
    scripted = Scripted(["one", "two"])

    def played(turn):
        generation: Generation = asyncio.run(scripted.generate(Prompt(tree, turn), Sampling()))
        return generation.text

    assert [played(tree.root), played(fresh)] == ["one", "two"]
    with pytest.raises(AgentGymError, match="ends after 2"):
        played(tree.add(Turn(-1, fresh, "policy", 0, ids=[9])))
    assert asyncio.run(Scripted(lambda prompt: prompt.tree.id).generate(Prompt(tree, first), Sampling())).text == "t"
