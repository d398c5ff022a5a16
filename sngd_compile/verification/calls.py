"""The operations that a weight enters, as the dispatcher of torch sees them: no rule is asked.

An operation that is linear in its weight, `y = op(x, W, b)`, says what its rows are: with
`J = dy / d(W[o], b[o])` of one output o, the sum of the outer products of its rows is `J^T J`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.errors import first_line
from sngd_compile.layout import Layout
from sngd_compile.torch_private import SeenCalls, tree_leaves, tree_map_only

SWAPPED = "one of its uses takes its outputs for inputs"

LARGEST_CALL = 2**24
"""Elements of the arguments of one call, and of all calls of a weight, that are remembered."""


@dataclass(frozen=True)
class View:
    """A view of a parameter, in the place of an argument.

    Args:
        is_bias: Whether of the bias.
        shape: Of the view.
        strides: Of the view.
        offset: Of its first element behind that of the parameter.
    """

    is_bias: bool
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, parameter: Tensor) -> Tensor:
        """Return the view of a tensor that lies in memory as the parameter did."""
        return parameter.as_strided(self.shape, self.strides, self.offset)


@dataclass
class Calls:
    """What one weight, and its bias, entered.

    Args:
        weight: The parameter.
        bias: The parameter that joins it, or None.
        found: Operator, positional and named arguments of each call; views stand for the two.
        unclear: Why the calls are not all that happens to the weight, or "".
        elements: Of all arguments that are remembered.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    found: list[tuple[Any, Sequence[Any], Mapping[str, Any]]] = field(default_factory=list)
    unclear: str = ""
    elements: int = 0

    @property
    def has_every_bias(self) -> bool:
        """Whether every call adds the bias itself."""
        return all(
            any(isinstance(leaf, View) and leaf.is_bias for leaf in tree_leaves((args, kwargs)))
            for _, args, kwargs in self.found
        )

    def note(self, function: Any, args: Any, kwargs: Any, returned: Any) -> None:
        """Remember a call if one of the two is among its arguments."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        views = {id(leaf): self._view(leaf) for leaf in leaves}
        if not any(view and not view.is_bias for view in views.values()):
            return
        if any(self._view(leaf) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)):
            return  # a view of it, or itself
        others = [leaf for leaf in leaves if views[id(leaf)] is None]
        self.elements += sum(leaf.numel() for leaf in others)
        if not others:
            self.unclear = "its weight is copied or cast before it is used"
        elif self.elements > LARGEST_CALL:
            self.unclear, self.found = "its inputs are large", []
        if self.unclear:
            return

        def remembered(tensor: Tensor) -> Any:
            wide = tensor.detach().clone()
            wide = wide.double() if wide.is_floating_point() else wide
            return views[id(tensor)] or wide

        self.found.append((function, *tree_map_only(Tensor, remembered, (args, kwargs))))

    def _view(self, tensor: Tensor) -> View | None:
        for parameter in (self.weight, self.bias):
            if parameter is None or tensor.layout is not torch.strided or not tensor.numel():
                continue
            storage, own = tensor.untyped_storage().data_ptr(), parameter.untyped_storage()
            offset = int(tensor.storage_offset() - parameter.storage_offset())
            # Weights may lie one after another in one storage, as those of recurrent layers do.
            if storage == own.data_ptr() and 0 <= offset < parameter.numel():
                shape, strides = tuple(tensor.shape), tuple(tensor.stride())
                return View(parameter is self.bias, shape, strides, offset)
        return None


def seen_by(calls: Sequence[Calls]) -> SeenCalls:
    """Return the context in which the operations of weights are remembered."""

    def note(*call: Any) -> None:
        for each in calls:
            each.note(*call)

    return SeenCalls(note)


@dataclass(frozen=True)
class Products:
    """Products of the second moment of rows with vectors.

    Args:
        sums: Of the sum over all rows of each group, `[groups, D, n]`.
        counts: Rows of each group.
        calls: Rows of all calls, of whichever groups.
    """

    sums: Tensor
    counts: Tensor
    calls: float

    def mean(self, rows_seen: int) -> Tensor:
        """Return those of the mean, `[groups, D, n]`.

        Args:
            rows_seen: By the Fisher layer, which has one count for all groups. Where the calls have
                different groups, as with experts, it is of all calls together.
        """
        if rows_seen == self.calls:
            return self.sums / self.calls
        return self.sums / self.counts[:, None, None]


def second_moment_products(calls: Calls, layout: Layout, vectors: Tensor) -> Products | str:
    """Return the products of the second moment of the rows with vectors, or why nothing says it.

    Args:
        calls: Of the weight.
        layout: How it is laid out as matrices.
        vectors: `[D, n]` in float64; with a bias, its entry last.
    """
    groups, size = layout.groups or 1, vectors.shape[0]
    found = Products(
        vectors.new_zeros(groups, size, vectors.shape[1]), vectors.new_zeros(groups), 0.0
    )
    for call in calls.found:
        try:
            one = _of_call(calls, call, layout, vectors)
        except RuntimeError as error:  # as of a kernel that takes no float64
            return f"an operation of it does not run by itself ({first_line(error)})"
        if isinstance(one, str):
            return one
        found = Products(found.sums + one.sums, found.counts + one.counts, found.calls + one.calls)
    return found if found.calls else "no operation of it was seen"


def _of_call(calls: Calls, call: Any, layout: Layout, vectors: Tensor) -> Products | str:
    """Return the products of the rows of one call."""
    touched = _touched(calls, call, layout)
    groups, width = layout.groups or 1, layout.width
    # Of numbers that are all others: a vector that is mostly zeros shows little of an operation.
    dense = torch.linspace(1.0, 2.0, len(vectors), dtype=vectors.dtype, device=vectors.device)
    zero, one, two = (_output(calls, call, layout, k * dense)[0].detach() for k in (0.0, 1.0, 2.0))
    every = _output(calls, call, layout, dense, of_all=True)[0].detach()
    rows = _entered(calls, call, layout, dense[:width]) or zero.numel()
    rows /= len(touched)
    sums, counts = vectors.new_zeros(groups, *vectors.shape), vectors.new_zeros(groups)
    counts[[output // layout.outputs for output in touched]] = rows
    used = int((counts > 0).sum())
    if not torch.allclose(two - zero, 2 * (one - zero), rtol=1e-9, atol=1e-12):
        return "an operation that is not linear takes it"
    # Every output has the same rows, and each number of the result belongs to one output.
    squares = [float((part - zero).square().sum()) for part in (one, every)]
    alike = math.isclose(squares[0] * len(touched) / used, squares[1], rel_tol=1e-9)
    if not alike or int((one != zero).sum()) > rows * used:
        return SWAPPED
    columns = [_output(calls, call, layout, vector) for vector in vectors.T]
    for number, (output, weight, bias) in enumerate(columns):
        wanted = [weight] if bias is None else [weight, bias]
        given = torch.autograd.grad(
            output, wanted, output.detach() - zero, allow_unused=True, materialize_grads=True
        )
        sums[:, :width, number] = layout.matrices(given[0]).reshape(groups, -1, width)[:, 0]
        if bias is not None and vectors.shape[0] > width:
            sums[:, width, number] = given[1].reshape(groups, -1)[:, 0]
    return Products(sums.detach(), counts, rows)


def _entered(calls: Calls, call: Any, layout: Layout, dense: Tensor) -> float:
    """Count the numbers of a result that are numbers of the weight, as those of a table are.

    0 where the weight multiplies: then all of them are made of it, and some may be 0 by chance.
    """
    every, none = (
        _output(calls, call, layout, k * dense, of_all=True, on_zeros=True)[0] for k in (1.0, 0.0)
    )
    return float(((every - none).abs() > 0).sum())


def _touched(calls: Calls, call: Any, layout: Layout) -> list[int]:
    """Number the outputs, those of all groups one after another, whose weights enter a call."""
    count = layout.all_outputs
    numbers = torch.arange(count, device=calls.weight.device).view(*layout.matrix[:-1], 1)
    own = _like(calls.weight, layout.parameter(numbers.expand(layout.matrix), calls.weight.shape))
    views = [leaf for leaf in tree_leaves(call[1:]) if isinstance(leaf, View) and not leaf.is_bias]
    return sorted({int(n) for view in views for n in view.of(own).unique()})


def _output(
    calls: Calls,
    call: Any,
    layout: Layout,
    vector: Tensor,
    of_all: bool = False,
    on_zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a call with the vector as weights of the first output of each group (of all: of each)."""
    function, args, kwargs = call
    matrices = vector.new_zeros(layout.groups or 1, layout.outputs, layout.width)
    first = slice(None) if of_all else slice(1)
    matrices[:, first] = vector[: layout.width]
    weight = _like(calls.weight, layout.parameter(matrices.view(layout.matrix), calls.weight.shape))
    weight.requires_grad_()
    bias = None
    if calls.bias is not None:
        entries = vector.new_zeros(layout.groups or 1, layout.outputs)
        entries[:, first] = vector[-1] if len(vector) > layout.width else 0.0
        bias = _like(calls.bias, entries.view(calls.bias.shape)).requires_grad_()

    def given(leaf: Any) -> Any:
        return leaf.of(bias if leaf.is_bias else weight)

    def fresh(leaf: Tensor) -> Tensor:
        return leaf.clone() if not (on_zeros and leaf.is_floating_point()) else leaf * 0

    args, kwargs = tree_map_only(View, given, tree_map_only(Tensor, fresh, (args, kwargs)))
    returned = function(*args, **kwargs)
    output = next(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
    return output, weight, bias


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """Lay values out in memory as a parameter is."""
    made = torch.empty_strided(
        parameter.shape, parameter.stride(), dtype=values.dtype, device=values.device
    )
    return made.copy_(values.reshape(parameter.shape))
