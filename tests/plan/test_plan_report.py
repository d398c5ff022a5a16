"""The table that `explain` prints, to the letter."""

import expecttest
from torch import nn

import sngd_compile as sngd
from sngd_compile import Config


class Small(nn.Module):
    """One layer of every kind that the table distinguishes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)
        self.out = nn.Linear(5, 2, bias=False)
        self.out.weight.requires_grad_(False)

    def forward(self, x):
        return self.out(self.head(self.norm(self.conv(self.embed(x).mT)).mean(2)))


class TestPlanDump(expecttest.TestCase):
    def test_small_model(self):
        self.assertExpectedInline(
            str(sngd.explain(Small())),
            """\
reconstructed: 4 weights, 207 of 217 elements (95.4 %)

weight              shape      rule         Fisher         state    work/step  work/refresh
-------------------------------------------------------------------------------------------
embed.weight        [11, 6]    embedding    diagonal 11    0.2 KiB  132        396
conv.weight + bias  [8, 3, 3]  convolution  shared 2 x 10  2.3 KiB  1.3 k      3.4 k
norm.weight + bias  [8]        batch_norm   shared 8 x 2   0.4 KiB  16         38
head.weight + bias  [5, 8]     linear       shared 9       1.0 KiB  640        1.6 k

left as they are: 1 parameter, 10 elements

parameter   shape   reason
------------------------------------------------
out.weight  [2, 5]  frozen (requires_grad=False)

The Fisher layers take 3.9 KiB in all.
The roots add 2.12 % to the multiply-adds of a step of 256 rows; the more rows, the less.
Of all elements that require a gradient 100.0 % are reconstructed.""",
        )

    def test_overrides_and_roots(self):
        text = str(sngd.explain(Small(), Config(root="symmetric"), overrides={"head.*": None}))
        self.assertExpectedInline(
            text,
            """\
reconstructed: 3 weights, 162 of 217 elements (74.7 %)

weight              shape      rule         Fisher         state    work/step  work/refresh
-------------------------------------------------------------------------------------------
embed.weight        [11, 6]    embedding    diagonal 11    0.2 KiB  132        396
conv.weight + bias  [8, 3, 3]  convolution  shared 2 x 10  2.4 KiB  1.3 k      3.4 k
norm.weight + bias  [8]        batch_norm   shared 8 x 2   0.4 KiB  16         38

left as they are: 3 parameters, 55 elements

parameter    shape   reason
------------------------------------------------------------------------------------------------------------------
head.weight  [5, 8]  left out by an override
head.bias    [5]     a bias that joins no local Fisher: its own is the identity, so plain descent on it is natural
out.weight   [2, 5]  frozen (requires_grad=False)

The Fisher layers take 3.0 KiB in all.
The roots add 2.14 % to the multiply-adds of a step of 256 rows; the more rows, the less.
Of all elements that require a gradient 78.3 % are reconstructed.""",  # noqa: E501
        )

    def test_large_layers(self):
        model = nn.Sequential(nn.Linear(784, 512), nn.Linear(4096, 4096)).to("meta")
        self.assertExpectedInline(
            str(sngd.explain(model)),
            """\
reconstructed: 2 weights, 17,183,232 of 17,183,232 elements (100.0 %)

weight           shape         rule    Fisher                  state      work/step  work/refresh
-------------------------------------------------------------------------------------------------
0.weight + bias  [512, 784]    linear  sketch 785 of rank 48   460.0 KiB  77.1 M     236.7 M
1.weight + bias  [4096, 4096]  linear  sketch 4097 of rank 48  2.27 MiB   3.2 G      9.7 G

The Fisher layers take 2.72 MiB in all.
The roots add 1.82 % to the multiply-adds of a step of 256 rows; the more rows, the less.
Of all elements that require a gradient 100.0 % are reconstructed.""",
        )

    def test_nothing_to_reconstruct(self):
        self.assertExpectedInline(
            str(sngd.explain(nn.LayerNorm(3).requires_grad_(False))),
            """\
reconstructed: 0 weights, 0 of 6 elements (0.0 %)

left as they are: 2 parameters, 6 elements

parameter  shape  reason
----------------------------------------------
weight     [3]    frozen (requires_grad=False)
bias       [3]    frozen (requires_grad=False)

There are no Fisher layers.""",
        )
