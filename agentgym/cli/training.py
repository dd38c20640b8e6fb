"""``agentgym train``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentgym.chat import Chat
from agentgym.cli import console
from agentgym.cli.hosting import hosted, nodes_for, served
from agentgym.cli.policies import find_policy
from agentgym.cli.reporting import write
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.registry import make
from agentgym.store import RunStore
from agentgym.turn import TurnTree

if TYPE_CHECKING:
    from agentgym.policies.transformers import TransformersPolicy
    from agentgym.policies.vllm.on_ray import RayServers
    from agentgym.trainers.recipe import Recipe
    from agentgym.trainers.training import Training


def run(path: Path, out: Path, resume: bool, ray: str | None = None) -> None:
    from agentgym.trainers.processes import Together
    from agentgym.trainers.recipe import read_recipe
    from agentgym.trainers.trackers import TensorBoard, Trackers

    recipe = read_recipe(path)
    if int(os.environ.get("RANK", 0)):  # torchrun's: the first process runs the loop, and the others learn with it
        learner: Any = recipe.learner.build(policy_of(recipe, partial(make, recipe.env.id))[0].model, recipe.learning_rate)
        learner.follow()
        return
    nodes = nodes_for(recipe, ray)  # a cluster that is too small is refused before anything is written
    config = {"kind": "training", **recipe.model_dump(by_alias=True)}
    if resume:
        store = RunStore.open(out)
        if store.config != config:
            different = sorted(name for name in config if store.config.get(name) != config[name])
            raise AgentGymError(f"{out} was made by another recipe (other {', '.join(different)}): it cannot be resumed with {path}")
    else:
        store = RunStore.create(out, config)
    trackers = Trackers([TensorBoard(out), *(tracker.build(folder=out) for tracker in recipe.trackers)])
    workers = {**recipe.workers.model_dump(), "nodes": nodes and nodes.workers}
    with closing(trackers), closing(store), served(recipe, nodes) as servers:
        training = build(recipe, servers)
        if servers is not None:
            servers.wait()
        with hosted(training.make_env, ray, **workers) as training.make_env, progress() as bar:
            train_with_progress(training, recipe.steps, store, bar, checkpoint_every=recipe.checkpoint_every, heard=trackers.log)
    save(training, out / "policy")
    if isinstance(training.learner, Together):
        training.learner.release()
    console.print(f"wrote {write(out)}, and the policy: agentgym eval {recipe.env.id} --policy {out / 'policy'}")


def build(recipe: Recipe, servers: RayServers | None = None) -> Training:
    """``servers``: those that the actor asks."""
    make_env = partial(make, recipe.env.id, **recipe.env.arguments)
    policy, chat = policy_of(recipe, make_env)
    actor: Any = policy
    if recipe.actor is None:
        sync = recipe.sync.build(policy=policy)
    else:
        actor = recipe.actor.build(chat=chat, **({} if servers is None else {"urls": servers.urls}))
        sync = recipe.sync.build(policy=actor, model=policy.model)
    if recipe.learner.sharded and sync.model is policy.model:
        from agentgym.policies.vllm.sync import PushedWeights

        if not isinstance(sync, PushedWeights):
            needed = "set sync to agentgym.policies.sync:CopiedWeights"
            raise AgentGymError(f"learner.sharded: the actor needs whole weights of its own: {needed}")
        sync.copy_model()
    return recipe.training(make_env, actor, sync.model, chat, sync, lambda name: find_policy(name, make_env))


def policy_of(recipe: Recipe, make_env: Callable[[], AgentEnv]) -> tuple[TransformersPolicy, Chat]:
    """The policy that the recipe trains, with its adapters."""
    from agentgym.policies.adapters import adapt
    from agentgym.policies.transformers import TransformersPolicy

    device = recipe.learner.accelerator().device  # first, for it says which accelerator is this process's own
    policy, chat = find_policy(recipe.policy, make_env)
    if chat is None or not isinstance(policy, TransformersPolicy):
        raise AgentGymError(f"policy: {recipe.policy!r} has no weights to train")
    policy.model.to(device)
    if recipe.learner.lora is not None:
        adapt(policy.model, **recipe.learner.lora.model_dump(), seed=recipe.seed)
    return policy, chat


def save(training: Training, folder: Path) -> None:
    """What was trained, as ``--policy`` reads it. Needs all processes of a learner in shards."""
    from agentgym.policies.transformers import TransformersPolicy

    actor, sync = training.actor, cast("Any", training.sync)
    if isinstance(actor, TransformersPolicy):
        actor.save(folder)
    else:
        from agentgym.policies.vllm.sync import PushedWeights

        model = sync.whole(training.learner) if isinstance(sync, PushedWeights) else sync.model
        TransformersPolicy(model, training.chat).save(folder)


def progress(done: str = "step {task.completed}/{task.total}") -> Progress:
    shown = TextColumn("{task.fields[shown]}")
    return Progress(TextColumn(done), BarColumn(), shown, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def train_with_progress(
    training: Training,
    steps: int,
    store: RunStore,
    bar: Progress,
    *,
    checkpoint_every: int = 5,
    heard: Callable[[int, dict[str, float]], Any] = lambda step, metrics: None,
) -> None:
    """Train while the bar shows reward, success, speed and the time left. What ``heard`` returns is awaited if it can be."""
    from agentgym.trainers.loop import train

    line = bar.add_task("train", total=steps, shown="")

    def done(step: int, metrics: dict[str, float], trees: Sequence[TurnTree]) -> Any:
        speed = metrics["sampled_tokens"] / sum(value for name, value in metrics.items() if name.startswith("seconds_"))
        shown = f"reward {metrics['reward']:.2f}  success {success(trees):.2f}  {speed:,.0f} tokens/s"
        bar.update(line, completed=step, shown=shown)
        if not bar.console.is_terminal and step % 10 == 0:
            bar.console.print(f"step {step}/{steps}  {shown}")
        return heard(step, metrics)

    asyncio.run(train(training, steps, store, done, checkpoint_every))


def success(trees: Sequence[TurnTree]) -> float:
    """The share of episodes with full reward, among those with a verdict."""
    from agentgym.turn import total_reward

    rewards = [reward for tree in trees for leaf in tree.leaves() if (reward := total_reward(leaf)) is not None]
    return sum(reward >= 1 for reward in rewards) / max(1, len(rewards))
