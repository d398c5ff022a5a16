"""The errors these operations raise: one base, so that a caller can catch them all."""


class KernelError(Exception):
    """Report an argument no operation of this package can work with."""


class KernelTypeError(KernelError, TypeError):
    """Report an argument of the wrong type or dtype."""


class KernelValueError(KernelError, ValueError):
    """Report an argument of the right type with an impossible value, rank, shape or device."""
