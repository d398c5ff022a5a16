"""`nn.Conv1d`, `2d`, `3d` and `F.conv2d` on a module's own parameter obey every law."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Conv1d, Conv2d, Conv3d

from laws import Case, conv_case, conv_rows, every_law, every_two_sided_law

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


class Own(nn.Module):
    """`F.conv2d` with parameters of its own."""

    kernel_size, stride, padding, dilation = (3, 2), (2, 1), (1, 2), (1, 3)
    groups, padding_mode = 2, "zeros"

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 1, *self.kernel_size))
        self.offset = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, self.kernel, self.offset, *geometry)


own = Case(
    name="own parameters",
    module=Own,
    shape=(3, 2, 5, 6),
    rows=conv_rows,
    channel_axis=1,
    weight="kernel",
    bias="offset",
)
LINE, PLANE, SPACE = (3, 2, 9), (2, 2, 5, 7), (2, 2, 4, 3, 5)
CASES = [
    own,
    conv_case(Conv1d, (2, 3), 3, LINE),
    conv_case(Conv1d, (2, 3), 4, LINE, stride=2, padding=3, dilation=2, bias=False),
    conv_case(Conv1d, (2, 4), 4, LINE, padding="same", groups=2),
    conv_case(Conv1d, (2, 3), 3, LINE[1:], padding=1).called("Conv1d unbatched"),
    conv_case(Conv1d, (2, 3), 3, (3, 2, 3)).called("Conv1d with one position"),
    conv_case(Conv2d, (2, 3), 1, PLANE),
    conv_case(Conv2d, (2, 3), 3, PLANE, bias=False),
    conv_case(Conv2d, (2, 3), (3, 2), PLANE, stride=(1, 2), padding=(2, 0)),
    conv_case(Conv2d, (2, 3), (1, 3), PLANE, padding="valid", dilation=(1, 2)),
    conv_case(Conv2d, (2, 3), (3, 2), PLANE, padding="same"),
    conv_case(Conv2d, (2, 3), (2, 4), PLANE, padding="same", dilation=(3, 1), bias=False),
    conv_case(Conv2d, (2, 4), 3, PLANE, groups=2, stride=2, padding=1),
    conv_case(Conv2d, (3, 3), 3, (2, 3, 5, 4), groups=3, padding=1).called("Conv2d depthwise"),
    conv_case(Conv2d, (3, 6), 2, (2, 3, 5, 4), groups=3, bias=False, dilation=2),
    conv_case(Conv2d, (2, 3), 3, PLANE, padding=(1, 2), padding_mode="circular"),
    conv_case(Conv2d, (2, 3), 2, PLANE, padding="same", padding_mode="reflect"),
    conv_case(Conv2d, (2, 4), 3, PLANE, padding=2, padding_mode="replicate", groups=2),
    conv_case(Conv2d, (2, 3), 3, PLANE[1:], stride=2).called("Conv2d unbatched"),
    conv_case(Conv2d, (1, 2), 1, (3, 1, 2, 2), bias=False).called("Conv2d D = 1"),
    conv_case(Conv3d, (2, 3), (2, 1, 3), SPACE, padding=(1, 0, 2), stride=(2, 1, 1)),
    conv_case(Conv3d, (2, 2), 2, SPACE, padding="same", groups=2, bias=False),
    conv_case(Conv3d, (2, 3), 2, SPACE[1:], dilation=(1, 2, 1)).called("Conv3d unbatched"),
]


@every_law(CASES)
def test_convolution(laws):
    laws.check()


@every_two_sided_law(CASES)
def test_convolution_with_an_output_side(laws):
    laws.check()
