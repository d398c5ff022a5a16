"""Networks on which the laws are verified, and what reads a report."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sngd_compile.verification.report import Report


class Recurrent(nn.Module):
    """An LSTM with a head."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Read `[N, T, 4]`."""
        return {"logits": self.head(self.lstm(x)[0])}


class Tied(nn.Module):
    """An embedding whose table is the head's weight too, and another that is not."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        """Read `[N, 5]`."""
        hidden = self.table(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(torch.tanh(self.body(hidden))), None


def mlp() -> nn.Sequential:
    """Read `[N, 5]`, with dropout."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, 3))


def conv_net() -> nn.Sequential:
    """Read `[N, 2, 7, 7]`: with BatchNorm, grouped, transposed."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Conv2d(4, 6, 3, groups=2, stride=2),
        nn.ConvTranspose2d(6, 3, 2),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


def transformer() -> nn.Module:
    """Read `[N, T, 8]`: attention, LayerNorm, dropout."""
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)


def wide() -> nn.Sequential:
    """Read `[N, 600]`: a sketch, and too wide for a metric that is written out."""
    return nn.Sequential(nn.Linear(600, 4), nn.Tanh(), nn.Linear(4, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(9, 5)),
    "conv": (conv_net, lambda: torch.randn(6, 2, 7, 7)),
    "transformer": (transformer, lambda: torch.randn(3, 5, 8)),
    "lstm": (Recurrent, lambda: torch.randn(3, 6, 4)),
    "tied": (Tied, lambda: torch.randint(11, (4, 5))),
    "wide": (wide, lambda: torch.randn(20, 600)),
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Make a network and a batch of a dtype."""
    torch.manual_seed(3)
    build, draw = NETWORKS[name]
    model, batch = build(), draw()
    return model.to(dtype), batch.to(dtype) if batch.is_floating_point() else batch


def failing(report: Report) -> list[str]:
    """List the names of the checks that fail."""
    return [check.name for check in report.checks if check.holds is False]


def holding(report: Report) -> list[str]:
    """List the names of the checks that hold."""
    return [check.name for check in report.checks if check.holds]
