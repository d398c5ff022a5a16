"""A forward may ask a parameter for what its values do not change: dtype, device and sizes."""

import pytest
import torch
import torch.nn.functional as F

import sngd_compile as sngd
from capture import Layer, assert_same

pytestmark = pytest.mark.usefixtures("float64")
X = torch.randn(2, 3)


class Cast(Layer):
    """Casts its input to the dtype of half a weight, as normalisation layers do."""

    def forward(self, x):
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype) + 1
        return F.linear(x, self.weight, self.bias)


class Sized(Layer):
    """Branches on the sizes of its weight."""

    def forward(self, x):
        if self.weight.shape[0] == self.weight.size(1) == 3 and self.weight.dim() == 2:
            return self.linear(x) / self.weight.numel()
        return x


@pytest.mark.parametrize("model_class", [Cast, Sized])
def test_questions_about_a_parameter_are_answered(model_class):
    net = assert_same(model_class(), X.to(torch.get_default_dtype()))
    assert set(sngd.graph(net)) == {""}


def test_a_cast_module_takes_the_other_branch():
    model = Cast()
    net = sngd.reconstruct(model).to(torch.bfloat16)
    x = X.to(torch.bfloat16)
    torch.testing.assert_close(net(x), model.to(torch.bfloat16)(x))
    assert "add" in str(sngd.graph(net))
