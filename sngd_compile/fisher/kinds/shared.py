"""`E[x~ x~^T]`: one matrix over the inputs of a layer, for all its outputs."""

from sngd_compile.fisher.kinds.base import FisherKind
from sngd_compile.registry import register_kind


@register_kind
class Shared(FisherKind):
    """The local Fisher of the authors' first and last layers, and of FOOF.

    Source: arXiv 2412.07441 and the authors' code; arXiv 2201.12250. Laws 5 and 6 test it.
    """

    name = "shared"
