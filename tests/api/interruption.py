"""An exception in the middle of whatever runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class StrikeAt(TorchDispatchMode):
    """Raises at one operation of many."""

    def __init__(self, number: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = number, error

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run it, or raise."""
        self.left -= 1
        if self.left == 0:
            raise self.error
        return function(*args, **(kwargs or {}))
