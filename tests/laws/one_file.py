"""What keeps the test file of a rule short: a module of one call, and one test of every law."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws.case import Case
from laws.table import Laws, every_law
from laws.two_sided_table import every_two_sided_law


class OneCall(nn.Module):
    """`function(x, *parameters, **options)`, the parameters drawn at random.

    Args:
        function: What the rule is for.
        shapes: Of the parameters, by name, in the order in which the function takes them.
        options: The function's other arguments.
    """

    def __init__(
        self, function: Callable[..., Tensor], shapes: Mapping[str, Sequence[int]], **options: Any
    ):
        super().__init__()
        self.function, self.order, self.options = function, tuple(shapes), options
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(*shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x, *(getattr(self, name) for name in self.order), **self.options)


def laws_on(cases: Sequence[Case], two_sided: bool = False) -> Callable[[Laws], None]:
    """Make a test of every law on every case, in float64.

    Args:
        cases: The layers.
        two_sided: Also the laws of `Config(fisher="kronecker")`, for a rule with `output_rows`.

    Returns:
        What a test file assigns to a name that begins with `test`.
    """
    marks = [every_law(cases), *([every_two_sided_law(cases)] if two_sided else [])]
    listed = [parameters for mark in marks for parameters in mark.args[1]]

    # Law 6 differentiates in a loop where torch has no batched derivative, and torch says so.
    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.usefixtures("float64")
    @pytest.mark.parametrize(marks[0].args[0], listed)
    def test(laws: Laws) -> None:
        laws.check()

    return test
