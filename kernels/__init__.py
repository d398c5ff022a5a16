"""Second moments of activations and roots of their inverses: tensors in, tensors out.

Nothing here knows of graphs or modules. Operations have a Triton kernel for GPUs and a path of
PyTorch's own operations; `explain` names the one a call takes, SNGD_KERNELS forces one.
"""

# From the root of the repository, `import kernels` finds this folder, also when transformers looks
# for another package of that name. Imported twice, each operation would be registered twice, which
# takes the first one away from whoever calls it.
if __name__ == "sngd_kernels":
    from .conv.path import ConvPath, conv_path
    from .conv.second_moment import conv_second_moment
    from .conv.sketch import conv_sketch
    from .dispatch import Choice
    from .errors import (
        KernelError,
        KernelTypeError,
        KernelUnavailableError,
        KernelValueError,
        NotConvergedError,
        NotPositiveDefiniteError,
    )
    from .explain import explain
    from .moments.bag_squared_sum import bag_squared_sum
    from .moments.channel_second_moment import channel_second_moment
    from .moments.second_moment import second_moment
    from .moments.sketch import sketch
    from .moments.sketch_basis import sketch_basis
    from .moments.squared_sum import squared_sum
    from .moments.token_counts import token_counts
    from .moments.unit_second_moment import unit_second_moment
    from .roots.cholesky_inverse import cholesky_inverse, cholesky_inverse_ex
    from .roots.diagonal_root import diagonal_root_ex
    from .roots.eigen_root import eigen_root_ex
    from .roots.iterations import denman_beavers
    from .roots.matmul_nt import matmul_nt
    from .roots.sketch_root import SketchRoots, sketch_root_ex

__all__ = [
    "Choice",
    "ConvPath",
    "KernelError",
    "KernelTypeError",
    "KernelUnavailableError",
    "KernelValueError",
    "NotConvergedError",
    "NotPositiveDefiniteError",
    "SketchRoots",
    "bag_squared_sum",
    "channel_second_moment",
    "cholesky_inverse",
    "cholesky_inverse_ex",
    "conv_path",
    "conv_second_moment",
    "conv_sketch",
    "denman_beavers",
    "diagonal_root_ex",
    "eigen_root_ex",
    "explain",
    "matmul_nt",
    "second_moment",
    "sketch",
    "sketch_basis",
    "sketch_root_ex",
    "squared_sum",
    "token_counts",
    "unit_second_moment",
]
