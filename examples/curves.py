"""Trade-off curves: where to measure a rule that has a knob, and what it does at a number of calls between points."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np


def between_points(curve: Sequence[tuple[float, float]], at: Sequence[float]) -> np.ndarray:
    """The values of a curve of (x, value) at each x of `at`, on the line between the points; nan outside of them."""
    x, values = np.array(sorted(curve)).T
    return np.interp(at, x, values, left=np.nan, right=np.nan)


def spread_settings(
    nfe_of: Callable[[float], float], count: int, *, low: float = 1.0, high: float = math.inf
) -> dict[float, float]:
    """Measure a knob in [0, 1] at both ends and, again and again, in the middle of the widest gap in log NFE.

    Only the part of a gap between `low` and `high` calls counts.

    Args:
        nfe_of: measures a setting; its mean NFE.
        count: settings.

    Returns:
        the NFE of each setting. Fewer than `count` where nothing is left to look at.
    """
    measured = {x: nfe_of(x) for x in (0.0, 1.0)}
    while len(measured) < count:
        gaps = []
        for left, right in pairwise(sorted(measured)):
            ends = sorted(min(max(measured[x], low), high) for x in (left, right))
            gaps.append((math.log(ends[1] / ends[0]) * (right - left > 1e-4), (left + right) / 2))
        widest, x = max(gaps)
        if widest == 0:
            break
        measured[x] = nfe_of(x)
    return measured


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Those of the points (x, value) that are better than every one with as little x, by rising x."""
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best


def mixed(points: Sequence[tuple[float, np.ndarray]], nfe: float) -> np.ndarray | None:
    """What each problem gets from a rule that takes `nfe` calls in the mean.

    Between two settings it is their mixture: each is used for a share of the problems, drawn at random, so that the
    mean is `nfe`; what a problem gets is the mean over that draw. Where even the slowest setting is faster, that one.

    Args:
        points: mean NFE and what each problem got, of the settings.
        nfe: mean calls.

    Returns:
        [problems], or None where even the fastest setting takes more calls.
    """
    points = sorted(points, key=lambda point: point[0])
    faster = [point for point in points if point[0] <= nfe]
    slower = [point for point in points if point[0] > nfe]
    if not faster:
        return None
    if not slower:
        return faster[-1][1]
    (low, fast), (high, slow) = faster[-1], slower[0]
    share = (nfe - low) / (high - low)
    return (1 - share) * fast + share * slow
