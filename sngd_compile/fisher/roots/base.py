"""The extension point for roots `R` of the inverse of a damped factor, `R^T R = G^-1`.

Legend: O outputs, K weights of one output, D = K + 1 with a bias (last), K without. Tensors may
have a leading groups axis. With `w = [W b]`, `w' = [W' b']`, a root gives four maps:

    fold            w  = w' R           unfold            w' = w R^-1
    to_prime        g' = g R^T          from_prime        g  = g' R^-T        (gradients)

and `natural`, `g R^T R`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor | None]
"""`W [*, O, K]` and `b [*, O]`, or no bias."""

Change = Callable[[Tensor, Tensor | None], Pair]
"""A map of weights and biases, `[*, O, K]` and `[*, O]`."""


class Root(nn.Module):
    """The root of a local Fisher: of one factor, or put together from the roots of several."""

    has_bias: bool

    @property
    @abstractmethod
    def sides(self) -> Sequence[FactorRoot]:
        """The roots that are decomposed one by one, in the order of `FisherKind.damped`."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers."""
        return next(iter(self.sides[0]._buffers.values())).dtype  # type: ignore[union-attr]

    def copied_from(self, source: Root) -> None:
        """Take what else is known of a root whose buffers were copied into these."""

    @property
    def columns(self) -> int:
        """Columns of a sketch's root; 0 of others."""
        return 0

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return `R`, shaped like the factor, the bias last."""

    def squared_norm(self) -> Tensor:
        """Return `|R|^2`, `[*]`, float64."""
        return self.matrix().double().square().sum((-2, -1))

    def scale_(self, factor: float) -> None:
        """Become `factor R`; of a root with two sides, on that of the inputs."""
        self.sides[0].scale_(factor)

    def singular_range(self) -> tuple[Tensor, Tensor]:
        """Return the least and the largest singular value of R, `[*]` each, float64."""
        values = torch.linalg.svdvals(self.matrix().double())
        return values[..., -1], values[..., 0]

    def output_matrix(self) -> Tensor | None:
        """Return `R_B` `[*, O, O]`, where a root acts on the outputs too."""
        return None

    def channel_numbers(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return a, g, s `[C]`, where each of C groups has one weight: roots `[[a, 0], [-s, g]]`.

        None of any other root, and where no such short way is known.
        """
        return None

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w' R` for `W' [*, O, K]`, `b' [*, O]`."""

    @abstractmethod
    def unfold(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `w R^-1` for `W [*, O, K]`, `b [*, O]`."""

    @abstractmethod
    def to_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g R^T` that `w'` has where `w` has `g`."""

    @abstractmethod
    def from_prime(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return the gradient `g' R^-T` that `w` has where `w'` has `g'`."""

    def natural(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """Return `g R^T R`, the natural gradient."""
        return self.fold(*self.to_prime(weight, bias))

    @abstractmethod
    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `W' (R x~)` for rows `[N, K]`: the activation side."""

    def moves_to(self, new: Any, outputs: int, width: int) -> tuple[Change, Change]:
        """Return how `w'` moves to the coordinates of a new root, and how its gradient does.

        `w'_new = (w' R) R_new^-1`, in two steps: their product would lose what the condition
        numbers of both roots take.

        Args:
            new: A root of the same kind and shape.
            outputs: O, for a kind of root whose fastest way depends on it.
            width: K, likewise.
        """

        def step(weight: Tensor, bias: Tensor | None) -> Pair:
            moved: Pair = new.unfold(*self.fold(weight, bias))
            return moved

        def gradient(weight: Tensor, bias: Tensor | None) -> Pair:
            moved: Pair = new.to_prime(*self.from_prime(weight, bias))
            return moved

        return step, gradient


@dataclass(frozen=True)
class RootShape:
    """What the identity root of one factor is made from.

    Args:
        size: D, weights of one output, bias included.
        has_bias: Whether the last coordinate is the bias.
        groups: Leading axis; None for none.
        dtype: float32 or float64.
        device: Where the buffers live.
        rank: Columns of a sketch.
    """

    size: int
    has_bias: bool
    groups: int | None
    dtype: torch.dtype
    device: torch.device
    rank: int = 0

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axis, where there is one."""
        return () if self.groups is None else (self.groups,)

    def full(self, value: float, *sizes: int) -> Tensor:
        """Return `[*lead, *sizes]`, filled with a number."""
        return torch.full((*self.lead, *sizes), value, dtype=self.dtype, device=self.device)

    def identity(self, size: int) -> Tensor:
        """Return `[*lead, size, size]` identities, each with memory of its own."""
        if self.device.type == "meta":  # where `torch.eye` is Python, slower than a root is found
            return self.full(0.0, size, size)
        eye = torch.eye(size, dtype=self.dtype, device=self.device)
        return eye.expand(*self.lead, size, size).clone()


class FactorRoot(Root):
    """The root of one factor: a subclass a file, with a name by `@register_root`.

    Args:
        shape: Of the factor.
    """

    def __init__(self, shape: RootShape) -> None:
        """Start as the identity: a subclass registers its buffers."""
        super().__init__()
        self.has_bias = shape.has_bias

    @property
    def sides(self) -> Sequence[FactorRoot]:
        """Itself."""
        return [self]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers."""
        return next(iter(self._buffers.values())).dtype  # type: ignore[union-attr]

    def numbers(self) -> Iterable[Tensor]:
        """Return its buffers in the order of their registration.

        Every fold asks for them, and `nn.Module` looks for an attribute in three other places.
        """
        return self._buffers.values()  # type: ignore[return-value]

    def scale_(self, factor: float) -> None:
        """Become `factor R`: here, every number is one of R."""
        for number in self.numbers():
            number.mul_(factor)

    @classmethod
    @abstractmethod
    def decompose(cls, damped: Tensor, roots: Sequence[Any]) -> Decomposition:
        """Find the roots of matrices of one shape, in one call.

        Args:
            damped: Symmetric `[B, ..., D, D]` (a diagonal root: `[B, ..., D]`), damping included.
            roots: Which will take them, B of this class.
        """

    @abstractmethod
    def take_(self, *parts: Tensor) -> None:
        """Become the root that `decompose` found: its parts, without the axis B."""

    @classmethod
    def step_work(cls, elements: int, width: int) -> int:
        """Count the multiply-adds that applying it adds to a step: here, one product each way.

        Args:
            elements: Of the weight.
            width: D, rows of the factor.
        """
        return 2 * elements * width


@dataclass(frozen=True)
class Decomposition:
    """What became of matrices that were decomposed in one call.

    Args:
        parts: What a root is made of, with the axis B in front.
        info: `[B, ...]`, 0 where a matrix was definite, so that it has a root.
        fallback_reason: "", or why another method had to stand in for the one that was asked for.
    """

    parts: tuple[Tensor, ...]
    info: Tensor
    fallback_reason: str = ""


@torch.no_grad()
def decompose_all_(roots: Sequence[FactorRoot], damped: Sequence[Tensor]) -> tuple[list[bool], str]:
    """Become the roots of matrices of one shape, in one call.

    Args:
        roots: Of one class, shape, dtype and device.
        damped: A damped factor for each.

    Returns:
        For each whether its matrix was definite, otherwise it stays as it was; and "", or why
        another method had to stand in.
    """
    batch = damped[0][None] if len(damped) == 1 else torch.stack([*damped])
    found = type(roots[0]).decompose(batch, roots)
    # Asked once for all, since on a device it waits (decision 18). A layer takes the roots of all
    # its groups or of none, since one damping is remembered for them together.
    definite = (found.info == 0).reshape(len(roots), -1).all(1).tolist()
    for root, good, *parts in zip(roots, definite, *found.parts, strict=True):
        if good:
            # Buffers are replaced there, not written: `next_roots` makes them without memory.
            root.take_(*parts)
    return definite, found.fallback_reason


@torch.no_grad()
def copy_root_(root: Root, source: Root) -> None:
    """Write the buffers of `source` into those of `root`, in place and in their dtype."""
    for name, buffer in root.named_buffers():
        buffer.copy_(source.get_buffer(name))
    root.copied_from(source)
