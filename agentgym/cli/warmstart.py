"""``agentgym warmstart``: the tiny policy from nothing, fluent and weak."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import orjson

from agentgym.cli import console
from agentgym.errors import AgentGymError
from agentgym.registry import make
from agentgym.seeds import Lineage
from agentgym.turn import TurnTree, path

FOR_TOKENIZER = 1500  # demonstrations
POOL = 512  # demonstrations that are sorted by length, so that a batch holds equals
BATCH = 4
PEAK_RATE = 3e-3
ON_OBSERVATIONS = 0.3


def run(env: str, out: Path, seed: int, steps: int, mistakes: float, like: str | None = None) -> None:
    """Clone an expert that errs now and then with probability ``mistakes``: reinforcement has something to mend.

    With the tokenizer of the policy ``like``, the new one can be its teacher: both then speak in the same tokens.
    """
    demonstrations = _demonstrations(env, seed, mistakes)
    import torch

    from agentgym.policies import tiny
    from agentgym.trainers.cloning import clone, cosine
    from agentgym.trainers.learner import TorchLearner

    torch.set_flush_denormal(True)
    started = time.perf_counter()
    tokenizer = _tokenizer(like) if like else tiny.TinyTokenizer.train([as_text(tree) for tree in demonstrations.play(FOR_TOKENIZER)])
    demonstrations.chat = tiny.tiny_chat(tokenizer)
    model = tiny.new_model(len(tokenizer), seed)
    learner = TorchLearner(model, cosine(PEAK_RATE, steps), betas=(0.9, 0.98), weight_decay=0.05)
    losses: list[float] = []

    def done(loss: float) -> None:
        losses.append(loss)
        if len(losses) % 200 == 0:
            speed = len(losses) / (time.perf_counter() - started)
            left = (steps - len(losses)) / speed
            console.print(f"step {len(losses)}/{steps}  loss {sum(losses[-200:]) / 200:.3f}  {speed:.1f} steps/s  {left:.0f} s left")

    while len(losses) < steps:
        trees = sorted(demonstrations.play(POOL), key=lambda tree: tree.leaves()[0].length)
        batches = [trees[first : first + BATCH] for first in range(0, POOL, BATCH)]
        Lineage.of(seed, "batches", len(losses)).rng().shuffle(batches)
        clone(learner, batches[: steps - len(losses)], ON_OBSERVATIONS, done)
    torch.set_flush_denormal(False)  # it is the whole process's
    tiny.save(model, tokenizer, out)
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    command = f"agentgym warmstart --env {env} --seed {seed} --steps {steps} --mistakes {mistakes}" + (f" --like {like}" if like else "")
    about = {"command": command, "seconds": round(time.perf_counter() - started), "sha256": weights}
    (out / "warmstart.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))
    console.print(f"wrote {out}; try it: agentgym eval {env} --policy {out} --split validation")


def _demonstrations(env: str, seed: int, mistakes: float) -> Any:
    """What an environment's ``demonstrations(chat, seed, mistakes)`` gives: ``play(count)`` makes trees in its ``chat``."""
    source: Any = make(env)
    if not hasattr(source, "demonstrations"):
        raise AgentGymError(f"{env} has no demonstrations to learn from: give it a method demonstrations(chat, seed, mistakes)")
    if not 0 <= mistakes <= 1:
        raise AgentGymError(f"--mistakes is {mistakes}: it is a probability, between 0 and 1")
    return source.demonstrations(None, seed, mistakes)


def _tokenizer(policy: str) -> Any:
    from agentgym.policies import tiny

    return tiny.load(tiny.folder_of(policy) or policy)[1].tokenizer


def as_text(tree: TurnTree) -> str:
    """The episode in Qwen's chat format."""
    said = [_message(message["role"], str(message["content"])) for message in tree.root.replies]
    for turn in path(tree.leaves()[0])[1:]:
        result = f"<tool_response>\n{turn.observation}\n</tool_response>"
        said += [_message("assistant", turn.action), _message("user", result)]
    return "".join(said)


def _message(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"
