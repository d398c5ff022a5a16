"""The sum of the squares of bags of tokens, entry by entry: the diagonal for an embedding bag."""

from torch import Tensor

from ..errors import KernelValueError
from . import sum_ops
from .rows import accumulation_dtype, check_out
from .token_counts import check_tokens


def bag_squared_sum(
    bags: Tensor, tokens: Tensor, weights: Tensor, entries: int, *, out: Tensor | None = None
) -> Tensor:
    """Sum the squares of how much of each entry every bag holds.

    `s_v = sum_b r_bv^2`, `r_bv` the sum of the weights of the tokens v in bag b: the diagonal of
    the second moment of the rows `r_b` `[V]`, which are never made. A token that a bag holds twice
    counts fourfold. No gradient flows through it.

    Args:
        bags: of each token `[M]`, int32 or int64, at least 0, in any order.
        tokens: `[M]`, int32 or int64, in `[0, entries)`.
        weights: of each token `[M]`, of dtype float16, bfloat16, float32 or float64.
        entries: V, the entries of the table, at least 1.
        out: buffer of the result's shape, dtype and device, to which the sum is ADDED.

    Returns:
        `out`, or a new tensor `[V]`; float64 for float64 weights, else float32.

    Raises:
        KernelTypeError: a dtype is none of these, or that of `out` is not the result's.
        KernelValueError: the three are not vectors of one length on one device, `entries` is below
            1, or `out` has another shape or device.

    Sorts M pairs, then reads and adds each of them twice. No kernel of its own: PyTorch's sort and
    scattered sums are the work. On a GPU scattered sums are atomic, so that their last bits differ
    from run to run, unless `torch.use_deterministic_algorithms` is on.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_tokens.py.
    """
    dtype = accumulation_dtype(weights)
    check_tokens(bags, entries, "bags")
    check_tokens(tokens, entries)
    if not (bags.shape == tokens.shape == weights.shape and _on_one_device(bags, tokens, weights)):
        raise KernelValueError(
            f"bags {tuple(bags.shape)} on {bags.device}, tokens {tuple(tokens.shape)} on "
            f"{tokens.device} and weights {tuple(weights.shape)} on {weights.device} do not fit; "
            "expected [M] each on one device: give every token its bag and its weight"
        )
    check_out(out, (entries,), dtype, weights)
    squares: Tensor = sum_ops.bag_squared_sum(bags, tokens, weights.detach(), entries)
    return squares if out is None else out.add_(squares)


def _on_one_device(*tensors: Tensor) -> bool:
    return len({tensor.device for tensor in tensors}) == 1
