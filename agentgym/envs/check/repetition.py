"""Equal episodes must be equal: whatever the seed, the neighbours, the process, the last episode or the fork."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from agentgym.env import AgentEnv
from agentgym.envs.check.play import NotCheckedError, Script, Subject, Transcript, difference, opening, play, steps, take
from agentgym.envs.check.process import replay
from agentgym.errors import SnapshotMismatch
from agentgym.seeds import Lineage
from agentgym.snapshot import Snapshot

HASH_SEEDS = (1, 2, 3, 4)
SEEDS = 16
REPLAYED = "begin() must make all anew for this instance, and each tool that changes something must be declared to write"


def neighbour(subject: Subject) -> Iterator[str]:
    """An episode must not feel other environments in its process, nor the process's global random generators."""
    scripts = subject.scripts
    for script in scripts:
        subject.alone(script)  # all of them before the first neighbour
    yield from islice(chain.from_iterable(_beside_others(subject, script) for script in scripts), 1)
    yield from islice(chain.from_iterable(_global_generators(subject, script) for script in scripts if script.task is None), 1)


def _beside_others(subject: Subject, script: Script) -> Iterator[str]:
    position = subject.scripts.index(script)
    others = [subject.scripts[position - 1], subject.scripts[(position + len(subject.scripts) // 2) % len(subject.scripts)]]
    for other in others:
        if changed := difference(subject.alone(script), _interleaved(subject, script, other)):
            yield (
                f"{script}: played beside another environment of the same class, step by step, it went otherwise than "
                f"alone ({changed}). Keep what changes in self.state, not in the class, the module or a shared file"
            )


def _interleaved(subject: Subject, script: Script, other: Script) -> Transcript:
    with subject.new() as env:
        transcript = [script.reset(env)]
        with subject.new() as beside:
            other.reset(beside)
            moves = iter(other.actions)
            for action in script.actions:
                move = next(moves, None)
                if move is None or take(beside, move).ended:
                    other.reset(beside)
                    moves = iter(other.actions)
                transcript += steps(env, [action])
                if transcript[-1].ended:
                    break
    return transcript


def _global_generators(subject: Subject, script: Script) -> Iterator[str]:
    generators: dict[str, tuple[Callable[[int], Any], Callable[[], Any]]] = {
        "random": (random.seed, random.getstate),
        "numpy.random": (np.random.seed, lambda: pickle.dumps(np.random.get_state())),
    }
    for name, (reseed, state) in generators.items():
        first, again, other = (_after_reseeding(subject, script, reseed, state, root) for root in (1, 1, 2))
        if difference(first[0], again[0]) is None and (changed := difference(first[0], other[0])):
            yield (
                f"{script}: it draws from the global generator of {name} ({changed} when that was seeded otherwise). "
                "Draw from self.rng(name)"
            )
        elif any(a == b for a, b in zip(first[1], other[1], strict=True)):
            yield f"{script}: it reseeds the global generator of {name}, which others draw from. Draw from self.rng(name)"


def _after_reseeding(
    subject: Subject, script: Script, reseed: Callable[[int], Any], state: Callable[[], Any], root: int
) -> tuple[Transcript, Any]:
    """A play with the global generator set at every turn, and where the generator stands after reset and at the end."""
    with subject.new() as env:
        reseed(root)
        transcript = [script.reset(env)]
        after_reset = state()
        for number, action in enumerate(script.actions):
            reseed(root + 10 * number)
            transcript += steps(env, [action])
            if transcript[-1].ended:
                break
        return transcript, (after_reset, state())


def seed(subject: Subject) -> Iterator[str]:
    """Equal seeds give equal episodes; seeds are not ignored."""
    for script in subject.scripts:
        if changed := difference(subject.alone(script), subject.play(script)):
            what = "seed" if script.task is None else "lineage"
            yield (
                f"{script}: the same {what} gave another episode in a second instance ({changed}). "
                "Pass seed and options on to super().reset(), and draw from self.rng(name)"
            )
            break
    yield from _second_episodes(subject)
    yield from _ignored(subject)


def _second_episodes(subject: Subject) -> Iterator[str]:
    """``reset(seed=s)`` sets the later ``reset()`` too."""
    root = subject.seeds("second", 1)[0]
    pair = []
    for _ in range(2):
        with subject.new() as env:
            pair.append([opening(env, seed=root), opening(env), opening(env)])
    if changed := difference(pair[0], pair[1]):
        where = changed.replace("turn", "reset")
        yield f"reset(seed={root}) and then reset(): the later episodes differ between instances ({where})"


def _ignored(subject: Subject) -> Iterator[str]:
    actions = next((script.actions for script in subject.scripts if script.name == "probing"), ("",))
    count = 6 if subject.thrifty else SEEDS
    roots = subject.seeds("many", count)
    by_seed = _variety(subject, actions, [{"seed": root} for root in roots])
    lineages = [{"options": {"lineage": Lineage.of(root, "check")}} for root in roots]
    by_lineage = _variety(subject, actions, lineages)
    varied = _several_tasks(subject) or by_seed > 1 or by_lineage > 1
    if varied and by_seed == 1:
        yield f"{count} different seeds all gave the same episode. Pass seed on to super().reset(seed=seed)"
    if varied and by_lineage == 1:
        yield f"{count} different lineages (reset's option) all gave the same episode. Pass options on to super().reset()"


def _variety(subject: Subject, actions: Sequence[str], resets: Sequence[dict[str, Any]]) -> int:
    """How many different episodes the resets give."""
    kinds: list[Transcript] = []
    for how in resets:
        with subject.new() as env:
            transcript = [opening(env, **how), *steps(env, actions)]
        if all(difference(kind, transcript) for kind in kinds):
            kinds.append(transcript)
        if len(kinds) > 1:
            break
    return len(kinds)


def _several_tasks(subject: Subject) -> bool:
    with subject.new() as env:
        return len({(task.id, task.prompt) for task in env.tasks(env.splits[0])}) > 1


def process(subject: Subject) -> Iterator[str]:
    """An episode is the same in every process, whatever its hash seed."""
    hash_seeds = HASH_SEEDS[:2] if subject.thrifty or subject.slow_start else HASH_SEEDS
    for hash_seed, transcripts in zip(hash_seeds, replay(subject.factory, subject.scripts, hash_seeds), strict=True):
        for script, transcript in zip(subject.scripts, transcripts, strict=True):
            if changed := difference(subject.alone(script), transcript):
                yield (
                    f"{script}: another process, with PYTHONHASHSEED={hash_seed}, gave another episode ({changed}). "
                    "Sort sets before they are shown, and show no hash(), id(), time or process number"
                )
                return


def leak(subject: Subject) -> Iterator[str]:
    """A reset leaves nothing of the last episode, whether it was played to its end or abandoned."""
    scripts = subject.scripts
    with subject.new() as env:
        order = [*scripts, *reversed(scripts), scripts[0]]
        for before, script in zip([None, *order], order, strict=False):
            if changed := difference(subject.alone(script), play(env, script)):
                yield (
                    f"{script}: after an episode ({before}) in the same instance it went otherwise ({changed}). "
                    "Set all of self.state in begin()"
                )
                return
    with subject.new() as env:
        for before, script in zip(scripts, reversed(scripts), strict=True):
            before.reset(env)
            steps(env, before.actions[: len(before.actions) // 2])
            if changed := difference(subject.alone(script), play(env, script)):
                yield (
                    f"{script}: after an abandoned episode ({before}) it went otherwise ({changed}). "
                    "Set all of self.state in begin()"
                )
                return


def fork(subject: Subject) -> Iterator[str]:
    """A restored snapshot has the same future as its parent, and playing it changes nothing for the parent."""
    for kind in (_undeclared_effects, _parents_changed, _other_futures):
        yield from islice(chain.from_iterable(kind(subject, script) for script in subject.scripts), 1)


def _other_futures(subject: Subject, script: Script) -> Iterator[str]:
    alone = subject.alone(script)
    with subject.new() as parent, subject.new() as child:
        watched, snapshots = _with_snapshots(parent, script)
        if changed := difference(alone, watched):
            yield f"{script}: taking snapshots changed the episode ({changed}). snapshot() must only read"
        subject.scripts[-1].reset(child)
        for turn in _turns(subject, len(snapshots)):
            future = alone[turn + 1 :]
            for place, env in (("another instance", child), ("the same instance", parent)):
                env.restore(snapshots[turn])
                steps(env, _others(script, turn))
                env.restore(snapshots[turn])
                if changed := difference(future, steps(env, script.actions[turn:]), turn + 1):
                    yield (
                        f"{script}: a fork of turn {turn}, restored in {place}, has another future ({changed}). "
                        + (REPLAYED if env.snapshots == "log" else "Keep all that an episode needs in self.state, immutable or copied")
                    )


def _with_snapshots(env: AgentEnv, script: Script) -> tuple[Transcript, list[Snapshot]]:
    transcript = [script.reset(env)]
    snapshots: list[Snapshot] = []
    for action in script.actions:
        snapshots.append(_snapshot(env))
        transcript += steps(env, [action])
        if transcript[-1].ended:
            break
    return transcript, snapshots


def _others(script: Script, turn: int) -> Sequence[str]:
    """Other actions than the script's own from that turn on."""
    rest = script.actions[turn:]
    return [*script.actions[:turn][::-1], *rest[1:], *rest[:1]]


def _parents_changed(subject: Subject, script: Script) -> Iterator[str]:
    """Parent and child stand at the same turn; the child plays first, then the parent."""
    alone = subject.alone(script)
    for turn in _turns(subject, len(alone) - 1):
        with subject.new() as parent, subject.new() as child:
            script.reset(parent)
            steps(parent, script.actions[:turn])
            child.restore(_snapshot(parent))
            steps(child, _others(script, turn))
            future = steps(parent, script.actions[turn:])
            if changed := difference(alone[turn + 1 :], future, turn + 1):
                yield (
                    f"{script}: playing a fork of turn {turn} changed its parent ({changed}). They share something mutable: "
                    + (REPLAYED if parent.snapshots == "log" else "make the state immutable, or use snapshots = 'copy'")
                )


def _undeclared_effects(subject: Subject, script: Script) -> Iterator[str]:
    """The replay of an effect log leaves out the tools that are declared to read: no future may miss them."""
    with subject.new() as env:
        reads = [tool.name for tool in env.tools if tool.effect == "read"] if env.snapshots == "log" else []
    for turn in _turns(subject, len(subject.alone(script)) - 1) if reads else ():
        changed = _fork_differs(subject, script, turn, left_out=reads)
        if changed is None or _fork_differs(subject, script, turn, left_out=()):
            continue  # nothing is wrong, or something else
        guilty = [name for name in reads if _fork_differs(subject, script, turn, left_out=[name])] or reads
        yield (
            f"{script}: {', '.join(guilty)} changes something, though it is declared to read: a fork of turn {turn}, which "
            f"does not replay it, goes otherwise ({changed}). Declare @tool(effect='write')"
        )


def _fork_differs(subject: Subject, script: Script, turn: int, left_out: Sequence[str]) -> str | None:
    """How the future of a fork differs, when its replay leaves out the named tools and no others."""
    with subject.new() as parent, subject.new() as child:
        for env in (parent, child):
            for tool in env.tools:
                tool.effect = "read" if tool.name in left_out else "write"
        script.reset(parent)
        steps(parent, script.actions[:turn])
        try:
            child.restore(_snapshot(parent))
        except SnapshotMismatch as mismatch:
            return str(mismatch)
        return difference(subject.alone(script)[turn + 1 :], steps(child, script.actions[turn:]), turn + 1)


def _turns(subject: Subject, count: int) -> range:
    return range(0, count, max(1, count // 2) if subject.thrifty else 1)


def _snapshot(env: AgentEnv) -> Snapshot:
    try:
        return env.snapshot()
    except NotImplementedError as error:
        raise NotCheckedError(f"it has no snapshots ({error})") from error
