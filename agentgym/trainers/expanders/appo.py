"""APPO: branches from within actions, where the policy was unsure and what followed has become likelier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, LeafDone, Memoryless, Started, TurnDone
from agentgym.pack import Bools, Floats
from agentgym.trainers.expanders.entropy import known, standard
from agentgym.turn import Turn, TurnTree, path


class APPO(Memoryless):
    """``initial`` episodes, then branches from the best-scored of their nodes until there are ``rollouts``.

    Initial episodes are written in segments of ``segment`` tokens, and a node scores as its best token does, see
    `branching_scores`: a branch keeps that token and the rest of its node [R]. ``log_ratios(turn)`` gives log pi_now - log
    pi_rollout of a turn's sampled tokens; without it the weights that sampled are the present ones and entropy alone decides
    [R]. Source: APPO, arXiv 2606.12384, with its defaults [S-code]; its code leaves out blank tokens, which are not known here.
    """

    forks = True

    def __init__(
        self,
        rollouts: int = 16,
        initial: int = 8,
        segment: int = 16,
        epsilon: float = 0.2,
        log_ratios: Callable[[Turn], Sequence[float]] | None = None,
    ) -> None:
        if not 1 <= initial <= rollouts or segment < 1:
            raise AgentGymError(f"APPO needs 1 <= initial <= rollouts and segment >= 1, not {initial}, {rollouts} and {segment}")
        self.rollouts, self.initial, self.segment, self.epsilon = rollouts, initial, segment, epsilon
        self.log_ratios = log_ratios or (lambda turn: [0.0] * turn.sampled_tokens)

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                yield Extend(tree, tree.root, self.initial, max_tokens=self.segment, segment=True)
            case TurnDone(tree, turn) if len(tree.leaves()) < self.initial:
                yield Extend(tree, turn, max_tokens=self.segment, segment=True)
            case TurnDone(tree, turn):
                yield Extend(tree, turn)
            case LeafDone(tree, _) if len(tree.leaves()) == self.initial:
                yield from self._branches(tree)
            case LeafDone(tree, _) if len(tree.leaves()) == self.rollouts:
                yield Close(tree)
            case _:
                pass

    def _branches(self, tree: TurnTree) -> list[Command]:
        """The best-scored nodes, those first that hold a candidate; from the best again where there are too few."""
        scored = [node for leaf in sorted(tree.leaves(), key=lambda leaf: leaf.seed) for node in self._score(leaf)]
        scored.sort(key=lambda node: node[:2], reverse=True)
        chosen = Counter(islice(cycle(turn for _, _, turn in scored), self.rollouts - self.initial))
        return [Extend(tree, turn, n) for turn, n in chosen.items()] or [Close(tree)]

    def _score(self, leaf: Turn) -> list[tuple[bool, float, Turn]]:
        """Whether it holds a candidate, its best score, and after what to branch, for each node of an episode but its last."""
        nodes = [turn for turn in path(leaf)[1:] if turn.author != "env"]
        if leaf.error:
            return []
        entropies, ratios = ([list(of(turn)) for turn in nodes] for of in (known, self.log_ratios))
        scores, candidates = branching_scores(np.concatenate(entropies), np.concatenate(ratios), self.epsilon)
        ends = np.cumsum([len(tokens) for tokens in entropies])
        found = []
        for turn, begin, end in zip(nodes[:-1], [0, *ends], ends, strict=False):
            within = candidates[begin:end]
            best = scores[begin:end][within] if within.any() else scores[begin:end]
            after = turn.children[0] if turn.children[0].restarts else turn
            found.append((bool(within.any()), float(best.max()), after))
        return found


def branching_scores(entropies: Floats, log_ratios: Floats, epsilon: float = 0.2, gamma: float = 1.0) -> tuple[Floats, Bools]:
    """``z(entropy) z(future)`` for each token of an episode, and whether both are above 0; shapes (T,) to (T,) and (T,).

    ``future`` of token t is ``clip(exp(sum over k >= t of gamma^(k - t) log_ratio_k), 1 - epsilon, 1 + epsilon)`` [S-code].
    Where it is the same for all tokens, ``z(entropy)`` alone scores [R].
    """
    futures = np.zeros(len(log_ratios))
    following = 0.0
    for place in reversed(range(len(log_ratios))):
        futures[place] = following = log_ratios[place] + gamma * following
    unsure, wanted = standard(entropies), standard(np.exp(futures).clip(1 - epsilon, 1 + epsilon))
    if not wanted.any():
        return unsure, unsure > 0
    return unsure * wanted, (unsure > 0) & (wanted > 0)
