"""Changes that happen whole or not at all, in one process and in several that train together."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sngd_compile.errors import SngdError
from sngd_compile.fisher.layer import FisherLayer


class Kept:
    """The numbers of tensors before something changes them.

    A root and the weights in its coordinates belong together: one of them alone is another
    function, and nobody would notice.

    Args:
        tensors: All that is written to, None for what is not there; copied once.
    """

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        """Copy them."""
        self.numbers = [(t, t.detach().clone()) for t in tensors if t is not None]

    @torch.no_grad()
    def restore_(self) -> None:
        """Give all of them their numbers back."""
        for tensor, numbers in self.numbers:
            tensor.copy_(numbers)


@contextmanager
def all_or_nothing(tensors: Iterable[Tensor | None]) -> Iterator[None]:
    """Give tensors their numbers back where what changes them is interrupted.

    So Ctrl-C, a device without memory or another process's failure leaves all as it was.

    Args:
        tensors: As of `Kept`.
    """
    kept = Kept(tensors)
    try:
        yield
    except BaseException:
        kept.restore_()
        raise


def by_group(layers: Iterable[FisherLayer]) -> list[tuple[Any, list[FisherLayer]]]:
    """Return layers by the processes that train their weights; None is this one alone."""
    found: dict[int, list[FisherLayer]] = defaultdict(list)
    for layer in layers:
        found[id(layer.ties.process_group)].append(layer)
    return [(members[0].ties.process_group, members) for members in found.values()]


def agreed(
    group: Any,
    layers: Sequence[FisherLayer],
    count: int,
    find: Callable[[], Tensor],
    largest: bool = False,
) -> Tensor:
    """Do what may fail in one process alone: then all go on, or all raise.

    A process that raised where others go on would leave them waiting for it. So every process
    comes here, and says by one number beside its findings whether it has failed.

    Args:
        group: The processes; None for this one alone, whose findings are returned.
        layers: Fisher layers that it is done for, to name them and to find the device.
        count: How many numbers are found.
        find: Does it, without any communication that all but a failing process would enter.
            Returns `[count]` numbers.
        largest: Whether the largest finding of all is returned, not their sum.

    Returns:
        `[count]`, float64, the same in every process.

    Raises:
        SngdError: Another process has failed.
    """
    if group is None:
        return find()
    numbers = torch.zeros(count + 1, dtype=torch.float64, device=layers[0].sum.device)
    failure: BaseException | None = None
    try:
        numbers[:count] = find()
    except BaseException as error:
        failure = error
        numbers.zero_()
        numbers[count] = 1.0
    operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
    torch.distributed.all_reduce(numbers, operation, group=group)
    if failure is not None:
        raise failure
    if bool(numbers[count]):
        raise SngdError(
            f"{layers[0].name} and what else is renewed with it, {len(layers)} weights in all: "
            "another process failed, its own error says how. Here nothing has changed: the network "
            "computes what it did, with the old roots. Mend what failed there; training may go on "
            "from here, or from the last checkpoint"
        )
    return numbers[:count]


@contextmanager
def interrupts_wait(group: Any) -> Iterator[None]:
    """Let Ctrl-C wait until what several processes do together is done; a second one does not.

    Between two calls that all processes enter nothing tells the others that this one has left.

    Args:
        group: The processes; None for this one alone, where nothing waits.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if group is None or not is_main or not callable(before):
        yield
        return
    waiting: list[tuple[int, Any]] = []

    def note(number: int, frame: Any) -> None:
        waiting.append((number, frame))
        if len(waiting) > 1:
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if len(waiting) == 1:
            before(*waiting[0])
