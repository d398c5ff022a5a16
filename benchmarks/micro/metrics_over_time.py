"""Draws `docs/monitoring.png`: four of the metrics over a short training on the digits.

make monitoring
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import typer
from sklearn.datasets import load_digits
from torch import nn

import sngd_compile as sngd

PICTURE = Path(__file__).parents[2] / "docs" / "monitoring.png"
STEPS, ROWS = 300, 128
PANELS = {
    "condition": "condition of the metric",
    "effective_rank": "effective rank of the factor",
    "norm": "norm of the gradient, |g'|",
    "share": "share of the trust region",
}

Curves = dict[str, dict[str, list[float]]]


def network() -> nn.Module:
    """Two convolutions, a wide layer that is sketched, and the scores."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def courses(steps: int) -> Iterator[dict[str, float]]:
    """Train, and yield the metrics of each step before it is taken."""
    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    net = sngd.reconstruct(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (ROWS,))
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[batch]), labels[batch]).backward()
        yield sngd.metrics(net)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def curves(steps: int) -> Curves:
    """Train, and return each metric of each weight, step by step."""
    found: Curves = defaultdict(lambda: defaultdict(list))
    for metrics in courses(steps):
        for key, value in metrics.items():
            weight, _, metric = key.rpartition("/")
            found[metric][weight].append(value)
    return found


def draw(found: Curves, path: Path) -> None:
    """Draw the panels, one line for each weight."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for weight, values in found[metric].items():
            if weight != "total":
                axis.plot(values, label=weight, linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_yscale("linear" if metric in ("share", "effective_rank") else "log")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Train and draw."""
    found = curves(STEPS)
    draw(found, PICTURE)
    for metric, of_weights in found.items():
        last = {weight: f"{values[-1]:.3g}" for weight, values in of_weights.items()}
        typer.echo(f"{metric} at the end: {last}")


if __name__ == "__main__":
    typer.run(main)
