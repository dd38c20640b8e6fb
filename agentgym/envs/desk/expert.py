"""A scripted expert at the desk that knows what it has read, and can be made to err, for demonstrations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentgym.action import call, parse_action
from agentgym.envs.desk.shop import EXCHANGE, MOVE, RETURN, SEND
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.turn import path

_ORDERS = re.compile(r"Orders: (.+)\.")
_ORDER = re.compile(r"\w+: (\w+) in (\w+), (\w+), to (\w+)\.")
_COLOUR = re.compile(r"(\w+): (\w+)\.")


@dataclass(slots=True)
class Memory:
    """What an episode has told so far."""

    orders: list[str] = field(default_factory=list)  # of the customer
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)  # product and status, by order
    colours: dict[str, str] | None = None  # those that are not sold out, with their items
    written: set[str] = field(default_factory=set)  # tools

    def read(self, tool: str, arguments: Mapping[str, Any], answer: str) -> None:
        if answer.startswith("Error: "):
            return
        if tool == "customer" and (found := _ORDERS.search(answer)) is not None:
            self.orders = found[1].split(", ")
        elif tool == "order" and (found := _ORDER.fullmatch(answer)) is not None:
            self.seen[arguments["name"]] = (found[1], found[3])
        elif tool == "product":
            self.colours = dict(_COLOUR.findall(answer))
        elif tool not in ("customer", "order"):
            self.written.add(tool)


@dataclass(frozen=True, slots=True)
class Step:
    """What the expert is about, in a few words, and the call of a tool."""

    purpose: str
    tool: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def next_step(wish: Mapping[str, Any], memory: Memory) -> Step:
    """A good next call in any state. ``wish`` has ``kind``, ``customer``, ``product`` and ``wish``."""
    if not memory.orders:
        return Step(f"orders of {wish['customer']}", "customer", {"name": wish["customer"]})
    if wish["kind"] == MOVE:
        return _move(wish, memory)
    if memory.written:
        return Step("ready", "done")
    order = next((name for name, (product, _) in memory.seen.items() if product == wish["product"] and name in memory.orders), "")
    return _fulfil(wish, memory, order) if order else _explore(memory, f"find {wish['product']}")


def mistake(wish: Mapping[str, Any], memory: Memory, rng: Random) -> Step:
    """To end too early, to write without looking, to pick another colour, or to look up what is of no use."""
    ways = [Step("ready", "done")]
    unread = [order for order in memory.orders if order not in memory.seen]
    if unread and wish["kind"] in (RETURN, EXCHANGE):
        ways += [Step("guess", tool, {"order": rng.choice(unread)}) for tool in ("cancel", "refund")]
    if unread and wish["kind"] in (SEND, MOVE):
        ways.append(Step("guess", "send", {"order": rng.choice(unread), "town": wish["wish"]}))
    if memory.colours and not memory.written:
        ways.append(Step("guess", "exchange", {"order": rng.choice(memory.orders), "item": rng.choice(list(memory.colours.values()))}))
    ways.append(Step("look again", "customer", {"name": wish["customer"]}))
    return rng.choice(ways)


@dataclass(frozen=True, slots=True)
class Expert:
    """Looks up the customer, then the orders until it finds the right one, then does what was wished.

    It reads the wish and the episode's texts alone, so it goes on from any state, whoever led there. With probability
    ``mistakes`` at each turn it does something wrong or useless instead.
    """

    seed: int = 0
    mistakes: float = 0.0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt, Lineage.of(self.seed, "expert", sampling.seed).rng()))

    def act(self, prompt: Prompt, rng: Random) -> str:
        wish, memory = prompt.tree.task.data, Memory()
        for turn in path(prompt.turn)[1:]:
            for one, reply in zip(parse_action(turn.action).calls, turn.replies, strict=False):
                memory.read(one.name, one.arguments, str(reply["content"]))
        return action_of(mistake(wish, memory, rng) if rng.random() < self.mistakes else next_step(wish, memory))


def action_of(step: Step) -> str:
    return call(step.tool, thought=step.purpose, **step.arguments)


def _fulfil(wish: Mapping[str, Any], memory: Memory, order: str) -> Step:
    status = memory.seen[order][1]
    if wish["kind"] == SEND:
        return Step(f"{status}, send", "send", {"order": order, "town": wish["wish"]})
    if wish["kind"] == EXCHANGE and memory.colours is None:
        return Step(f"find {wish['wish']}", "product", {"name": wish["product"]})
    if wish["kind"] == EXCHANGE and memory.colours and wish["wish"] in memory.colours:
        return Step(f"{wish['wish']} is there", "exchange", {"order": order, "item": memory.colours[wish["wish"]]})
    return Step(status, "cancel" if status == "pending" else "refund", {"order": order})


def _move(wish: Mapping[str, Any], memory: Memory) -> Step:
    pending = next((name for name in memory.orders if memory.seen.get(name, ("", ""))[1] == "pending"), "")
    if "move" not in memory.written:
        return Step("move", "move", {"customer": wish["customer"], "town": wish["wish"]})
    if "send" in memory.written:
        return Step("ready", "done")
    return Step("pending, send", "send", {"order": pending, "town": wish["wish"]}) if pending else _explore(memory, "find pending")


def _explore(memory: Memory, purpose: str) -> Step:
    """The next order of the customer that was not looked up; where all were, the case cannot be helped."""
    unread = [name for name in memory.orders if name not in memory.seen]
    return Step(purpose, "order", {"name": unread[0]}) if unread else Step("ready", "done")
