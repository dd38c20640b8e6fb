"""Random forests of turns and tiny random models, for tests."""

from __future__ import annotations

import random
from typing import Any

from agentgym.store import turn_record
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

VOCABULARY = 32


def add_turn(tree: TurnTree, parent: Turn | None, ids: list[int], sampled: int = 0, **fields: Any) -> Turn:
    """A turn whose first ``sampled`` tokens the policy sampled, each with log-probability -3."""
    turn = Turn(-1, parent, "policy" if sampled else "env", 0, ids, sampled, [-3.0] * sampled, action_tokens=sampled, **fields)
    return tree.add(turn)


def random_tree(rng: random.Random, turns: int = 7, empty: float = 0.15, restarts: float = 0.15) -> TurnTree:
    """Forks anywhere, some turns without tokens, some that begin a new context. Childless turns end an episode."""
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, _ids(rng, rng.randint(2, 6)))
    for _ in range(rng.randint(1, turns)):
        size = 0 if rng.random() < empty else rng.randint(1, 6)
        anew = rng.random() < restarts
        turn = add_turn(tree, rng.choice(tree.turns), _ids(rng, size), 0 if anew else rng.randint(0, size), restarts=anew)
        turn.logprobs = [-3.5 + rng.uniform(-0.6, 0.6) for _ in turn.logprobs]
    for turn in tree.turns:
        if not turn.children:
            turn.end, turn.reward = "done", rng.choice([0.0, 0.25, 1.0])
    return tree


def forest_record(forest: Any) -> list[Any]:
    """All that is stored of a forest, for comparing."""
    return [(tree.id, tree.closed, [turn_record(turn) for turn in tree.turns]) for tree in forest]


def random_model(kind: str, seed: int = 0, head_size: int = 8) -> Any:
    """A Qwen3 or Llama of two layers whose distributions are far from uniform."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_size,
        intermediate_size=24,
        max_position_embeddings=1024,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def _ids(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(n)]
