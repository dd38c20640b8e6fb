"""How old the weights are that drew each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.trainers.credit.streams import Around
from agentgym.trainers.credit.tokens import drawn_by
from agentgym.turn import TurnTree


class WithLags(Around):
    """``credit``, and the stream ``lag``: the learner's optimiser steps since the weights that drew each token; 0 elsewhere."""

    adds = frozenset({"lag"})

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        for turn in (turn for tree in trees for turn in tree.turns):
            turn.streams["lag"] = np.zeros(len(turn.ids))
            for version, _ in turn.versions:
                turn.streams["lag"][drawn_by(turn, version)] = models["learner"].version - version
