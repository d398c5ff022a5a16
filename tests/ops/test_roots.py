"""Laws of the Denman-Beavers root: `Z A Z = I`, and a refusal where it does not converge."""

import pytest
import torch
from torch import Tensor

from sngd_kernels import (
    KernelTypeError,
    KernelValueError,
    NotConvergedError,
    cholesky_inverse,
    denman_beavers,
)


def with_condition(condition: float, width: int, count: int = 2) -> Tensor:
    """Random matrices with eigenvalues from 37 down to 37 / condition."""
    vectors = torch.linalg.qr(torch.randn(count, width, width, dtype=torch.float64))[0]
    exponents = torch.linspace(0, 1, width, dtype=torch.float64)
    matrices = (vectors * 37 * condition**-exponents) @ vectors.mT
    return (matrices + matrices.mT) / 2


def residual(root: Tensor, matrices: Tensor) -> float:
    error = root @ matrices @ root.mT - torch.eye(matrices.shape[-1], dtype=torch.float64)
    return torch.linalg.matrix_norm(error).max().item()


@pytest.mark.parametrize("width", [1, 2, 63, 100])
def test_symmetric_root(width: int) -> None:
    matrices = with_condition(1e4, width)
    root = denman_beavers(matrices)
    assert residual(root, matrices) <= 1e-6
    assert torch.equal(root, root.mT)
    assert (torch.linalg.eigvalsh(root) > 0).all()
    assert denman_beavers(matrices[0]).shape == (width, width)


@pytest.mark.parametrize(("condition", "allowed"), [(1e2, 1e-4), (1e4, 1e-3), (1e5, 1e-2)])
def test_float32_is_as_good_as_a_factorisation(condition: float, allowed: float) -> None:
    matrices = with_condition(condition, 100)
    assert residual(denman_beavers(matrices.float()).double(), matrices) <= allowed
    assert residual(cholesky_inverse(matrices.float()).double(), matrices) <= allowed


def test_few_iterations_are_enough() -> None:
    denman_beavers(with_condition(1e4, 64), iterations=8)


def test_refuses_what_does_not_converge() -> None:
    with pytest.raises(NotConvergedError, match=r"denman_beavers: the residual is .* after 1 iter"):
        denman_beavers(with_condition(1e4, 10), iterations=1)
    with pytest.raises(NotConvergedError, match=r"residual is inf.*use cholesky_inverse"):
        denman_beavers(torch.full((3, 3), torch.nan))
    with pytest.raises(NotConvergedError):
        denman_beavers(-torch.eye(3))
    with pytest.raises(KernelValueError, match="iterations is 0; expected at least 1"):
        denman_beavers(torch.eye(3), iterations=0)
    with pytest.raises(KernelTypeError, match="bfloat16"):
        denman_beavers(torch.eye(3).bfloat16())
    with pytest.raises(KernelValueError, match="expected square"):
        denman_beavers(torch.ones(2, 3))
