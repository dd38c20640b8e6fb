"""Phones without a connection, for one hidden cause or two, drawn by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from random import Random
from typing import Any

from agentgym.envs.user.phone import PACK, PLANS, Device, with_plan
from agentgym.envs.user.scripted import PERSONAS, opening
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict, freeze

SIZES = {"train": 4000, "validation": 200, "test": 400}
SPLIT_ENDS = {"train": 70, "validation": 80, "test": 100}  # per cent of the pairs of a name and its causes, cumulative
ON_DEVICE, ON_ACCOUNT = ("airplane", "data", "sim", "stuck"), ("blocked", "empty", "plan")
SINGLE = tuple((cause,) for cause in (*ON_DEVICE, *ON_ACCOUNT))
DOUBLE = tuple(pair for pair in combinations((*ON_DEVICE, *ON_ACCOUNT), 2) if pair != ("empty", "plan"))
OTHERS = 2  # customers beside the user
_FIRST_NAMES = (
    "Ada Adam Aida Alan Alba Alma Amal Amy Ana Andre Anita Anna Anton Arno Asha Astrid Ben Berta Bianca Boris Bruno Carla Carlos Celia"
    " Chen Chloe Clara Cora Dan Daria David Dina Dora Edgar Edith Elena Elias Ella Elmo Emil Emma Enzo Eric Erna Esther Eva Felix Fiona"
    " Flora Frank Fred Gabi Gina Greta Gustav Hana Hans Helga Hugo Ida Igor Ilse Ines Ingrid Irene Iris Isaac Ivan Jack Jana Jim Joan"
    " Jonas Jorge Judith Julia Kamal Karim Karl Kate Kenji Kira Klara Lara Lars Laura Lea Leon Lena Lily Linus Lisa Luca Lucy Luis Luna"
    " Mara Marco Maria Mario Marta Max Maya Mei Mia Milan Mira Mona Nadia Naomi Nico Nina Noah Nora Olga Olivia Omar Oscar Otto Paul Paula"
    " Pedro Petra Pia Quinn Ravi Rita Robin Rosa Ruth Sara Selma Simon Sofia Sonia Sven Tamara Tania Theo Tim Tom Tove Uma Ursula Vera"
    " Victor Viola Wanda Wei Xenia Yara Yuki Zara Zoe"
)
NAMES = tuple(_FIRST_NAMES.split())


@cache
def phone_tasks(split: str) -> tuple[Task, ...]:
    """The tasks of a split, in a fixed order, two of three with one cause; none for a split that does not exist."""
    return tuple(_task(split, number) for number in range(SIZES.get(split, 0)))


def split_of(name: str, causes: Sequence[str]) -> str:
    """The one split in which this name may meet these causes."""
    percent = Lineage.of(0, "user", "split", name, *causes).seed() % 100
    return next(split for split, end in SPLIT_ENDS.items() if percent < end)


def start(data: Mapping[str, Any]) -> tuple[Device, FrozenDict]:
    """The device and all accounts as the task finds them."""
    causes = data["causes"]
    device = Device("airplane" in causes, "data" not in causes, "sim" not in causes, "stuck" in causes)
    plan = "Talk" if "plan" in causes else data["plan"]
    gb = 0 if plan == "Talk" or "empty" in causes else data["gb"]
    own = {"plan": plan, "gb": gb, "blocked": "blocked" in causes}
    return device, freeze({**data["others"], data["name"]: own})


def mended(data: Mapping[str, Any]) -> FrozenDict:
    """The accounts as they ought to be in the end: what was wrong is right, and nothing else is changed."""
    accounts, name = start(data)[1], data["name"]
    if "blocked" in data["causes"]:
        accounts = accounts.set((name, "blocked"), False)
    if "empty" in data["causes"]:
        accounts = accounts.set((name, "gb"), PACK)
    return with_plan(accounts, name, data["wants"]) if "plan" in data["causes"] else accounts


def _task(split: str, number: int) -> Task:
    rng = Lineage.of(0, "user", split, number).rng()
    causes = rng.choice(SINGLE if number % 3 else DOUBLE)
    name = rng.choice(_names(split, causes))
    persona = Lineage.of(0, "user", "persona", split, number).rng().choice(PERSONAS)
    others = rng.sample([other for other in NAMES if other != name], OTHERS)
    data = {
        "name": name,
        "wants": rng.choice(["Small", "Large"]),
        "persona": persona,
        "causes": list(causes),
        "plan": (plan := rng.choice(["Small", "Large"])),
        "gb": rng.randint(1, PLANS[plan]),
        "others": {other: _other(rng) for other in others},
    }
    return Task(f"{split}-{number}", opening(persona, name), split=split, data=data)


@cache
def _names(split: str, causes: tuple[str, ...]) -> list[str]:
    return [name for name in NAMES if split_of(name, causes) == split]


def _other(rng: Random) -> dict[str, Any]:
    plan = rng.choice(list(PLANS))
    return {"plan": plan, "gb": rng.randint(0, PLANS[plan]), "blocked": rng.random() < 0.3}
