"""Second moments of activations: tensors in, tensors out, nothing known of graphs or modules."""

from .conv_path import ConvPath, conv_path
from .conv_second_moment import conv_second_moment
from .errors import KernelError, KernelTypeError, KernelValueError
from .second_moment import second_moment

__all__ = [
    "ConvPath",
    "KernelError",
    "KernelTypeError",
    "KernelValueError",
    "conv_path",
    "conv_second_moment",
    "second_moment",
]
