"""What the hooks ask of a weight that is trained in natural coordinates, of either way in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.roots.base import Root
from sngd_compile.training.change_guard import ChangeGuard
from sngd_compile.training.coordinates import Coordinates


class Site(Protocol):
    """A weight that is trained in natural coordinates: where it and its Fisher layer are."""

    @property
    def weight(self) -> Tensor:
        """The parameter that the optimizer steps."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The bias that joins, or None."""
        ...

    @property
    def fisher(self) -> FisherLayer:
        """The local Fisher layer."""
        ...

    @property
    def is_bias_joined(self) -> bool:
        """Whether a step of the parameter of the weight moves the bias too, or the other way."""
        ...

    @property
    def steps_primes(self) -> bool:
        """Whether the optimizer steps `w'` itself."""
        ...

    def holds(self, weight: Tensor) -> bool:
        """Say whether the site is as it was, and its weight this one."""
        ...

    def prime_gradients(self) -> list[Tensor]:
        """Return the present `g' = g R^T`, of the weight and of a bias in its local Fisher."""
        ...

    def prime_parameters(self) -> list[Tensor]:
        """Return the present `w' = w R^-1`, of the weight and of a bias in its local Fisher."""
        ...

    def prime_momenta(self, momenta: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the momenta of `w'`, one for each of `prime_gradients`; none where one lacks.

        Args:
            momenta: Those of parameters, by their ids.
        """
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients that an optimizer steps by, of the weight and of such a bias."""
        ...

    def coordinates(self, optimizers: Iterable[Any]) -> Coordinates:
        """Return all that moves with a root, gathered where it is sharded."""
        ...

    def guard(self, held: Coordinates) -> ChangeGuard | None:
        """Return what notices that the weight is another after a change of the root, if any can."""
        ...

    def change_root_(self, root: Root, held: Coordinates) -> None:
        """Give the layer another root and move along what was gathered; the function stays."""
        ...

    def part_bias_(self, optimizers: Iterable[Optimizer]) -> None:
        """Give the bias coordinates of its own; the function stays."""
        ...
