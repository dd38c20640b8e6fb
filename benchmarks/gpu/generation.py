"""How fast the policy within the process generates on a GPU: a model of 1.7B parameters in bfloat16, contexts that decode together.

Decoding is what is left when a run that ends after the first token is taken off. Each step reads all weights, and the keys and values of
all contexts, so few contexts are bound by the memory's rate and many by the rate of products; both are measured in the same run.

    python benchmarks/gpu/generation.py [--json] [--quick]
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import torch
from card import bandwidth, matrix_rate, measured, new_model, options, report

from agentgym.policies.tiny import TinyTokenizer, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policy import Prompt, Sampling
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

TOGETHER, PROMPT, ACTION, ROUNDS = (1, 8, 32, 128), 1024, 256, 3


def prompts(count: int, length: int, vocabulary: int) -> list[Prompt]:
    rng = random.Random(0)
    made = []
    for number in range(count):
        tree = TurnTree(str(number), Task("task", ""))
        made.append(Prompt(tree, tree.add(Turn(0, None, "env", 0, [rng.randrange(vocabulary) for _ in range(length)]))))
    return made


def generate(policy: TransformersPolicy, count: int, length: int, tokens: int) -> None:
    async def play() -> None:
        asked = prompts(count, length, policy.model.config.vocab_size)
        found = await asyncio.gather(*(policy.generate(each, Sampling(max_tokens=tokens, seed=seed)) for seed, each in enumerate(asked)))
        assert all(len(one.ids) == tokens for one in found), "an action of the benchmark ended early"

    asyncio.run(play())


def measure(policy: TransformersPolicy, count: int, length: int, tokens: int, rounds: int, rates: tuple[float, float]) -> dict[str, Any]:
    config = policy.model.config
    first, _ = measured(lambda: generate(policy, count, length, 1), rounds)
    whole, peak = measured(lambda: generate(policy, count, length, tokens), rounds)
    step = (whole - first) / (tokens - 1)
    weights = sum(weight.numel() for weight in policy.model.parameters())
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # numbers kept for each token
    read = 2 * (weights + count * (length + tokens / 2) * each)
    return {
        "together": count,
        "prompt": length,
        "action": tokens,
        "seconds_of_prompts": first,
        "seconds": whole,
        "tokens/s": count * tokens / whole,
        "decoded/s": count / step,
        "share_of_bandwidth": read / step / rates[1],
        "share_of_matrix_rate": 2 * weights * count / step / rates[0],
        "peak_GB": peak,
    }


def main() -> None:
    found = options(__doc__)
    rates = matrix_rate(found.quick), bandwidth(found.quick)
    chat = tiny_chat(TinyTokenizer.train(["one two three"]))
    chat.stop_ids = frozenset()  # no token ends an action
    model = new_model(found.quick).to(torch.bfloat16)
    together, length, tokens, rounds = ((1, 3), 16, 8, 1) if found.quick else (TOGETHER, PROMPT, ACTION, ROUNDS)
    rows = [measure(TransformersPolicy(model, chat, slots=count), count, length, tokens, rounds, rates) for count in together]
    report(found, "generation", rows, matrix_rate=rates[0], bandwidth=rates[1])


if __name__ == "__main__":
    main()
