"""Data sets that `make reproduce` reads from a folder of the user's: CIFAR-10 and Penn Treebank."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from data import DataError
from tasks import LENGTH, Data

IMAGE_BYTES = 3 * 32 * 32
END_OF_SENTENCE = "<eos>"
PYTHON_BATCHES = ([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"])
BINARY_BATCHES = ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"])
HARMLESS = {"_reconstruct", "ndarray", "dtype", "encode"}
"""What the pickled batches call, of numpy and of `_codecs`; nothing else is looked up."""


class _Unpickler(pickle.Unpickler):
    """Reads arrays, and refuses to import anything else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up what makes an array, under its name in any version of numpy."""
        module = module.replace("numpy.core", "numpy._core")
        known = module in ("numpy", "numpy._core.multiarray", "_codecs") and name in HARMLESS
        if not known:
            raise DataError(f"it asks for {module}.{name}, which no batch of CIFAR-10 needs")
        return super().find_class(module, name)


@cache
def cifar10(folder: Path) -> Data:
    """Read CIFAR-10, its python or its binary batches, as rows of mean 0 and variance 1.

    Raises:
        DataError: A batch is missing or is not what it should be.
    """
    for (training, test), read in ((PYTHON_BATCHES, _python), (BINARY_BATCHES, _binary)):
        if all((folder / name).exists() for name in (*training, *test)):
            train = _joined([read(folder / name) for name in training])
            return _standardised(train, _joined([read(folder / name) for name in test]))
    raise DataError(
        f"{folder}: neither data_batch_1 to data_batch_5 and test_batch nor the same with .bin are "
        "here; give the folder that CIFAR-10's python or binary archive unpacks to"
    )


def _python(path: Path) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        try:
            content = cast(dict[bytes, Any], _Unpickler(file, encoding="bytes").load())
            pixels, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
        except (DataError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no batch of CIFAR-10 ({error}); get it again") from error
    return _checked(path, pixels, labels)


def _binary(path: Path) -> tuple[Tensor, Tensor]:
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % (1 + IMAGE_BYTES):
        raise DataError(
            f"{path}: {len(content)} bytes, expected a multiple of {1 + IMAGE_BYTES}: a label and "
            "an image each; get it again"
        )
    rows = content.reshape(-1, 1 + IMAGE_BYTES)
    return _checked(path, rows[:, 1:], rows[:, 0])


def _checked(path: Path, pixels: Any, labels: Any) -> tuple[Tensor, Tensor]:
    if pixels.shape != (len(labels), IMAGE_BYTES) or pixels.dtype != np.uint8:
        raise DataError(
            f"{path}: {len(labels)} labels and {pixels.dtype} pixels of shape {pixels.shape}, "
            f"expected uint8 [N, {IMAGE_BYTES}]"
        )
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    return torch.tensor(pixels), torch.tensor(labels, dtype=torch.int64)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])


def _standardised(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Data:
    """Scale by mean and deviation of each channel over the training set."""
    images, others = (part[0].float().unflatten(1, (3, -1)) for part in (train, test))
    mean, deviation = images.mean((0, 2), keepdim=True), images.std((0, 2), keepdim=True)
    inputs, judged = (((part - mean) / deviation).flatten(1) for part in (images, others))
    return Data("cifar-10", (inputs, train[1]), (judged, test[1]))


@cache
def penn_treebank(folder: Path) -> tuple[Data, int]:
    """Read Penn Treebank's words in pieces, and say how many different ones there are.

    A line ends in `<eos>`; words are numbered in the order in which they are first met.

    Raises:
        DataError: A file is missing or too short, or a word of the test set is not in training.
    """
    paths = [folder / f"ptb.{part}.txt" for part in ("train", "test")]
    for path in paths:
        if not path.exists():
            raise DataError(
                f"{folder}: no file {path.name} here; give the folder of Penn Treebank's "
                "ptb.train.txt and ptb.test.txt"
            )
    train, test = (
        path.read_text("utf-8").replace("\n", f" {END_OF_SENTENCE} ").split() for path in paths
    )
    known = {word: number for number, word in enumerate(dict.fromkeys(train))}
    unknown = next((word for word in test if word not in known), None)
    if unknown is not None:
        raise DataError(f"{paths[1]}: {unknown!r} is not in {paths[0].name}; give <unk> for it")
    train_pieces, test_pieces = (
        _pieces([known[word] for word in words], path)
        for words, path in zip((train, test), paths, strict=True)
    )
    # Shuffled: neighbours in a text are alike, and the first of them are what is measured.
    order = torch.randperm(len(train_pieces), generator=torch.Generator().manual_seed(0))
    return Data("penn-treebank", _shifted(train_pieces[order]), _shifted(test_pieces)), len(known)


def _pieces(words: list[int], path: Path) -> Tensor:
    if len(words) <= LENGTH:
        raise DataError(f"{path}: {len(words)} words, expected at least {LENGTH + 1}")
    return torch.tensor(words[: len(words) // (LENGTH + 1) * (LENGTH + 1)]).view(-1, LENGTH + 1)


def _shifted(pieces: Tensor) -> tuple[Tensor, Tensor]:
    return pieces[:, :-1], pieces[:, 1:].contiguous()
