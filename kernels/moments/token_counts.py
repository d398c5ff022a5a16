"""How often every entry of a table is looked up: the local Fisher of an embedding."""

import torch
from torch import Tensor

from ..errors import KernelTypeError, KernelValueError
from . import sum_ops
from .rows import check_out

INDEX_DTYPES = (torch.int32, torch.int64)


def token_counts(
    tokens: Tensor, entries: int, *, padding_idx: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Count the tokens, entry by entry: `c_v = #{n: token_n = v}`.

    The rows of an embedding are indicators `e_v`, so `sum_n e e^T` is the diagonal of the counts.

    Args:
        tokens: `[N]`, int32 or int64, in `[0, entries)`, any stride, `N >= 0`.
        entries: V, the entries of the table, at least 1.
        padding_idx: the entry whose count stays 0, in `[0, entries)`; None for none.
        out: buffer `[V]`, int64, float32 or float64, to which the counts are ADDED; float32 holds
            counts up to 2^24 exactly.

    Returns:
        `out`, or the counts `[V]`, int64.

    Raises:
        KernelTypeError: `tokens` are neither int32 nor int64.
        KernelValueError: `tokens` is not a vector, a number or the shape or device of `out` is out
            of range; on a CPU also a token (a GPU would have to be waited for: it stops with a
            failed assertion of its own).

    Reads N tokens and writes V counts; N additions of integers, so the same from run to run. No
    kernel of its own: PyTorch's count is one already.

    Source: docs/method.md, local Fishers. Checked by tests/ops/test_tokens.py.
    """
    check_tokens(tokens, entries)
    if padding_idx is not None and not 0 <= padding_idx < entries:
        raise KernelValueError(
            f"padding_idx is {padding_idx}; expected one of the {entries} entries, counted from 0, "
            "or None"
        )
    if out is None:
        counts: Tensor = sum_ops.token_counts(tokens, entries, padding_idx)
        return counts
    # Against its own dtype, so that counts can join a factor, which is floating.
    check_out(out, (entries,), out.dtype, tokens)
    sum_ops.add_token_counts_(out, tokens, padding_idx)
    return out


def check_tokens(tokens: Tensor, entries: int, name: str = "tokens") -> None:
    """Reject what is not a vector of indices into a table.

    Raises:
        KernelTypeError: another dtype.
        KernelValueError: another shape, or a table without entries.
    """
    if tokens.dtype not in INDEX_DTYPES:
        raise KernelTypeError(
            f"{name} has dtype {tokens.dtype}; expected int32 or int64: convert it, for example "
            f"with {name}.long()"
        )
    if tokens.dim() != 1:
        raise KernelValueError(
            f"{name} has shape {tuple(tokens.shape)}; expected a vector [N]: flatten it"
        )
    if entries < 1:
        raise KernelValueError(f"entries is {entries}; expected at least 1, the size of the table")
