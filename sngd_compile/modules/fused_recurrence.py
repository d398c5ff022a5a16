"""One recurrent layer as two opaque ops: a compiled graph holds one node, whatever the length.

Dynamo refuses `nn.LSTM`, `nn.GRU` and `nn.RNN`, and where it is told not to, the fused functions
are unrolled step by step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sngd_compile.fisher.transforms import carrying_tangents
from sngd_compile.torch_private import autograd_keys_lifted


@torch.library.custom_op(
    "sngd::recurrent_layer", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def recurrent_layer(  # noqa: PLR0913, PLR0917 - an op's schema is flat
    function: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    biases: bool,
    train: bool,
    bidirectional: bool,
) -> list[Tensor]:
    """Run one layer by the fused function, autocast or not in the dtype of its arguments.

    Args:
        function: `lstm`, `gru`, `rnn_tanh` or `rnn_relu` of torch.
        data: Inputs, time first `[T, N, K]`, or packed `[S, K]`.
        batch_sizes: Of packed inputs, sequences that reach each step; None otherwise.
        states: `h_0`, and of an LSTM `c_0`, `[directions, N, H]` each.
        params: Weights and biases of all directions, in order.
        biases: Whether there are biases.
        train: Whether cuDNN keeps what a backward pass needs.
        bidirectional: Whether there are two directions.

    Returns:
        The outputs `[T, N, directions * H]` or `[S, directions * H]`, then the last states.
    """
    return _run(function, data, batch_sizes, states, params, biases, train, bidirectional)


@carrying_tangents
def _run(function: str, data: Tensor, *rest: Any) -> list[Tensor]:
    """Do what `recurrent_layer` says."""
    with torch.autocast(data.device.type, enabled=False):
        outputs = fused(function, data, *rest)
    return [tensor.clone(memory_format=torch.contiguous_format) for tensor in outputs]


def fused(
    function: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *options: bool,
) -> tuple[Tensor, ...]:
    """Call a fused function of torch for one layer; see `recurrent_layer`."""
    call: Any = getattr(torch, function)
    state = tuple(states) if function == "lstm" else states[0]
    biases, *rest = options
    end = (list(params), biases, 1, 0.0, *rest)
    result: tuple[Tensor, ...]
    with _compaction_expected(data):
        if batch_sizes is not None:
            result = call(data, batch_sizes, state, *end)
        else:
            result = call(data, state, *end, False)
    return result


@contextmanager
def _ignored(message: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


def _compaction_expected(data: Tensor) -> AbstractContextManager[None]:
    """Silence the hint that cuDNN copies weights together: folded ones are new each time."""
    if not data.is_cuda or torch.compiler.is_compiling():
        return nullcontext()
    return _ignored("RNN module weights are not part of single contiguous chunk of memory")


@recurrent_layer.register_fake
def _(  # noqa: PLR0913, PLR0917 - as the op
    function: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    biases: bool,
    train: bool,
    bidirectional: bool,
) -> list[Tensor]:
    width = states[0].shape[-1] * (1 + bidirectional)
    # The op keeps to this: without autocast its results have the dtype of the data, and each is a
    # contiguous copy, no view of another.
    return [data.new_empty((*data.shape[:-1], width)), *(s.new_empty(s.shape) for s in states)]


@torch.library.custom_op(
    "sngd::recurrent_layer_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def recurrent_layer_backward(  # noqa: PLR0913, PLR0917 - an op's schema is flat
    function: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    biases: bool,
    train: bool,
    bidirectional: bool,
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """Return the gradients of data, states and params: the layer runs once more.

    An op keeps no autograd graph between its passes; there is no dropout inside one layer, so the
    second run is the first.
    """
    inputs = [tensor.detach().requires_grad_() for tensor in (data, *states, *params)]
    split = 1 + len(states)
    options = biases, train, bidirectional
    with (
        autograd_keys_lifted(),  # an op runs below autograd
        torch.enable_grad(),
        torch.autocast(data.device.type, enabled=False),
    ):
        outputs = fused(function, inputs[0], batch_sizes, inputs[1:split], inputs[split:], *options)
        found = torch.autograd.grad(outputs, inputs, list(gradients), materialize_grads=True)
    return [tensor.clone(memory_format=torch.contiguous_format) for tensor in found]


@recurrent_layer_backward.register_fake
def _(  # noqa: PLR0913, PLR0917 - as the op
    function: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    biases: bool,
    train: bool,
    bidirectional: bool,
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (data, *states, *params)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    function, data, batch_sizes, states, params, *options = inputs
    ctx.save_for_backward(data, batch_sizes, *states, *params, *output)
    ctx.function, ctx.options, ctx.counts = function, options, (len(states), len(params))


def _backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    data, batch_sizes, *rest = ctx.saved_tensors
    first, second = ctx.counts
    states, params, outputs = rest[:first], rest[first : first + second], rest[first + second :]
    pairs = zip(gradients, outputs, strict=True)
    full = [torch.zeros_like(output) if given is None else given for given, output in pairs]
    found = recurrent_layer_backward(
        ctx.function, data, batch_sizes, states, params, *ctx.options, full
    )
    return (None, found[0], None, found[1 : 1 + first], found[1 + first :], None, None, None)


recurrent_layer.register_autograd(_backward, setup_context=_keep)
