"""Curves of the page, as points of a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, HEIGHT = 320.0, 120.0
"""Of a picture, in its own units."""

MOST_POINTS = 128
"""Of a curve: a picture of this width shows no more."""


@dataclass(frozen=True)
class Curve:
    """A line in a picture of `WIDTH` by `HEIGHT`.

    Args:
        points: As the attribute of an SVG polyline has them.
        lowest: What its lower edge stands for.
        highest: What its upper edge stands for.
        first: What its left edge stands for.
        last: What its right edge stands for.
        level: How high a level lies that is drawn across, or None.
        is_logarithmic: Whether heights are logarithms.
    """

    points: str
    lowest: float
    highest: float
    first: float
    last: float
    level: float | None = None
    is_logarithmic: bool = False


def spectrum(metric: Tensor, damping: float) -> Curve:
    """Return the eigenvalues of a metric, largest first, with its damping as a level.

    Args:
        metric: `[*, D, D]`; of several groups the first is drawn.
        damping: What was added to the diagonal.
    """
    first = metric.detach().flatten(0, -3)[0] if metric.dim() > 2 else metric.detach()
    values = torch.linalg.eigvalsh(first.double().cpu()).flip(0).clamp_min(1e-300).tolist()
    return curve([*enumerate(values, 1)], logarithmic=True, level=damping or None)


def curve(
    pairs: Sequence[tuple[float, float]], logarithmic: bool = False, level: float | None = None
) -> Curve:
    """Return the line through pairs; those that are not finite are left out.

    Args:
        pairs: Of what goes to the right, increasing, and a height.
        logarithmic: Whether heights, all positive, are drawn as their logarithms.
        level: A height to draw across.
    """
    kept = [(x, y) for x, y in pairs if math.isfinite(y)] or [(0.0, 1.0)]
    # The last one too, which is the present state.
    kept = [*kept[:-1][:: math.ceil(len(kept) / (MOST_POINTS - 1))], kept[-1]]
    heights = [y for _, y in kept] + ([] if level is None else [level])
    lowest, highest = min(heights), max(heights)
    first, last = kept[0][0], kept[-1][0]

    def right(x: float) -> float:
        return WIDTH * (x - first) / ((last - first) or 1.0)

    def up(y: float) -> float:
        low, high, at = (math.log(v) if logarithmic else v for v in (lowest, highest, y))
        return HEIGHT * (1.0 - (at - low) / ((high - low) or 1.0))

    points = " ".join(f"{right(x):.1f},{up(y):.1f}" for x, y in kept)
    line = None if level is None else round(up(level), 1)
    return Curve(points, lowest, highest, first, last, line, logarithmic)
