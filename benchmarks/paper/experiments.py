"""The experiments of the paper: what is trained, by whom, what was reported, what differs here."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from torch import nn

import tasks
from contenders import ADAMW, REFERENCE, SNGD, Contender
from data import DataError, Name, load
from networks import CharacterGPT, CharacterLSTM, autoencoder, conv_net, resnet
from paper.exact_comparison import TASK as EXACT_TASK
from paper.exact_natural import EXACT
from paper.local_data import cifar10, penn_treebank
from paper.paper_contenders import GD, KFAC, PAPER
from tasks import Data, Task, with_labels
from workloads import CLASSES

LABELS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Sources:
    """Folders with data sets that are not on every machine; None for what stands in for them."""

    mnist: Path | None = None
    cifar10: Path | None = None
    ptb: Path | None = None

    @classmethod
    def of(cls, folder: Path | None) -> "Sources":
        """Those that lie in a folder, each in one of its own.

        Raises:
            DataError: None of them is there.
        """
        if folder is None:
            return cls()
        names = [each.name for each in fields(cls)]
        found = {name: folder / name for name in names if (folder / name).is_dir()}
        if not found:
            raise DataError(f"{folder}: none of the folders {', '.join(names)} is here")
        return cls(**found)


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Args:
        name: As on the command line and in the names of files.
        task: Makes the task from what data there is.
        contenders: Who takes part; the first sets the goals.
        differs: What is not as in the paper, one sentence each.
        reported: The paper's test result of a contender, as it is printed.
    """

    name: str
    task: Callable[[Sources], Task]
    contenders: tuple[Contender, ...]
    differs: tuple[str, ...]
    reported: Mapping[str, str] = field(default_factory=dict)


class LanguageTask(Task):
    """A task that is judged by its loss, in nats a token: the logarithm of the perplexity."""

    @property
    def classifies(self) -> bool:
        """No: how often the likeliest token is right says little of a language model."""
        return False


FIRST_ORDER = (REFERENCE, ADAMW, SNGD)
UNKNOWN = "The paper's text was not available: its learning rates, epochs and seeds are unknown."


def mlp(*hidden: int) -> nn.Module:
    """784 inputs, hidden layers with ReLU, 10 outputs."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise((784, *hidden)):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], CLASSES))


def mnist_or_fashion(folder: Path | None) -> Data:
    """MNIST from a folder, else the images of the other studies."""
    return tasks.labelled() if folder is None else with_labels(load(Name.MNIST, folder))


def of_mlp(hidden: tuple[int, ...], steps: int, sources: Sources) -> Task:
    """An MLP of the authors' kind, on batches of 50."""
    title = f"MLP {'-'.join(map(str, (784, *hidden, CLASSES)))}"
    data = partial(mnist_or_fashion, sources.mnist)
    return Task("mlp", title, partial(mlp, *hidden), data, 50, steps, LABELS)


def of_images(
    name: str, title: str, build: Callable[..., nn.Module], steps: int, sources: Sources
) -> Task:
    """A network for CIFAR-10 where it is given, else for the images of the other studies."""
    if sources.cifar10 is None:
        return Task(name, title, build, tasks.labelled, 128, steps, LABELS)
    data = partial(cifar10, sources.cifar10)
    return Task(name, title, partial(build, 3, 32), data, 128, steps, LABELS)


def lstm(sources: Sources) -> Task:
    """A language model of words where Penn Treebank is given, else of characters."""
    common = (32, 400, LABELS, 300, 1.0)
    if sources.ptb is None:
        build = partial(CharacterLSTM, tasks.KNOWN)
        return LanguageTask("lstm", "character LSTM of width 96", build, tasks.text, *common)
    words, known = penn_treebank(sources.ptb)
    build = partial(CharacterLSTM, known, 200)
    return LanguageTask("lstm", "LSTM of width 200 over words", build, lambda: words, *common)


def gpt(_: Sources) -> Task:
    """The GPT of the study, judged by its loss."""
    title = "character GPT, two blocks of width 64"
    build = partial(CharacterGPT, tasks.KNOWN, tasks.LENGTH)
    return LanguageTask("gpt", title, build, tasks.text, 32, 400, LABELS, 300, 1.0)


def deep_autoencoder(_: Sources) -> Task:
    """The autoencoder on which K-FAC was first shown."""
    build = partial(autoencoder, (784, 1000, 500, 250, 30))
    title = "autoencoder 784-1000-500-250-30 and back"
    return Task("autoencoder", title, build, tasks.unlabelled, 256, 100, nn.MSELoss())


CHOSEN_SHAPE = "Of the authors' four shapes only `mlp-a`'s is known here; this one is our choice."
FROM_FIRST_ROWS = (
    "The authors' average starts at the identity; here it is the average of what was observed, so "
    "the first roots are not those of an identity that is forgotten slowly."
)
ONE_EPOCH = "One epoch; the authors' number is unknown."
SHORTER = (
    "Less than an epoch, 1200 steps, because a step with a Fisher for each unit is dear here; the "
    "authors' number is unknown."
)
NOT_MNIST = "The reported figures are for MNIST; without it the data are Fashion-MNIST."
NOT_RESNET18 = (
    "The reported figures are for ResNet-18 on CIFAR-10, trained to the end; this is a small "
    "network, minutes of one thread, and without that data set Fashion-MNIST."
)

EXPERIMENTS = (
    Experiment(
        "mlp-a",
        partial(of_mlp, (80, 80, 80), 2400),
        (GD, PAPER, REFERENCE, SNGD, ADAMW, KFAC),
        (
            NOT_MNIST,
            "Two epochs; the authors' number is unknown.",
            FROM_FIRST_ROWS,
            "K-FAC is this project's own, and its rates are lower, because its steps have "
            "another unit.",
        ),
        {GD.name: "94.8 %", PAPER.name: "97.6 %", KFAC.name: "96.3 %"},
    ),
    *(
        Experiment(
            name,
            partial(of_mlp, hidden, steps),
            (GD, PAPER, SNGD),
            (CHOSEN_SHAPE, length, FROM_FIRST_ROWS),
        )
        for name, hidden, steps, length in (
            ("mlp-b", (80, 80), 1200, ONE_EPOCH),
            ("mlp-c", (160, 160, 160), 300, SHORTER),
            ("mlp-d", (80, 80, 80, 80, 80), 600, SHORTER),
        )
    ),
    Experiment(
        "cnn",
        partial(of_images, "cnn", "conv net 8-16-32", conv_net, 400),
        FIRST_ORDER,
        (UNKNOWN, "Whether the paper has this network is not known; it stands for CNNs."),
    ),
    Experiment(
        "resnet",
        partial(of_images, "resnet", "ResNet 8-16-32 with BatchNorm", resnet, 250),
        FIRST_ORDER,
        (NOT_RESNET18, UNKNOWN),
        {REFERENCE.name: "93.02 %", ADAMW.name: "92.93 % (Adam)", SNGD.name: "94.44 %"},
    ),
    Experiment(
        "lstm",
        lstm,
        FIRST_ORDER,
        (
            "The paper trains an LSTM on Penn Treebank; its figure was not found. Without it "
            "this is a character model on the sources of Python's standard library.",
        ),
    ),
    Experiment("gpt", gpt, FIRST_ORDER, ("Not in the paper: a transformer beside its LSTM.",)),
    Experiment(
        "autoencoder",
        deep_autoencoder,
        FIRST_ORDER,
        (
            "Not known to be in the paper: the classic test of second-order methods (Martens & "
            "Grosse, arXiv 1503.05671), here with ReLU and the mean squared error.",
            "Few steps, because each takes long here.",
        ),
    ),
    Experiment(
        "exact",
        lambda _: EXACT_TASK,
        (REFERENCE, SNGD, EXACT),
        (
            "The paper claims faster convergence than natural gradient descent with comparable "
            "solutions; here the exact Fisher is that of a small network.",
        ),
    ),
)
"""In the order of the page. ImageNet has a training script instead, `examples/imagenet.py`."""
