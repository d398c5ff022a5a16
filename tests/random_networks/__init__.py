"""Networks drawn at random from the layers that the rules know, all `[N, T, 6] -> [N, T, 6]`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 6
Network = Callable[[], nn.Module]


class OverChannels(nn.Module):
    """A layer that wants its channels second."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to the transpose."""
        return self.layer(x.mT).mT


class First(nn.Module):
    """A layer that returns more than its output."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the output."""
        queries = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
        return self.layer(*queries)[0]


class Own(nn.Module):
    """Parameters of its own, used by `compute`."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.shift = nn.Parameter(torch.randn(WIDTH) / 3)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        return self.compute(self, x)


class Squared(nn.Bilinear):
    """A bilinear layer on one input."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Pair the input with itself."""
        return super().forward(x, torch.tanh(x))


class Looked(nn.Embedding):
    """A table that is read at what the numbers round to."""

    def forward(self, x: Tensor) -> Tensor:
        """Add the rows that the first feature selects."""
        tokens = (x[..., 0].nan_to_num().clamp(-99, 99) * 4).long() % self.num_embeddings
        return x + super().forward(tokens)


class Tied(nn.Module):
    """One weight for the way in and the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Go in, and back by the transpose."""
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.mT)


def product(own: nn.Module, x: Tensor) -> Tensor:
    """Multiply from the left, scale and shift."""
    return (x @ own.matrix) * own.gain + own.shift


def contraction(own: nn.Module, x: Tensor) -> Tensor:
    """Contract, then normalise."""
    mixed = torch.einsum("ntk,ko->nto", x, own.matrix)
    return F.layer_norm(mixed, (WIDTH,), own.gain, own.shift)


def choice(own: nn.Module, x: Tensor) -> Tensor:
    """Depend on the data, so that no graph can repeat it."""
    if x.sum() > 0:
        return F.linear(x, own.matrix, own.shift)
    return F.linear(x, own.matrix) * own.gain


def viewed(own: nn.Module, x: Tensor) -> Tensor:
    """Reach the weight by way of another shape."""
    return F.linear(x, own.matrix.view(-1).view(WIDTH, WIDTH), own.shift) * own.gain


LAYERS: dict[str, Network] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "convolution": lambda: OverChannels(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "grouped": lambda: OverChannels(nn.Conv1d(WIDTH, WIDTH, 3, padding="same", groups=2)),
    "strided": lambda: OverChannels(
        nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1),
            nn.ConvTranspose1d(WIDTH, WIDTH, 3, stride=2, padding=1),
        )
    ),
    "reflected": lambda: OverChannels(
        nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")
    ),
    "circular": lambda: OverChannels(
        nn.Conv1d(WIDTH, WIDTH, 3, padding=2, dilation=2, padding_mode="circular", groups=3)
    ),
    "image": lambda: nn.Sequential(
        nn.Unflatten(1, (1, -1)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(1, 2)
    ),
    "embedding": lambda: Looked(7, WIDTH),
    "tied": Tied,
    "transposed": lambda: OverChannels(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1, groups=3)),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: OverChannels(nn.GroupNorm(2, WIDTH)),
    "batch norm": lambda: OverChannels(nn.BatchNorm1d(WIDTH)),
    "instance norm": lambda: OverChannels(nn.InstanceNorm1d(WIDTH, affine=True)),
    "prelu": lambda: OverChannels(nn.PReLU(WIDTH)),
    "bilinear": lambda: Squared(WIDTH, WIDTH, WIDTH),
    "lstm": lambda: First(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "gru": lambda: First(nn.GRU(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)),
    "attention": lambda: First(nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "product": lambda: Own(product),
    "contraction": lambda: Own(contraction),
    "choice": lambda: Own(choice),
    "viewed": lambda: Own(viewed),
    "tanh": nn.Tanh,
}


class Residual(nn.Module):
    """`x + f(x)`."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Add."""
        return x + self.inner(x)


class Branches(nn.Module):
    """The mean of two networks' outputs."""

    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        return (self.left(x) + self.right(x)) / 2


class Repeated(nn.Module):
    """One network applied twice."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, and once more."""
        return self.inner(torch.tanh(self.inner(x)))


def chained(parts: list[Network]) -> Network:
    """Apply one after the other."""
    return lambda: nn.Sequential(*(part() for part in parts))


def compound(inner: st.SearchStrategy[Network]) -> st.SearchStrategy[Network]:
    """Draw a network made of smaller ones."""
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(chained),
        inner.map(lambda part: lambda: Residual(part())),
        inner.map(lambda part: lambda: Repeated(part())),
        st.tuples(inner, inner).map(lambda two: lambda: Branches(two[0](), two[1]())),
    )


def named(name: str) -> Network:
    """Make a layer; the name shows in a failing example."""
    return LAYERS[name]


networks = st.recursive(st.sampled_from(sorted(LAYERS)).map(named), compound, max_leaves=8)
