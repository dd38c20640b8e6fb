"""Statistics over groups of rows."""

from __future__ import annotations

import numpy as np

from agentgym.pack import Floats, Ints
from agentgym.trainers.credit.grpo import EPSILON


def contrasts(values: Floats, group: Ints, scale: str = "none", ddof: int = 1, among: tuple[Floats, Ints] | None = None) -> Floats:
    """``value - mean`` of its group, over ``std + 1e-6`` where scale is "std". Shape (N,); groups are numbers from 0 on.

    The statistics are over ``among``, other values and their groups, where it is given. Exactly 0 where a group has but one
    value or its values are equal up to rounding, and for a value that is its group's mean.
    """
    if not len(values):
        return values
    others, of_other = among or (values, group)
    size = np.bincount(of_other, minlength=int(group.max()) + 1)
    mean = np.bincount(of_other, others, len(size)) / np.maximum(size, 1)
    high, low = np.full(len(size), -np.inf), np.full(len(size), np.inf)
    np.maximum.at(high, of_other, others)
    np.minimum.at(low, of_other, others)
    rounding = np.maximum(1.0, np.maximum(np.abs(high), np.abs(low)))
    centred = values - mean[group]
    unlike = (high - low > 1e-6 * rounding)[group] & (np.abs(centred) > 1e-9 * rounding[group])
    if scale == "std":
        squares = np.bincount(of_other, (others - mean[of_other]) ** 2, len(size))
        centred /= (np.sqrt(squares / np.maximum(size - ddof, 1)) + EPSILON)[group]
    return np.where(unlike, centred, 0.0)


def joined(one: Ints, other: Ints) -> Ints:
    """A number from 0 on for each pair, shape (N,) twice to shape (N,); the same for equal pairs."""
    if not len(one):
        return one
    found: Ints = np.unique(one * (int(other.max()) + 1) + other, return_inverse=True)[1]
    return found
