"""Learners in several processes that talk over gloo, and the forest that they learn."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from forests import random_model, random_tree
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.pack import Packed
from agentgym.policies.adapters import adapt
from agentgym.trainers.credit.adwin import ADWIN
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.logprobs import WithLogprobs
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.gspo import GSPO
from agentgym.trainers.packing import ByTree, ByWholeTree
from agentgym.trainers.processes import Together, shard
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree

MOST = (10**6, 30)  # tokens to a pack: one pack, and many


def a_forest(seed: int) -> list[TurnTree]:
    rng = random.Random(seed)
    forest = [random_tree(rng, restarts=0.0) for _ in range(5)]
    for turn in (turn for tree in forest for turn in tree.turns):
        turn.streams = {"advantage": turn.sampled.astype(np.float64) * rng.uniform(-1, 1)}
        turn.cache = turn.snapshot = lambda: None  # which no other process could be sent
    token_mean(forest)
    return forest


def updates() -> list[tuple[list[Packed], Any]]:
    """Of one pack, of many, and with an objective on whole episodes."""
    forests = [a_forest(seed) for seed in range(len(MOST))]
    by_token = [(ByTree(most)(forest), ClippedSurrogate()) for most, forest in zip(MOST, forests, strict=True)]
    return [*by_token, (ByWholeTree(MOST[-1])(a_forest(9)), GSPO())]


def a_learner(seed: int = 0, sharded: bool = False, checkpointing: bool = False) -> TorchLearner:
    model = random_model("Qwen3", seed).double()
    if sharded:
        shard(model, "cpu")
    return TorchLearner(model, 1e-2, max_grad_norm=0.5, checkpointing=checkpointing, accelerator=Accelerator(cpu=True))


def learn(learner: Any) -> list[list[dict[str, float]]]:
    return [[*learner.accumulate_all(packs, objective), learner.step()] for packs, objective in updates()]


def found(learner: Any) -> dict[str, Any]:
    state = copy.deepcopy(learner.state_dict())
    moments = [weight["exp_avg"] for weight in state["optimizer"]["state"].values()]
    return {"model": state["model"], "moments": moments, "version": learner.version, "state": state}


def play(rank: int, sharded: bool) -> dict[str, Any]:
    """Learn, begin again from the first state, and learn the same once more."""
    learner = a_learner(rank * (not sharded), sharded, checkpointing=sharded)  # the first one's weights count, or all are equal
    together = Together(learner)
    if rank:
        together.follow()
        return {} if sharded else found(learner)
    report: dict[str, Any] = {"packs": [len(packs) for packs, _ in updates()], "refused": refusals(together)}
    begin = copy.deepcopy(together.state_dict()["model"])
    report["metrics"], report["once"] = learn(together), found(together)
    report["weights"] = copy.deepcopy(together.weights())
    report["logprobs"] = together.logprobs(updates()[0][0][0])
    together.load_state_dict({**together.state_dict(), "model": begin, "version": 7})
    together.accumulate_all(*updates()[1])
    together.step(pace=0.5)
    report |= found(together)
    together.release()
    return {**report, "processes": learner.accelerator.num_processes}


def adapted(sharded: bool) -> TorchLearner:
    """Adapters in float32 on a base in bfloat16."""
    model = random_model("Qwen3").to(torch.bfloat16)
    adapt(model, 4, 8)
    if sharded:
        shard(model, "cpu")
    return TorchLearner(model, 1e-2, checkpointing=True, accelerator=Accelerator(cpu=True))


def said_of(learner: Any, credit: Any = None, objective: Any = None) -> str:
    """What a training of these says before its first step."""
    seams = {"source": Uniform(Letters().tasks("train")), "expander": Groups(2), "credit": credit or GRPO()}
    about: Any = {"make_env": Letters, "actor": None, "chat": None, "sync": None, **seams}
    try:
        Training(learner=learner, objective=objective or ClippedSurrogate(), **about)
    except AgentGymError as error:
        return str(error)
    return ""


def refusals(learner: Any) -> dict[str, str]:
    norms = ClippedSurrogate(needs=frozenset({"gradient_norms"}))
    audited = WithLogprobs(ADWIN(SimpleNamespace(writes={"advantage", "trained"})), {})
    return {
        "none": said_of(learner),
        "objective": said_of(learner, objective=norms),
        "credit": said_of(learner, credit=audited),
        "both": said_of(learner, audited, norms),
    }


def play_adapted(rank: int) -> dict[str, Any]:
    together = Together(adapted(sharded=True))
    if rank:
        together.follow()
        return {}
    norms = [of[-1]["gradient_norm"] for of in learn(together)]
    report = {"norms": norms, "weights": together.weights()}
    together.release()
    return report


def run(rank: int, count: int, folder: Path) -> None:
    """Each process writes what it has in the end: with whole weights, with shards, and with shards of adapters."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for by accelerate, and not used
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=count)
    found = {sharded: play(rank, sharded) for sharded in (False, True)}
    torch.save({**found, "adapted": play_adapted(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()
