"""The idx reader gives back what was written, and names the file and the remedy when it cannot."""

import gzip
import re
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import DEBIAN_FASHION_MNIST, DataError, Name, load, read_idx


def idx_bytes(content: Tensor, kind: int = 0x08) -> bytes:
    """A uint8 tensor in the idx format."""
    header = struct.pack(f">HBB{content.ndim}I", 0, kind, content.ndim, *content.shape)
    return header + content.numpy().tobytes()


def write_data_set(folder: Path, images: int = 12, labels: int = 12) -> None:
    """Four idx files: training images as they are, the others compressed."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        pixels = torch.randint(256, (images, 4, 3), generator=generator, dtype=torch.uint8)
        classes = torch.arange(labels, dtype=torch.uint8) % 10
        suffix, pack = ("", bytes) if part == "train" else (".gz", gzip.compress)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(pixels)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(classes)))


@pytest.mark.parametrize("shape", [(7,), (3, 5, 2), (0, 4, 4)], ids=str)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_read_idx_gives_back_what_was_written(shape, pack, tmp_path):
    content = torch.randint(256, shape, dtype=torch.uint8)
    path = tmp_path / "content"
    path.write_bytes(pack(idx_bytes(content)))
    read = read_idx(path)
    assert read.shape == content.shape
    assert torch.equal(read, content)


DAMAGED = {
    "another format": (
        b"\x89PNG\r\n\x1a\n",
        "00 00 08, and starts with 89 50 4e",
    ),
    "empty": (b"", "should start with 00 00 08"),
    "floats": (idx_bytes(torch.zeros(4, dtype=torch.uint8), kind=0x0D), "starts with 00 00 0d"),
    "short header": (idx_bytes(torch.zeros(2, 2, dtype=torch.uint8))[:9], "cut off in its header"),
    "short": (idx_bytes(torch.zeros(9, dtype=torch.uint8))[:-2], "9 bytes of data, and 7 follow"),
    "long": (idx_bytes(torch.zeros(9, dtype=torch.uint8)) + b"x", "9 bytes of data, and 10 follow"),
    "short gzip": (gzip.compress(bytes(range(256)))[:-20], "damaged gzip file"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_named_with_what_is_wrong(content, message, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read_idx(path)
    assert str(path) in str(raised.value)


def test_load_standardises_the_inputs_by_the_training_set(tmp_path):
    write_data_set(tmp_path)
    data = load(Name.MNIST, tmp_path)
    assert data.train_inputs.shape == data.test_inputs.shape == (12, 12)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.train_inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train_inputs.std().item() == pytest.approx(1, abs=1e-6)
    train = read_idx(tmp_path / "train-images-idx3-ubyte").float()
    test = read_idx(tmp_path / "t10k-images-idx3-ubyte.gz").float()
    expected = (test.flatten(1) - train.mean()) / train.std()
    torch.testing.assert_close(data.test_inputs, expected)


def test_missing_file_is_named_with_its_folder_and_the_remedy(tmp_path):
    with pytest.raises(DataError, match="no file train-images-idx3-ubyte") as raised:
        load(Name.FASHION_MNIST, tmp_path)
    for part in (str(tmp_path), "idx files", "apt-get install dataset-fashion-mnist"):
        assert part in str(raised.value)


def test_mnist_without_a_folder_asks_for_it():
    with pytest.raises(DataError, match="--data-dir"):
        load(Name.MNIST)


def test_images_and_labels_of_different_number_are_refused(tmp_path):
    write_data_set(tmp_path, images=12, labels=11)
    with pytest.raises(DataError, match=r"shape \[12, 4, 3\] and .* \[11\]"):
        load(Name.MNIST, tmp_path)


def test_digits_need_no_file_and_split_without_overlap():
    data = load(Name.DIGITS)
    assert data.train_inputs.shape == (1437, 64)
    assert data.test_inputs.shape == (360, 64)
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == set(range(10))


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.exists(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_what_it_should_be():
    data = load(Name.FASHION_MNIST)
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    assert data.train_labels.bincount().tolist() == [6_000] * 10
    assert data.test_labels.bincount().tolist() == [1_000] * 10
