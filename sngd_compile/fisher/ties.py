"""What a Fisher layer knows of others in this process: neither copied with it nor saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn


def _nothing() -> None:
    """Stand for a reference to what is gone or never was."""


Reference = Callable[[], Any]


class Ties:
    """Hold what ties one Fisher layer to others.

    It stands on the layer, so that nothing outlives it, and keeps no other layer alive.

    Attributes:
        copied: Whether any layer of this process was ever deep-copied.
        origin: Gives the layer that this one is a deep copy of, or None.
        leader: Gives the layer whose roots this one takes over, or None.
        module: Gives the module of a layer that follows another or is a copy, or None.
        copies: Deep copies of this layer that nobody trains.
        twins: Other tensors of its network that began with the numbers of its weight.
        followers: Layers that take over the roots of this one.
        weight: Gives w' as its module holds it now, or None where no module is known.
        process_group: The processes that train its weight in parallel; None for this one alone.
        is_hooked: Whether loading it is followed up.
        weight_sum: Sum of its weight when it was copied or last looked at, if no change is due
            since.
        first_squares: Sum of the squares of its weight when it was reconstructed, if no change was
            due since.
        forward_pass: What the forward pass of its network that is running, or ran last, has folded.
        is_folded_whole: Whether its weight was folded as a whole in the last forward pass.
    """

    copied: ClassVar[bool] = False

    def __init__(self) -> None:
        """Start with none."""
        self.origin: Reference = _nothing
        self.leader: Reference = _nothing
        self.module: Reference = _nothing
        self.followers: WeakSet[nn.Module] = WeakSet()
        self.copies: WeakSet[nn.Module] = WeakSet()
        self.weight: Reference = _nothing
        self.twins: list[Any] = []
        self.process_group: Any = None
        self.is_hooked = False
        self.weight_sum: Tensor | None = None
        self.first_squares: float | None = None
        self.forward_pass: Any = None
        self.is_folded_whole = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Ties:
        """Leave the ties of the original to the original."""
        return Ties()

    def __reduce__(self) -> tuple[type[Ties], tuple[()]]:
        """Leave them out of files."""
        return (Ties, ())

    @classmethod
    def of_copy(cls, original: nn.Module) -> Ties:
        """Return the ties of a deep copy."""
        cls.copied, made = True, cls()
        made.origin = ref(original)
        return made

    def remember(self, module: nn.Module, weight: Tensor) -> None:
        """Note what a copy is when it is made: its module and its weight."""
        self.module = ref(module)
        self.weight_sum = weight.detach().double().sum()

    def stand_alone(self, layer: nn.Module) -> None:
        """Note that an optimizer trains this copy: it is a network of its own from now on."""
        origin = self.origin()
        if origin is not None:
            origin.ties.copies.discard(layer)
            self.origin = _nothing

    def expect_change(self) -> None:
        """Note that the weight changed as it should: it was loaded, or has a new root."""
        self.weight_sum = self.first_squares = None

    def expect_load(self) -> None:
        """Note that its network is loaded, other tensors of it too."""
        self.expect_change()
        for twin in self.twins:
            twin.total = None

    def is_written_to(self, total: Tensor) -> bool:
        """Say whether the sum of a weight is another than last time, though no change was due."""
        before, self.weight_sum = self.weight_sum, total
        return before is not None and float(before) != float(total)


def is_in_process_group() -> bool:
    """Say whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
