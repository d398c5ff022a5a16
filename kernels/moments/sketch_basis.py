"""The columns that a sketch multiplies a moment by: the same numbers everywhere, unstored."""

from functools import lru_cache
from math import pi, sqrt

import torch
from torch import Tensor

from ..errors import KernelValueError

CACHED = 64
"""Bases kept; a network has one for each width of its layers, times its dtypes and devices."""

_MASK = 2**32 - 1
_MULTIPLIER = 0x45D9F3B


def sketch_basis(size: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `Omega` `[D, l]`, orthonormal columns that look random to every matrix in use.

    Columns of the orthonormal DCT-II of size D, chosen by a hash without replacement, their rows
    multiplied by signs from the same hash: `Omega_nj = s_n c_j cos(pi (2n + 1) k_j / 2D)`. The
    signs make every input, alone or with others, look the same to every cosine. With `l = D` it is
    an orthogonal matrix. No generator is asked, so it is equal to rounding on every machine and
    with every release of torch, and no file need hold it.

    Args:
        size: D, at least 1.
        columns: l, in [1, D].
        dtype: of the result; it is found in float64.
        device: where the result lies. One tensor serves all who ask: do not write to it.

    Raises:
        KernelValueError: `columns` is not in [1, D].

    Source: Tropp, Yurtsever, Udell and Cevher 2017, arXiv 1609.00048, on scrambled cosine
    transforms as test matrices. Checked by tests/ops/test_sketch.py.
    """
    if not 1 <= columns <= size:
        raise KernelValueError(
            f"columns is {columns}; expected one in [1, {size}]: the basis is orthonormal"
        )
    return basis_once(size, columns, dtype, device)


@lru_cache(maxsize=CACHED)
def basis_once(size: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make it, and remember it."""
    # A basis made in inference mode would be refused by every later training step.
    with torch.inference_mode(False), torch.no_grad():
        numbers = torch.arange(size, dtype=torch.int64, device="cpu")
        signs = 1.0 - 2.0 * (_hash(numbers) >> 16 & 1).double()
        # A hash without collisions has no ties, so the order is the same for every sort.
        chosen = torch.argsort(_hash(numbers + size))[:columns]
        # Whole periods are taken off while the numbers are integers, exactly.
        quarters = (2 * numbers[:, None] + 1) * chosen % (4 * size)
        basis = torch.cos(quarters.double() * (pi / (2 * size))) * sqrt(2 / size)
        basis[:, chosen == 0] = sqrt(1 / size)
        return (basis * signs[:, None]).to(device=device, dtype=dtype)


def _hash(numbers: Tensor) -> Tensor:
    """Map 32-bit integers one to one to 32-bit integers without a pattern.

    Source: Mueller, "hash function for integers", https://stackoverflow.com/a/12996028. Its factor
    has 27 bits, so that int64 holds every product.
    """
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * _MULTIPLIER & _MASK
    return (numbers >> 16) ^ numbers
