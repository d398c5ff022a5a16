"""The graphs that `graph` prints, to the letter, and their difference."""

# The lines are as long as they are printed.
# ruff: noqa: E501

import re

import expecttest
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from sngd_compile.plan.report import difference_report, graph_report


class Twice(nn.Linear):
    """One weight in two calls, and a child."""

    def __init__(self):
        super().__init__(4, 4)
        self.act = nn.Tanh()

    def forward(self, x, scale=1.0):
        x = self.act(F.linear(x, self.weight, self.bias))
        return F.linear(x, self.weight, bias=self.bias).mul_(scale)


class TestGraphDump(expecttest.TestCase):
    def test_mlp(self):
        net = sngd.reconstruct(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        self.assertExpectedInline(
            str(sngd.graph(net)),
            """\
[0]
input_1 = argument input
weight_fisher = self.weight_fisher                                             # reparameterise_: linear
weight_prime = self.weight_prime                                               # reparameterise_: linear
bias_prime = self.bias_prime                                                   # reparameterise_: linear
local_linear = local_linear(weight_fisher, input_1, weight_prime, bias_prime)  # associate_: linear
observing = self.observing                                                     # observe_
observe = observe(weight_fisher, linear, (input_1,), (), observing)            # observe_: linear
return local_linear

[2]
input_1 = argument input
weight_fisher = self.weight_fisher                                             # reparameterise_: linear
weight_prime = self.weight_prime                                               # reparameterise_: linear
bias_prime = self.bias_prime                                                   # reparameterise_: linear
local_linear = local_linear(weight_fisher, input_1, weight_prime, bias_prime)  # associate_: linear
observing = self.observing                                                     # observe_
observe = observe(weight_fisher, linear, (input_1,), (), observing)            # observe_: linear
return local_linear""",
        )

    def test_convolution_without_bias(self):
        net = sngd.reconstruct(nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False))
        self.assertExpectedInline(
            str(sngd.graph(net)),
            """\
[.]
input_1 = argument input
weight_fisher = self.weight_fisher                                                                       # reparameterise_: convolution
weight_prime = self.weight_prime                                                                         # reparameterise_: convolution
fold = fold(weight_fisher, weight_prime, None)                                                           # reparameterise_: convolution
weight = getitem(fold, 0)                                                                                # reparameterise_: convolution
conv2d = conv2d(input_1, weight, None, (1, 1), same, (1, 1), 2)
observing = self.observing                                                                               # observe_
observe = observe(weight_fisher, convolution, (input_1,), (2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1), observing)  # observe_: convolution
return conv2d""",
        )

    def test_two_uses_of_one_weight(self):
        self.assertExpectedInline(
            str(sngd.graph(sngd.reconstruct(Twice()))),
            """\
[.]
x = argument x
scale = argument scale
weight_fisher = self.weight_fisher                                           # reparameterise_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
weight_prime = self.weight_prime                                             # reparameterise_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
bias_prime = self.bias_prime                                                 # reparameterise_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
local_linear = local_linear(weight_fisher, x, weight_prime, bias_prime)      # associate_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
observing = self.observing                                                   # observe_
observe = observe(weight_fisher, linear, (x,), (), observing)                # observe_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
act = self.act(local_linear)
local_linear_1 = local_linear(weight_fisher, act, weight_prime, bias_prime)  # associate_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
observing_1 = self.observing                                                 # observe_
observe_1 = observe(weight_fisher, linear, (act,), (), observing_1)          # observe_: linear at test_graph_report.py:24, linear at test_graph_report.py:25
mul_ = mul_(local_linear_1, scale)
return mul_""",
        )

    def test_frozen_bias(self):
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        self.assertExpectedInline(
            str(sngd.graph(sngd.reconstruct(model))),
            """\
[.]
input_1 = argument input
weight_fisher = self.weight_fisher                                   # reparameterise_: linear
weight_prime = self.weight_prime                                     # reparameterise_: linear
fold = fold(weight_fisher, weight_prime, None)                       # reparameterise_: linear
weight = getitem(fold, 0)                                            # reparameterise_: linear
bias = self.bias
linear = linear(input_1, weight, bias)
observing = self.observing                                           # observe_
observe = observe(weight_fisher, linear, (input_1,), (), observing)  # observe_: linear
return linear""",
        )

    def test_difference(self):
        plain, biased = (
            graph_report(sngd.graph(sngd.reconstruct(nn.Linear(3, 2, bias=bias)))[""])
            for bias in (False, True)
        )
        self.assertExpectedInline(
            difference_report(plain, biased),
            """\
  input_1 = argument input
  weight_fisher = self.weight_fisher  # reparameterise_: linear
  weight_prime = self.weight_prime  # reparameterise_: linear
+ bias_prime = self.bias_prime  # reparameterise_: linear
- local_linear = local_linear(weight_fisher, input_1, weight_prime, None)  # associate_: linear
+ local_linear = local_linear(weight_fisher, input_1, weight_prime, bias_prime)  # associate_: linear
  observing = self.observing  # observe_
  observe = observe(weight_fisher, linear, (input_1,), (), observing)  # observe_: linear
  return local_linear""",
        )
        assert difference_report(plain, plain).splitlines() == [
            f"  {line}" for line in re.sub(" +  # ", "  # ", plain).splitlines()
        ]

    def test_nothing_reconstructed(self):
        assert str(sngd.graph(nn.Linear(3, 2))) == ""
