"""Bugs in the rows of single layer families."""

from typing import Any

import torch
from torch import Tensor

import sngd_compile.rules.transposed_convolution as transposed
from bug import caught_by, wrap
from sngd_compile.rules import normalisation
from sngd_compile.rules.bilinear import Bilinear
from sngd_compile.rules.embedding_bag import EmbeddingBag
from sngd_compile.rules.normalisation import BatchNorm, LayerNorm
from sngd_compile.rules.prelu import PReLU
from sngd_compile.rules.scale import Scale
from sngd_kernels.moments import sum_ops

TESTS = "tests/rules/test_"


@caught_by((f"{TESTS}transposed_convolution.py",))
def taps_not_mirrored() -> None:
    """The statistics of a transposed convolution read the taps in the order of a convolution."""
    transposed._spatial = lambda layer: []


@caught_by((f"{TESTS}transposed_convolution.py",))
def no_zeros_between_inputs() -> None:
    """The statistics of a transposed convolution put the zeros of the stride at the end."""

    def spaced(original: Any, images: Tensor, layer: Any) -> Tensor:
        result = original(images, layer)
        return result.sort(-1, descending=True).values

    wrap(transposed, "_spaced", spaced)


@caught_by((f"{TESTS}normalisation.py",))
def rows_before_normalisation() -> None:
    """The rows of a normalisation are its inputs."""
    LayerNorm.normalised = lambda rule, samples, number, epsilon: samples


@caught_by((f"{TESTS}normalisation.py",))
def batch_statistics_for_running_ones() -> None:
    """A batch normalisation that uses running statistics is observed with those of the batch."""
    BatchNorm.samples = normalisation.Normalisation.samples
    BatchNorm.normalised = lambda rule, samples, number, epsilon: rule.of_the_batch(
        samples, epsilon
    )


@caught_by((f"{TESTS}normalisation.py",))
def another_epsilon() -> None:
    """A batch normalisation is observed with the default epsilon."""
    normalisation._epsilon = lambda bits: 1e-5


@caught_by((f"{TESTS}normalisation.py",))
def shifts_apart_from_scales() -> None:
    """The 2 x 2 moments of a normalisation have nothing off their diagonals."""

    def sums(original: Any, x: Tensor, bias: bool) -> Any:
        squares, sums = original(x, bias)
        return squares, None if sums is None else torch.zeros_like(sums)

    wrap(sum_ops, "channel_sums", sums)


@caught_by(("tests/fisher/test_diagonal.py",))
def biases_without_rows() -> None:
    """A diagonal Fisher counts no rows for the bias."""
    wrap(sum_ops, "with_count", lambda original, squares, _, bias: original(squares, 0, bias))


@caught_by((f"{TESTS}scale.py",))
def elements_in_another_order() -> None:
    """The activations of a scale are laid out with its elements reversed."""
    wrap(Scale, "samples", lambda original, *args: [t.flip(1) for t in original(*args)])


@caught_by((f"{TESTS}prelu.py",))
def positive_parts_too() -> None:
    """The rows of a slope are the activations, positive ones included."""
    PReLU.samples = lambda rule, inputs, geometry: [inputs[0].reshape(-1, geometry[0], 1)]


@caught_by((f"{TESTS}bilinear.py",))
def inputs_swapped() -> None:
    """The Kronecker product of a bilinear layer is taken the other way round."""
    wrap(
        Bilinear,
        "rows",
        lambda original, rule, inputs, geometry: original(rule, inputs[::-1], geometry),
    )


@caught_by((f"{TESTS}embedding_bag.py",))
def entries_counted_once_each() -> None:
    """An entry that a bag holds twice adds two squares."""

    def diagonal(rule: Any, samples: Any, geometry: Any, bias: bool, out: Tensor) -> Tensor:
        return out.index_add_(0, samples[1], samples[2].square().to(out.dtype))

    EmbeddingBag.diagonal = diagonal


@caught_by((f"{TESTS}embedding_bag.py",))
def padding_is_held() -> None:
    """The padding index of a bag counts as an entry."""
    wrap(
        EmbeddingBag,
        "samples",
        lambda original, rule, inputs, geometry: original(
            rule, inputs, (geometry[0], -1, *geometry[2:])
        ),
    )
