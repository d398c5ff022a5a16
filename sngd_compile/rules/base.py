"""The extension point: a rule says which calls it understands and how activations become rows."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

import sngd_kernels
from sngd_compile.layout import Layout

Operand = fx.Node | Tensor
"""An argument of a call: a node of a captured graph, or a tensor when a call is intercepted."""


@dataclass(frozen=True)
class Use:
    """One use of a weight: the call, and what the local Fisher needs to know of it.

    Args:
        weight: The weight.
        inputs: The activations that the weight multiplies.
        layout: How this call reads the weight as matrices `[*, O, K]`.
        bias: The bias that is added to every output, or None.
        geometry: Static integers of the layer, as the rule's own `rows` reads them.
        is_linear: Whether the call is `y = x W^T + b` with x, `[..., K]`, the only input: then
            the root may act on the rows instead of the weight.
    """

    weight: Operand
    inputs: tuple[Operand, ...]
    layout: Layout
    bias: Operand | None = None
    geometry: tuple[int, ...] = ()
    is_linear: bool = False


@dataclass(frozen=True)
class Call:
    """A call with its arguments by name, defaults filled in.

    Args:
        arguments: Values by the names of the rule's signature.
        parameters: The parameters, or views of them, among the values.
    """

    arguments: dict[str, Any]
    parameters: Mapping[Any, Tensor]

    def parameter(self, name: str) -> Tensor | None:
        """Return the parameter that is passed as `name`, None if it is none."""
        value = self.arguments[name]
        # Asked of the type first: a list has no hash, so a look-up would raise.
        return self.parameters.get(value) if isinstance(value, fx.Node | Tensor) else None


class Rule(ABC):
    """A layer family: one file with a subclass, registered by `@register_rule`.

    A rule has a `name`, the `targets` it understands, their `signature`, `match` and `rows`. The
    rest has defaults: one sample is one row, and the second moment is that of `rows`. A target is
    a function, a method of `torch.Tensor`, or the `"namespace::name"` of an operator that another
    package registers. `kind` is "diagonal" where the factor is by nature. `takes_halves` where rows
    are entries of the inputs: in half precision they are multiplied as they are.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[Callable[..., Any] | str, ...]]
    signature: ClassVar[inspect.Signature]
    least_samples: ClassVar[int] = 1
    least_rows: ClassVar[int] = 1
    takes_halves: ClassVar[bool] = False
    kind: ClassVar[str] = "shared"

    def __init__(self) -> None:
        """Read the signature once: Dynamo, which traces `bind`, cannot follow `inspect`."""
        parameters = self.signature.parameters.values()
        self._rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self._names = tuple(p.name for p in parameters if p.name != self._rest)
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    @abstractmethod
    def match(self, call: Call) -> Use | str:
        """Describe the use of a weight, or say why it cannot be reconstructed.

        Args:
            call: A call of one of `targets` in which at least one argument is a parameter.
        """

    @abstractmethod
    def rows(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
        """Return the rows `x` whose second moment is the local Fisher, without the bias's 1.

        Args:
            inputs: Activations, one sample per index of axis 0 (see `samples`).
            geometry: As `match` wrote it.

        Returns:
            `[N, K]` in the order of `weight.flatten(1)`, or `[groups, N, K]`.
        """

    def samples(self, inputs: Sequence[Tensor], geometry: Sequence[int]) -> list[Tensor]:
        """Return the activations with one sample per index of axis 0: here, one row each."""
        return [tensor.reshape(-1, tensor.shape[-1]) for tensor in inputs]

    def rows_per_sample(self, samples: Sequence[Tensor], geometry: Sequence[int]) -> int:
        """Return how many rows one sample gives."""
        return 1

    def second_moment(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' outer products to `out`, `[D, D]` or `[groups, D, D]`."""
        rows = self.rows(samples, geometry)
        blocks = [(rows, out)] if rows.dim() == 2 else list(zip(rows, out, strict=True))
        for block, moment in blocks:
            sngd_kernels.second_moment(block, bias=bias, out=moment)
        return out

    def sketch(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        omega: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Add the product of the rows' second moment with `omega`, and its trace, to `out`.

        Args:
            samples: As in `rows`.
            geometry: As `match` wrote it.
            bias: Whether every row ends in a 1.
            omega: `[D, l]`, for every group the same.
            out: `[D + 1, l]` or `[groups, D + 1, l]`, as `sngd_kernels.sketch` has it.
        """
        return sngd_kernels.sketch(self.rows(samples, geometry), omega, bias=bias, out=out)

    def diagonal(
        self, samples: Sequence[Tensor], geometry: Sequence[int], bias: bool, out: Tensor
    ) -> Tensor:
        """Add the sum of the rows' squares to `out`, `[D]` or `[groups, D]`."""
        return sngd_kernels.squared_sum(self.rows(samples, geometry), bias=bias, out=out)

    def block_moments(
        self,
        samples: Sequence[Tensor],
        geometry: Sequence[int],
        bias: bool,
        out: Sequence[Tensor],
    ) -> None:
        """Add the outer products of neighbouring columns of the rows, block by block.

        Args:
            samples: As in `rows`.
            geometry: As `match` wrote it.
            bias: Whether the last block ends in the bias's 1.
            out: One `[b, b]` or `[groups, b, b]` a block, to be added to.
        """
        rows, start = self.rows(samples, geometry), 0
        for moment in out:
            with_bias = bias and moment is out[-1]
            stop = start + moment.shape[-1] - with_bias
            columns, start = rows[..., start:stop], stop
            blocks = [(columns, moment)] if rows.dim() == 2 else zip(columns, moment, strict=True)
            for block, total in blocks:
                sngd_kernels.second_moment(block, bias=with_bias, out=total)

    def output_rows(self, outputs: Tensor, geometry: Sequence[int]) -> Tensor:
        """Return the outputs of a call, or their gradient, by sample and position.

        A rule that has it takes `Config(fisher="kronecker")`, whose second factor is that of the
        gradients, and `"unit"`, whose rows the outputs weigh; for one that has not, the
        plan says so and takes "shared".

        Returns:
            `[samples, positions, O]`, or `[samples, positions, groups, O]`.
        """
        raise NotImplementedError(f"{self.name} does not say what rows its outputs have")

    @property
    def has_output_rows(self) -> bool:
        """Whether the rule says what rows its outputs have."""
        return type(self).output_rows is not Rule.output_rows

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[Any, Tensor]
    ) -> Call:
        """Give the arguments of a call their names.

        Raises:
            TypeError: The call does not fit `signature`.
        """
        if len(args) > len(self._names) and self._rest is None:
            raise TypeError("too many arguments")
        given: dict[str, Any] = dict(zip(self._names, args, strict=False))
        for name, value in kwargs.items():
            if name in given or name not in self._names:
                raise TypeError(f"no place for {name}")
            given[name] = value
        arguments = {}
        for name in self._names:
            if name not in given and name not in self._defaults:
                raise TypeError(f"{name} is missing")
            arguments[name] = given[name] if name in given else self._defaults[name]
        if self._rest is not None:
            arguments[self._rest] = tuple(args[len(self._names) :])
        return Call(arguments, parameters)
