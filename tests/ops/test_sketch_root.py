"""Laws of `sketch_root_ex`: a root of what stands for the matrix, and its inverse."""

import pytest
import torch
from torch import Tensor

from sngd_kernels import KernelValueError, SketchRoots, sketch_basis, sketch_root_ex
from sngd_kernels.reference import sketch_metric_reference

SIZE = 40
EPS = torch.finfo(torch.float64).eps


def with_spectrum(*eigenvalues: Tensor) -> Tensor:
    vectors = torch.linalg.qr(torch.randn(len(eigenvalues), SIZE, SIZE, dtype=torch.float64)).Q
    matrices = (vectors * torch.stack(eigenvalues)[:, None, :]) @ vectors.mT
    return (matrices + matrices.mT) / 2


def basis(columns: int) -> Tensor:
    return sketch_basis(SIZE, columns, torch.float64, torch.device("cpu"))


def roots_of(matrices: Tensor, columns: int, damping: float, eps: float = EPS) -> SketchRoots:
    images = matrices @ basis(columns)
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = 10 * eps * (torch.linalg.matrix_norm(images) + damping)
    return sketch_root_ex(images, basis(columns), trace, torch.full_like(trace, damping), shift)


def written_out(found: SketchRoots) -> tuple[Tensor, Tensor]:
    eye, tail = torch.eye(SIZE, dtype=torch.float64), found.tail[..., None, None]
    root = tail * (eye - found.basis @ found.middle @ found.basis.mT)
    return root, (eye + found.basis @ found.inverse_middle @ found.basis.mT) / tail


def decay(condition: float) -> Tensor:
    return torch.logspace(0, -float(torch.tensor(condition).log10()), SIZE, dtype=torch.float64)


@pytest.mark.parametrize("columns", [1, 7, SIZE])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
def test_a_root_is_one_of_what_stands_for_the_matrix(condition: float, columns: int) -> None:
    matrices = with_spectrum(decay(condition), decay(condition).flip(0), torch.ones(SIZE).double())
    damping = 0.3 / condition
    found = roots_of(matrices, columns, damping)
    assert found.info.tolist() == [0, 0, 0]
    root, inverse = written_out(found)
    tolerance = 1e-12 * condition * max(1.0, condition / 1e3)
    eye = torch.eye(SIZE, dtype=torch.float64)
    assert (root @ inverse - eye).abs().max() < max(1e-12, tolerance / 10)
    for one, matrix in zip(root, matrices, strict=True):
        metric = sketch_metric_reference(matrix, basis(columns), damping)
        # Which is a pseudo-inverse of a matrix as ill-conditioned as this one.
        assert (one.T @ one @ metric - eye).abs().max() < tolerance
    if columns == SIZE:
        assert (root @ (matrices + damping * eye) @ root.mT - eye).abs().max() < tolerance


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    spectrum = torch.cat([torch.tensor([900.0, 30, 4]), torch.zeros(SIZE - 3)]).double()
    matrices = with_spectrum(spectrum)
    root, _ = written_out(roots_of(matrices, 5, 0.1))
    eye = torch.eye(SIZE, dtype=torch.float64)
    assert (root @ (matrices + 0.1 * eye) @ root.mT - eye).abs().max() < 1e-9


def test_float32_statistics_of_low_rank_have_a_root() -> None:
    narrow = with_spectrum(torch.cat([torch.ones(2), torch.zeros(SIZE - 2)]).double()).float()
    images = (narrow @ basis(8).float()).double()
    eps = torch.finfo(torch.float32).eps
    shift = 10 * eps * torch.linalg.matrix_norm(images)
    trace = torch.full((1,), 2.0, dtype=torch.float64)
    found = sketch_root_ex(images, basis(8), trace, 1e-3 * trace, shift)
    root, _ = written_out(found)
    eye = torch.eye(SIZE, dtype=torch.float64)
    assert (root @ (narrow.double() + 2e-3 * eye) @ root.mT - eye).abs().max() < 5e-3


def test_several_axes_and_the_same_bits_again() -> None:
    matrices = with_spectrum(*[decay(1e2)] * 6).view(2, 3, SIZE, SIZE)
    found = roots_of(matrices, 7, 0.1)
    assert [part.shape for part in found[:3]] == [(2, 3, SIZE, 7), (2, 3, 7, 7), (2, 3, 7, 7)]
    assert found.tail.shape == found.info.shape == (2, 3)
    one = roots_of(matrices[1, 2], 7, 0.1)
    for part, again, alone in zip(found, roots_of(matrices, 7, 0.1), one, strict=True):
        assert torch.equal(part, again)
        torch.testing.assert_close(part[1, 2], alone)


def test_what_has_no_root_says_so_and_leaves_the_others() -> None:
    good = with_spectrum(decay(10))[0]
    zeros, negative, infinite = torch.zeros_like(good), -good, good.clone()
    infinite[3, 4] = torch.inf
    damped = roots_of(torch.stack([good, zeros, negative, infinite]), 5, 0.1)
    assert damped.info.tolist() == [0, 0, 1, -1]
    torch.testing.assert_close(written_out(damped)[0][1], 0.1**-0.5 * torch.eye(SIZE).double())
    found = roots_of(torch.stack([good, zeros, negative, infinite]), 5, 0.0)
    assert found.info.ne(0).tolist() == [False, True, True, True]
    for part in found[:4]:
        assert part[0].isfinite().all()
        assert part[1:].isnan().all()
    torch.testing.assert_close(found.basis[0], roots_of(good[None], 5, 0.0).basis[0])


def test_nothing_left_for_the_rest_is_no_root() -> None:
    """Without damping a matrix of low rank has none, and neither has a whole sketch."""
    spectrum = torch.cat([torch.ones(3), torch.zeros(SIZE - 3)]).double()
    assert roots_of(with_spectrum(spectrum), 5, 0.0).info.item() != 0
    assert roots_of(with_spectrum(decay(10)), SIZE, 0.0).info.item() != 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    one = torch.ones(())
    with pytest.raises(KernelValueError, match=r"images have shape \(3, 2\)"):
        sketch_root_ex(torch.ones(3, 2), basis(2), one, one, one)
