"""Products with a transposed right factor, and what an iteration for a root adds to them."""

from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from . import ops
from .cholesky_inverse import ROOT_DTYPES


def matmul_nt(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    addend: Tensor | None = None,
    gamma: float = 0.0,
    symmetric: bool = False,
) -> Tensor:
    """Return `alpha A B^T + beta D + gamma I` for each matrix of the batch, in one pass.

    Args:
        a: `A` `[*, M, K]`, float32 or float64, any strides.
        b: `B` `[*, N, K]`, the same leading axes, dtype and device.
        alpha: factor of the product.
        beta: factor of the addend; without one it means nothing.
        addend: `D` `[*, M, N]`, the same leading axes, dtype and device.
        gamma: factor of the identity.
        symmetric: promise that the result is symmetric, `M = N`: half of the tiles are computed and
            mirrored. Whether it is so is not checked.

    Returns:
        A new tensor `[*, M, N]`; exactly symmetric with `symmetric`. No gradient flows.

    Raises:
        KernelTypeError: a dtype is neither float32 nor float64, or they differ.
        KernelValueError: a shape or device does not fit.

    Reads `K (M + N) + M N` entries once for each tile, writes `M N`; `K M N` multiply-adds or half.

    Source: docs/method.md, roots. Checked by tests/ops/test_matmul_nt.py.
    """
    return product_and_norm(
        a, b, alpha=alpha, beta=beta, addend=addend, gamma=gamma, symmetric=symmetric
    )[0]


def product_and_norm(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    addend: Tensor | None = None,
    gamma: float = 0.0,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return what `matmul_nt` does and its Frobenius norm, not divided by anything, `[*]`."""
    others = [b] if addend is None else [b, addend]
    _check_dtypes(a, others)
    lead = a.shape[:-2]
    wanted = (a.shape[-2], b.shape[-2])
    fits = a.dim() == b.dim() >= 2 and b.shape[:-2] == lead and a.shape[-1] == b.shape[-1]
    if addend is not None:
        fits = fits and addend.shape == (*lead, *wanted)
    if not fits or (symmetric and wanted[0] != wanted[1]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (a, *others))
        square = ", M = N" if symmetric else ""
        raise KernelValueError(
            f"the shapes are {shapes}; expected [*, M, K], [*, N, K] and an addend "
            f"[*, M, N]{square}"
        )
    flat = [tensor.detach().reshape(lead.numel(), *tensor.shape[-2:]) for tensor in (a, *others)]
    product, norm = ops.matmul_nt(
        flat[0], flat[1], flat[2] if len(flat) > 2 else None, alpha, beta, gamma, symmetric
    )
    return product.view(*lead, *wanted), norm.view(lead)


def _check_dtypes(a: Tensor, others: list[Tensor]) -> None:
    """Reject dtypes that a root cannot be computed in, and mixtures."""
    if a.dtype not in ROOT_DTYPES or any(tensor.dtype != a.dtype for tensor in others):
        names = ", ".join(str(tensor.dtype) for tensor in (a, *others))
        raise KernelTypeError(
            f"the dtypes are {names}; expected float32 or float64, the same for all: convert first"
        )
    for tensor in others:
        if tensor.device != a.device:
            raise KernelValueError(
                f"a is on {a.device}, another matrix on {tensor.device}; expected one device"
            )
