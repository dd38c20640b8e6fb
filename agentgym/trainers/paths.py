"""Packed tokens laid out by episode, for objectives that couple the tokens of an episode or of a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Ints, Packed
from agentgym.turn import Turn, path, total_reward, walk


@dataclass(frozen=True)
class Paths:
    """The sampled tokens of E judged episodes, one episode after the other: P entries, a shared token once in each episode.

    An episode goes through every context that its template began anew; segments of an action are turns like any other, and
    labels lie on no episode. A token whose behaviour log-probability is not finite has no entry [R].
    """

    token: Ints  # (P,) place in the pack
    episode: Ints  # (P,) ascending
    share: Floats  # (P,) one over the number of episodes through the token: the shares of a token sum to 1
    rewards: Floats  # (E,)
    tree: Ints  # (E,) which of the pack's trees the episode is from: its group


def paths(packed: Packed) -> Paths:
    """Raises `AgentGymError` where a tree is cut: an episode's streams may then lie in another pack."""
    place = {turn: number for number, turn in enumerate(packed.turns)}
    trees = {root: number for number, root in enumerate(_whole_roots(packed, place))}
    places = np.flatnonzero(packed.sampled & np.isfinite(packed.logprobs))
    own = np.split(places, np.searchsorted(packed.turn[places], np.arange(1, len(packed.turns))))
    judged: list[tuple[list[Turn], float]] = []
    for turn in packed.turns:
        ends = turn.end is not None and (turn.executed or turn.partial)
        if ends and (reward := total_reward(turn)) is not None:
            judged.append((path(turn), reward))
    lines = [np.concatenate([own[place[turn]] for turn in turns]) for turns, _ in judged]
    token = np.concatenate([np.zeros(0, dtype=np.int64), *lines])
    return Paths(
        token=token,
        episode=np.repeat(np.arange(len(lines)), [len(line) for line in lines]),
        share=1.0 / np.bincount(token, minlength=len(packed))[token],
        rewards=np.array([reward for _, reward in judged], dtype=np.float64),
        tree=np.array([trees[turns[0]] for turns, _ in judged], dtype=np.int64),
    )


def _whole_roots(packed: Packed, place: dict[Turn, int]) -> list[Turn]:
    root_of: dict[Turn, Turn] = {}
    for turn in packed.turns:
        above = turn.parent
        root_of[turn] = turn if above is None else root_of[above] if above in root_of else path(turn)[0]
    roots = list(dict.fromkeys(root_of.values()))
    for root in roots:
        missing = sum(turn not in place for turn in walk(root))
        if missing:
            raise AgentGymError(
                f"a tree is cut: {missing} of its turns are in other packs, but the objective couples the tokens of whole "
                "episodes: pack with agentgym.trainers.packing:ByWholeTree"
            )
    return roots
