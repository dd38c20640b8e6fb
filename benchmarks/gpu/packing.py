"""What packing saves on a GPU: a model of 1.7B parameters in bfloat16, trees packed by FlexAttention against each path on its own.

"by path" holds each path in a pack of its own; "plain" is the model's own causal attention, a path to a row, as trainers that know no
trees compute it. Speed is in tokens of the paths: what those trainers would have to compute for the same gradient. All forms compute
each layer again in the backward pass, which does not count as work in the share of the matrix rate.

    python benchmarks/gpu/packing.py [--json] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from card import device, matrix_rate, measured, new_model, options, report
from trees import TREES, grown

from agentgym.pack import Packed, pack
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.trainers.packing import ByPath

TIMES, ROUNDS = 4, 5  # trees of 5,600 to 16,000 tokens
PUBLISHED = "AReaL-DTA (arXiv 2602.00482), other trees and machines: 1.70 times faster than a packed mask, 8.31 times faster than dense"


def train(learner: TorchLearner, packs: Sequence[Packed]) -> None:
    for packed in packs:
        learner.accumulate(packed, CrossEntropy())
    learner.optimizer.zero_grad()


def train_plainly(learner: TorchLearner, lines: Sequence[Packed]) -> None:
    learner.model.train()  # or no layer would be computed again
    for line in lines:
        ids, weight = (torch.from_numpy(each).to(device()) for each in (line.token, line.streams["weight"]))
        places = weight[1:].nonzero()[:, 0]
        logits = learner.model(input_ids=ids[None], use_cache=False, logits_to_keep=places).logits[0]
        chosen = logits.float().log_softmax(-1).gather(-1, ids[places + 1][:, None])[:, 0]
        learner.accelerator.backward(-(weight[places + 1] * chosen).sum())
    learner.model.eval()
    learner.optimizer.zero_grad()


def work(config: Any, packs: Sequence[Packed]) -> float:
    """Operations of one forward and one backward pass: products with weights, attention, and logits where something is predicted."""
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    weights = config.num_hidden_layers * width * (2 * heads + 2 * keys + 3 * config.intermediate_size)
    tokens = sum(len(packed) for packed in packs)
    pairs = sum(int((packed.depth + 1).sum()) for packed in packs)
    places = sum(len(np.unique(packed.parent[packed.streams["weight"] != 0])) for packed in packs)
    return 6.0 * (weights * tokens + width * config.vocab_size * places + 2 * config.num_hidden_layers * heads * pairs)


def measure(learner: TorchLearner, name: str, times: int, rounds: int, rate: float) -> list[dict[str, Any]]:
    config = learner.model.config
    tree = grown(TREES[name], config.vocab_size, times)
    packed, alone = pack([tree], 10**6), ByPath()([tree])
    forms: dict[str, tuple[list[Packed], Callable[[], None]]] = {
        "plain": (alone, lambda: train_plainly(learner, alone)),
        "by path": (alone, lambda: train(learner, alone)),
        "by tree": (packed, lambda: train(learner, packed)),
    }
    found = {form: measured(run, rounds) for form, (_, run) in forms.items()}
    whole = sum(map(len, alone))
    return [
        {
            "tree": name,
            "form": form,
            "tokens": sum(map(len, packs)),
            "fewer": whole / sum(map(len, packs)),
            "seconds": found[form][0],
            "path_tokens/s": whole / found[form][0],
            "faster_than_by_path": found["by path"][0] / found[form][0],
            "faster_than_plain": found["plain"][0] / found[form][0],
            "share_of_matrix_rate": work(config, packs) / found[form][0] / rate,
            "peak_GB": found[form][1],
        }
        for form, (packs, _) in forms.items()
    ]


def main() -> None:
    found = options(__doc__)
    rate = matrix_rate(found.quick)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
    learner = TorchLearner(new_model(found.quick), 1e-6, checkpointing=True, accelerator=accelerator)
    names, times, rounds = (list(TREES)[-1:], 1, 1) if found.quick else (list(TREES), TIMES, ROUNDS)
    rows = [row for name in names for row in measure(learner, name, times, rounds, rate)]
    report(found, "packing", rows, matrix_rate=rate, published=PUBLISHED)


if __name__ == "__main__":
    main()
