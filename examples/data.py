"""Small image classification data sets as tensors: idx files (MNIST, Fashion-MNIST) and digits."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08


class Name(StrEnum):
    """The data sets that can be loaded."""

    FASHION_MNIST = "fashion-mnist"
    MNIST = "mnist"
    DIGITS = "digits"


class DataError(Exception):
    """A data file is missing or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Inputs `[N, pixels]`, of mean 0 and variance 1 over the training set, and labels `[N]`."""

    name: Name
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def load(name: Name, folder: Path | None = None) -> Dataset:
    """Loads a data set.

    Args:
        name: Which one.
        folder: Where the four idx files lie, as they are or compressed with gzip. Without it,
            Fashion-MNIST is looked for where Debian's package puts it. Digits needs none.

    Raises:
        DataError: A file is missing, damaged, or does not fit the others.
    """
    if name is Name.DIGITS:
        return _digits()
    if folder is None:
        if name is Name.MNIST:
            raise DataError("MNIST: say with --data-dir which folder has the four idx files")
        folder = DEBIAN_FASHION_MNIST
    train, train_labels = _images_and_labels(folder, "train")
    test, test_labels = _images_and_labels(folder, "t10k")
    return _standardised(name, train, train_labels, test, test_labels)


def read_idx(path: Path) -> Tensor:
    """Reads an idx file of unsigned bytes, compressed with gzip or not, into a uint8 tensor.

    Raises:
        DataError: The file is damaged, or of another kind.
    """
    content = _uncompressed(path)
    zeros, kind, dimensions = struct.unpack(">HBB", content[:4].ljust(4, b"\xff"))
    if zeros != 0 or kind != UNSIGNED_BYTE:
        raise DataError(
            f"{path}: not an idx file of unsigned bytes: it should start with 00 00 08, "
            f"and starts with {content[:3].hex(' ')}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path}: cut off in its header; get the file again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: its header promises {math.prod(shape)} bytes of data, "
            f"and {len(content) - start} follow; get the file again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); get the file again") from error


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(
        f"{folder}: no file {name} or {name}.gz here; give the folder that has the idx files, or "
        "install Fashion-MNIST with: apt-get install dataset-fashion-mnist"
    )


def _images_and_labels(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images_path = _find(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{images_path} has shape {list(images.shape)} and {labels_path} "
            f"{list(labels.shape)}: they should be [N, height, width] and [N]"
        )
    return images, labels


def _digits() -> Dataset:
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.target)
    # Shuffled: the file is sorted by writer, and the last ones write differently.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return _standardised(Name.DIGITS, images[train], labels[train], images[test], labels[test])


def _standardised(
    name: Name, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> Dataset:
    train, test = train.flatten(1).float(), test.flatten(1).float()
    mean, deviation = train.mean(), train.std()
    return Dataset(
        name,
        (train - mean) / deviation,
        train_labels.long(),
        (test - mean) / deviation,
        test_labels.long(),
    )
