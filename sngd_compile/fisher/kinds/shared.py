"""`E[x~ x~^T]`: one matrix over the inputs of a layer, for all its outputs."""

from sngd_compile.config import NYSTROM, RANK, Config
from sngd_compile.fisher.kinds.base import Choice, FisherKind, Uses
from sngd_compile.fisher.kinds.sketch import sketched
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.registry import register_kind

NARROW = 4
"""Inputs for each column of a sketch up to which a factor is exact.

A row that is observed adds `D^2 / 2` multiply-adds to the one and `2 D l` to the other. An element
of the weight takes `D` and `2 l` a step, each way: a step alone would gain from half as many
inputs on, but there the exact factor is the better metric for little.
"""


@register_kind
class Shared(FisherKind):
    """The local Fisher of the authors' first and last layers, and of FOOF.

    Source: arXiv 2412.07441 and the authors' code; arXiv 2201.12250. Laws 5 and 6 test it.
    """

    name = "shared"

    def choose(self, spec: FisherSpec, uses: Uses) -> Choice | str:
        """Sketch a factor that is wide; a root that is asked for is one of an exact factor."""
        return Choice(exact_or_sketch(spec, uses.config))


def exact_or_sketch(spec: FisherSpec, config: Config) -> FisherSpec:
    """Return the record of an exact factor, or of a sketch where a layer is wide."""
    rank = config.rank
    if config.root == NYSTROM:
        return sketched(spec, rank or RANK)
    if rank is None or spec.size <= NARROW * rank or config.root != Config.root:
        return spec
    return sketched(spec, rank)
