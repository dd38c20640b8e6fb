"""Train the shipped tiny policy to answer multi-hop questions with a search tool: the whole thing."""

import asyncio

import agentgym
from agentgym.expand import Groups
from agentgym.policies import tiny
from agentgym.policies.sync import SharedWeights
from agentgym.policies.transformers import TransformersPolicy
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.learner import TorchLearner, warm_up
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training

model, chat = tiny.load()
policy = TransformersPolicy(model, chat)
run = Training(
    lambda: agentgym.make("agentgym/Search-v0"), policy, chat, credit=GRPO(), objective=ClippedSurrogate(), expander=Groups(8),
    source=Uniform(agentgym.make("agentgym/Search-v0").tasks("train")),
    learner=TorchLearner(model, warm_up(4e-4)), sync=SharedWeights(policy), limits=agentgym.Limits(tokens=448, turn_tokens=72),
)  # fmt: skip
asyncio.run(train(run, steps=60, done=lambda step, metrics, trees: print(step, f"reward {metrics['reward']:.2f}", flush=True)))
