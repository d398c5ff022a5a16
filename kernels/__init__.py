"""Second moments of activations and roots of their inverses: tensors in, tensors out.

Nothing here knows of graphs or modules. Operations have a Triton kernel for GPUs and a path of
PyTorch's own operations; `explain` names the one a call takes, SNGD_KERNELS forces one.
"""

from .bag_squared_sum import bag_squared_sum
from .channel_second_moment import channel_second_moment
from .cholesky_inverse import cholesky_inverse, cholesky_inverse_ex
from .conv_path import ConvPath, conv_path
from .conv_second_moment import conv_second_moment
from .diagonal_root import diagonal_root_ex
from .dispatch import Choice
from .eigen_root import eigen_root_ex
from .eigenpairs import eigenpairs_ex
from .errors import (
    KernelError,
    KernelTypeError,
    KernelUnavailableError,
    KernelValueError,
    NotConvergedError,
    NotPositiveDefiniteError,
)
from .explain import explain
from .matmul_nt import matmul_nt
from .nystrom import nystrom_root_ex
from .roots import denman_beavers, newton_schulz, warm_root
from .second_moment import second_moment
from .squared_sum import squared_sum
from .token_counts import token_counts
from .unit_second_moment import unit_second_moment

__all__ = [
    "Choice",
    "ConvPath",
    "KernelError",
    "KernelTypeError",
    "KernelUnavailableError",
    "KernelValueError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "bag_squared_sum",
    "channel_second_moment",
    "cholesky_inverse",
    "cholesky_inverse_ex",
    "conv_path",
    "conv_second_moment",
    "denman_beavers",
    "diagonal_root_ex",
    "eigen_root_ex",
    "eigenpairs_ex",
    "explain",
    "matmul_nt",
    "newton_schulz",
    "nystrom_root_ex",
    "second_moment",
    "squared_sum",
    "token_counts",
    "unit_second_moment",
    "warm_root",
]
