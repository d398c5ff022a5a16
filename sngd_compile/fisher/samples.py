"""Which samples of a forward pass are observed, in which dtype, and whether they can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sngd_compile.fisher.schedule import ALL_ROWS

HALVES = (torch.float16, torch.bfloat16)


def is_strided(tensor: Tensor) -> bool:
    """Say whether a tensor is neither nested nor sparse."""
    return tensor.layout is torch.strided and not tensor.is_nested


def strided(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor: of a nested one those of all its parts, one after the other.

    A jagged batch `[N, *, K]` becomes `[sum of lengths, K]`, which has the same rows.
    """
    if is_strided(tensor):
        return tensor
    if not tensor.is_nested:
        return tensor.to_dense()
    if tensor.layout is torch.jagged:
        return tensor.values()
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in tensor.unbind()])


def real(samples: Tensor) -> Tensor:
    """Return samples as real ones: a weight multiplies real and imaginary parts alike."""
    return torch.cat([samples.real, samples.imag]) if samples.is_complex() else samples


def draw(
    samples: list[Tensor], most_rows: int, rows_each: int, least: int, seed: int
) -> list[Tensor]:
    """Draw whole samples without replacement, at least `least`, to get about `most_rows` rows."""
    available = samples[0].shape[0]
    wanted = max(-(-most_rows // rows_each), least)
    if most_rows == ALL_ROWS or wanted >= available:
        return samples
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(available, generator=generator)[:wanted]
    if samples[0].is_cuda:
        chosen = chosen.pin_memory()  # from there it is copied without waiting
    chosen = chosen.to(samples[0].device, non_blocking=True)
    return [tensor.index_select(0, chosen) for tensor in samples]


def finite_samples(
    samples: Sequence[Tensor], dtype: torch.dtype, takes_halves: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Widen samples, but for halves that can stay, and say whether all are finite and squarable."""

    def stays(tensor: Tensor) -> bool:
        is_half = takes_halves and dtype == torch.float32 and tensor.dtype in HALVES
        return is_half or not tensor.is_floating_point()

    wide = [tensor if stays(tensor) else tensor.to(dtype) for tensor in samples]
    return wide, _square_sum(wide).isfinite()


def _square_sum(samples: Sequence[Tensor]) -> Tensor:
    """Return a number that is finite only if every product of two activations is."""
    flat = [tensor.flatten() for tensor in samples if tensor.is_floating_point()]
    squares = [
        torch.linalg.vector_norm(tensor, dtype=torch.float32)
        if tensor.dtype in HALVES
        else torch.dot(tensor, tensor)
        for tensor in flat
    ]
    if len(squares) == 1:
        return squares[0]
    return torch.stack(squares).sum() if squares else torch.zeros((), device=samples[0].device)
