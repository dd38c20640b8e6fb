"""Whether a pack is its paths on a GPU: log-probabilities and gradients of a model of 1.7B parameters, against plain causal passes.

In bfloat16 a pack may be as far from float32 as its paths are, and half as far again. It ends with exit code 1 where something is further
off than that, or in float32 than is written in the table.

    python benchmarks/gpu/agreement.py [--json] [--quick]
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from card import device, new_model, options, report
from trees import TREES, grown

from agentgym.pack import Packed, pack
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.trainers.packing import ByPath

TREE, TIMES = "2 episodes, forked twice", 4
LOGPROBS, GRADIENT = 1e-3, 1e-3  # nats; relative to the norm


def plain_logprobs(model: Any, packed: Packed, lines: list[Packed]) -> torch.Tensor:
    """Of every token of the pack, by the model's own attention over each path; 0 at roots."""
    found = torch.zeros(len(packed), device=device())
    number = {turn: place for place, turn in enumerate(packed.turns)}
    for line in lines:
        ids = torch.from_numpy(line.token).to(device())
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        logprobs = torch.cat([found.new_zeros(1), logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]])
        for place, turn in enumerate(line.turns):
            found[torch.from_numpy(packed.turn == number[turn]).to(device())] = logprobs[torch.from_numpy(line.turn == place).to(device())]
    return found


def measure(model: Any, times: int) -> list[dict[str, Any]]:
    tree = grown(TREES[TREE], model.config.vocab_size, times)
    (packed,), lines = pack([tree], 10**6), ByPath()([tree])
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact = plain_logprobs(model, packed, lines)
    paths = (plain_logprobs(half, packed, lines) - exact).abs()
    rows = [_row("log-probabilities, bfloat16, plain", paths, None)]
    rows.append(_row("log-probabilities, bfloat16, packed", (PackScorer(half).logprobs(packed) - exact).abs(), 1.5 * float(paths.mean())))
    del half
    learner = TorchLearner(model, 1e-6, checkpointing=True)
    largest = (learner.logprobs(packed) - exact).abs()
    rows.append({**_row("log-probabilities, float32, packed", largest, LOGPROBS), "met": float(largest.max()) <= LOGPROBS})
    expected = learner.gradient(lines, CrossEntropy())
    apart = float((learner.gradient([packed], CrossEntropy()) - expected).norm() / expected.norm())
    return [*rows, {"what": "gradient, float32, packed", "mean": apart, "largest": apart, "at_most": GRADIENT, "met": apart <= GRADIENT}]


def _row(what: str, apart: torch.Tensor, bound: float | None) -> dict[str, Any]:
    mean = float(apart.mean())
    return {"what": what, "mean": mean, "largest": float(apart.max()), "at_most": bound, "met": None if bound is None else mean <= bound}


def main() -> None:
    found = options(__doc__)
    rows = measure(new_model(found.quick), 1 if found.quick else TIMES)
    report(found, "agreement", rows)
    if any(row["met"] is False for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
