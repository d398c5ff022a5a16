"""Trains a ResNet-18 on a folder of images with natural gradient descent, from end to end.

The folder has `train` and `val`, each with a folder for every class, as ImageNet is laid out.

    python examples/imagenet.py path/to/imagenet --epochs 90 --workers 8

A checkpoint follows every epoch; the same command goes on where it was broken off. In the end the
network is folded: `resnet18.pt` is the state dict of the plain one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

import sngd_compile as sngd
from data import DataError
from image_folder import ImageFolder
from resnet import resnet18

Batches = DataLoader[tuple[Tensor, int]]

app = typer.Typer(add_completion=False)
console = Console()


@dataclass
class Training:
    """A reconstructed network with what trains it; `epoch` of the epochs are done."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: CosineAnnealingLR
    device: str
    epoch: int = 0

    @classmethod
    def start(cls, model: nn.Module, rate: float, epochs: int, device: str) -> "Training":
        """Reconstruct the model and train it with SGD and a cosine schedule."""
        network = sngd.reconstruct(model.to(device), inplace=True)
        parameters = network.parameters()
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4)
        return cls(network, optimizer, CosineAnnealingLR(optimizer, epochs), device)

    def run_epoch(self, batches: Batches) -> float:
        """Train on every batch once and return the mean loss."""
        self.network.train()
        losses = []
        for images, labels in track(batches, f"epoch {self.epoch + 1}", console=console):
            self.optimizer.zero_grad()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
                outputs = self.network(images.to(self.device))
            loss = F.cross_entropy(outputs.float(), labels.to(self.device))
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            losses.append(loss.detach())
        self.schedule.step()
        self.epoch += 1
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def accuracy(self, batches: Batches) -> float:
        """The share of images whose likeliest class is theirs: top-1."""
        self.network.eval()
        right = [
            (self.network(images.to(self.device)).argmax(1).cpu() == labels)
            for images, labels in batches
        ]
        return float(torch.cat(right).float().mean())

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        unfinished = path.with_suffix(".part")
        torch.save({**parts, "epoch": self.epoch}, unfinished)
        unfinished.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = torch.load(path, map_location=self.device)
        for name in PARTS:
            getattr(self, name).load_state_dict(saved[name])
        self.epoch = saved["epoch"]


PARTS = ("network", "optimizer", "schedule")


def load(folder: Path, side: int, batch_size: int, workers: int) -> tuple[Batches, Batches, int]:
    """Training and validation batches, and how many classes there are."""
    train = ImageFolder(folder / "train", side, training=True)
    judged = ImageFolder(folder / "val", side, training=False)
    if train.classes != judged.classes:
        odd = sorted(set(train.classes) ^ set(judged.classes))
        raise DataError(f"{folder}: {odd[0]} is a class of train or of val alone")
    size = min(batch_size, len(train))
    drawn: Batches = DataLoader(train, size, shuffle=True, num_workers=workers, drop_last=True)
    return drawn, DataLoader(judged, size, num_workers=workers), len(train.classes)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="It holds train and val.")],
    epochs: Annotated[int, typer.Option(min=1)] = 90,
    batch_size: Annotated[int, typer.Option(min=2)] = 256,
    rate: Annotated[float, typer.Option(help="Learning rate, cosine down to 0.")] = 0.03,
    side: Annotated[int, typer.Option(min=32, help="Of the images, in pixels.")] = 224,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 4,
    output: Annotated[Path, typer.Option(help="For checkpoints.")] = Path("build/imagenet"),
) -> None:
    """Train, validate after every epoch, fold in the end."""
    torch.manual_seed(0)
    try:
        batches, judged, classes = load(folder, side, batch_size, workers)
    except DataError as error:
        raise typer.BadParameter(str(error)) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = Training.start(resnet18(classes), rate, epochs, device)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        training.resume(checkpoint)
        console.print(f"going on after epoch {training.epoch}, from {checkpoint}")
    while training.epoch < epochs:
        loss = training.run_epoch(batches)
        accuracy = training.accuracy(judged)
        training.save(checkpoint)
        console.print(f"epoch {training.epoch}: training loss {loss:.3f}, top-1 {accuracy:.1%}")
    torch.save(sngd.fold(training.network).state_dict(), output / "resnet18.pt")
    console.print(f"the plain network: {output / 'resnet18.pt'}")


if __name__ == "__main__":
    app()
