"""What a local Fisher costs: multiply-adds of a step and of a refresh, from the shapes alone."""

from __future__ import annotations

from math import prod

from sngd_compile.config import TWO_SIDED
from sngd_compile.plan.records import Site


def step_work(site: Site) -> int:
    """Multiply-adds that the root adds to a step at the most: one triangle each way.

    A root of low rank adds two skinny products each way instead, an eigen kind full rotations.
    """
    elements, width = prod(site.layout.matrix), max(site.factor_sizes)
    if site.kind == "diagonal":
        return 2 * elements
    if site.config.root == "nystrom":
        rank = site.config.rank
        return 4 * elements * (min(rank, width) + min(rank, _output_width(site)))
    triangles = 2 if site.kind == "eigen" else 1
    return triangles * elements * (width + _output_width(site))


def refresh_work(site: Site) -> int:
    """Multiply-adds of a refresh, about: a Cholesky factor, then w', g' and momentum moved.

    An eigen kind has eigenvectors instead, and moves by full rotations.
    """
    elements, other = prod(site.layout.matrix), _output_width(site)
    if site.kind == "diagonal":
        return 3 * 2 * elements
    sizes = site.factor_sizes
    cubes = sum(size**3 for size in sizes) + other**3
    if site.kind == "eigen":
        return 9 * site.factor_count * cubes + 3 * 2 * elements * (max(sizes) + other)
    factors = site.factor_count * cubes // 3
    return factors + 3 * 3 * elements * (max(sizes) + other) // 2


def _output_width(site: Site) -> int:
    """Rows of the output side's factor; 0 without one."""
    return site.layout.outputs if site.kind in TWO_SIDED else 0
