"""The errors these operations raise: one base, so that a caller can catch them all."""


class KernelError(Exception):
    """Report an argument no operation of this package can work with."""


class KernelTypeError(KernelError, TypeError):
    """Report an argument of the wrong type or dtype."""


class KernelValueError(KernelError, ValueError):
    """Report an argument of the right type with an impossible value, rank, shape or device."""


class KernelUnavailableError(KernelError, RuntimeError):
    """Report that SNGD_KERNELS demands a path that this machine or these arguments do not have."""


class NotPositiveDefiniteError(KernelValueError):
    """Report a matrix without a Cholesky factor, its place in the batch and the failing pivot."""


class NotConvergedError(KernelError, ArithmeticError):
    """Report an iteration whose residual is still too large after the last allowed step."""
