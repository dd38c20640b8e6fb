"""``agentgym warmstart``: the tiny policy from nothing, fluent and weak."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import orjson

from agentgym.chat import Chat
from agentgym.cli import console
from agentgym.expand import Groups
from agentgym.registry import make
from agentgym.rollout import Rollout
from agentgym.seeds import Lineage
from agentgym.turn import TurnTree, path

ENV = "agentgym/Search-v0"
FOR_TOKENIZER = 1500  # demonstrations
POOL = 512  # demonstrations that are sorted by length, so that a batch holds equals
BATCH = 4
PEAK_RATE = 3e-3
ON_OBSERVATIONS = 0.3


def run(out: Path, seed: int, steps: int, mistakes: float) -> None:
    """Clone an expert that errs at each search with probability ``mistakes``: reinforcement has something to mend."""
    from agentgym.policies import tiny
    from agentgym.trainers.cloning import clone, cosine
    from agentgym.trainers.learner import TorchLearner

    started = time.perf_counter()
    demonstrations = Demonstrations(seed, mistakes)
    tokenizer = tiny.TinyTokenizer.train([as_text(tree) for tree in demonstrations.play(FOR_TOKENIZER, None)])
    chat = tiny.tiny_chat(tokenizer)
    model = tiny.new_model(len(tokenizer), seed)
    learner = TorchLearner(model, cosine(PEAK_RATE, steps), betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []

    def done(loss: float) -> None:
        losses.append(loss)
        if len(losses) % 200 == 0:
            recent = sum(losses[-200:]) / 200
            speed = len(losses) / (time.perf_counter() - started)
            left = (steps - len(losses)) / speed
            console.print(f"step {len(losses)}/{steps}  loss {recent:.3f}  {speed:.1f} steps/s  {left:.0f} s left")

    while len(losses) < steps:
        clone(learner, list(demonstrations.batches(chat))[: steps - len(losses)], ON_OBSERVATIONS, done)
    tiny.save(model, tokenizer, out)
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    command = f"agentgym warmstart --seed {seed} --steps {steps} --mistakes {mistakes}"
    about = {"command": command, "seconds": round(time.perf_counter() - started), "sha256": weights}
    (out / "warmstart.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    console.print(f"wrote {out}; try it: agentgym eval {ENV} --policy {out} --split validation")


class Demonstrations:
    """Episodes of the erring expert on training tasks, never the same twice."""

    def __init__(self, seed: int, mistakes: float) -> None:
        from agentgym.envs.search.expert import Expert
        from agentgym.trainers.sources.uniform import Uniform

        self.seed = seed
        self.make_env = partial(make, ENV)
        self.source = Uniform(self.make_env().tasks("train"), seed)
        self.expert = Expert(seed=seed, mistakes=mistakes)

    def play(self, count: int, chat: Chat | None) -> list[TurnTree]:
        lineage = Lineage.of(self.seed, "demonstrations", self.source.drawn)
        rollout = Rollout(self.make_env, Groups(1, "expert"), {"expert": self.expert}, chat, lineage)
        return asyncio.run(rollout.run(self.source.draw(count)))

    def batches(self, chat: Chat) -> Iterator[list[TurnTree]]:
        trees = sorted(self.play(POOL, chat), key=lambda tree: tree.leaves()[0].length)
        batches = [trees[first : first + BATCH] for first in range(0, POOL, BATCH)]
        Lineage.of(self.seed, "batches", self.source.drawn).rng().shuffle(batches)
        yield from batches


def as_text(tree: TurnTree) -> str:
    """All that was said, one message a paragraph."""
    said = [str(message["content"]) for message in tree.root.replies]
    for turn in path(tree.leaves()[0])[1:]:
        said += [turn.action, turn.observation]
    return "<|im_end|>".join(f"assistant\n{text}\n" for text in said)
