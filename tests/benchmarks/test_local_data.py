"""CIFAR-10's two formats and Penn Treebank's texts are read as written, or named with a remedy."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data import DataError
from paper.experiments import EXPERIMENTS, Sources
from paper.local_data import BINARY_BATCHES, PYTHON_BATCHES, cifar10, penn_treebank
from tasks import LENGTH

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three images of 32 x 32 and their classes."""
    drawn = np.random.default_rng(seed)
    return drawn.integers(256, size=(3, 3072), dtype=np.uint8), drawn.integers(10, size=3)


def write_cifar(folder: Path, binary: bool) -> Path:
    """Six small batches in one of the formats."""
    names = [name for part in (BINARY_BATCHES if binary else PYTHON_BATCHES) for name in part]
    for seed, name in enumerate(names):
        pixels, labels = batch(seed)
        content = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1).tobytes()
        if not binary:
            content = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("binary", [False, True], ids=["python", "binary"])
def test_cifar10_is_standardised_by_channel(binary, tmp_path):
    data = cifar10(write_cifar(tmp_path, binary))
    pixels = torch.tensor(np.concatenate([batch(seed)[0] for seed in range(5)])).double()
    planes = pixels.view(15, 3, 1024)
    test = torch.tensor(batch(5)[0]).double().view(3, 3, 1024)
    for channel in range(3):
        mean, deviation = planes[:, channel].mean(), planes[:, channel].std()
        found = data.test[0].view(3, 3, 1024)[:, channel].double()
        torch.testing.assert_close(
            found, (test[:, channel] - mean) / deviation, rtol=1e-5, atol=1e-5
        )
    assert data.train[1].tolist() == [int(x) for seed in range(5) for x in batch(seed)[1]]
    assert data.test[1].tolist() == batch(5)[1].tolist()


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_networks_of_images_take_cifar10(name, tmp_path):
    task = BY_NAME[name].task(Sources(cifar10=write_cifar(tmp_path, True)))
    data = task.load()
    assert data.name == "cifar-10"
    assert task.model(0)(data.train[0]).shape == (15, 10)


class Harmful:
    """Would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_calls_anything_is_refused(tmp_path):
    write_cifar(tmp_path, False)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(Harmful(tmp_path / "made")))
    with pytest.raises(DataError, match=r"data_batch_3: .*mkdir"):
        cifar10(tmp_path)
    assert not (tmp_path / "made").exists()


DAMAGED = {
    "cut off": (True, b"\x01" * 3000, "3000 bytes, expected a multiple of 3073"),
    "empty": (True, b"", "0 bytes, expected"),
    "an eleventh class": (True, b"\x0b" * 3073, "labels from 11 to 11, expected 0 to 9"),
    "no pickle": (False, b"text", "no batch of CIFAR-10"),
    "no labels": (False, pickle.dumps({b"data": batch(0)[0]}), "no batch of CIFAR-10"),
    "small images": (
        False,
        pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}),
        "2 labels and uint8 pixels of shape (2, 5), expected uint8 [N, 3072]",
    ),
}


@pytest.mark.parametrize(("binary", "content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_batch_is_named(binary, content, message, tmp_path):
    write_cifar(tmp_path, binary)
    name = "data_batch_2.bin" if binary else "data_batch_2"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        cifar10(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_a_missing_batch_says_which_files_there_should_be(tmp_path):
    write_cifar(tmp_path, True)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DataError, match="data_batch_1 to data_batch_5 and test_batch"):
        cifar10(tmp_path)


def write_treebank(folder: Path, test: str = "b a <unk>\n") -> Path:
    """Forty lines of three words for training, twenty for tests."""
    (folder / "ptb.train.txt").write_text("a b <unk>\n" * 40)
    (folder / "ptb.test.txt").write_text(test * 20)
    return folder


def test_words_are_numbered_as_they_come_and_a_line_ends_in_a_word(tmp_path):
    data, known = penn_treebank(write_treebank(tmp_path))
    assert known == 4  # a, b, <unk>, <eos>
    period = torch.tensor([1, 0, 2, 3]).repeat(LENGTH)
    assert torch.equal(data.test[0][0], period[:LENGTH])
    for inputs, targets in (data.train, data.test):
        assert inputs.shape == targets.shape == (len(inputs), LENGTH)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(data.train[0]) == 160 // (LENGTH + 1)


def test_the_lstm_knows_the_words_of_the_treebank(tmp_path):
    task = BY_NAME["lstm"].task(Sources(ptb=write_treebank(tmp_path)))
    data = task.load()
    assert task.model(0)(data.train[0]).shape == (data.train[0].numel(), 4)
    assert not task.classifies
    assert task.score(task.model(0), data.test) == task.loss(task.model(0), data.test) > 0


@pytest.mark.parametrize(
    ("test", "message"),
    [("a c\n", "'c' is not in ptb.train.txt"), ("", "0 words, expected at least 33")],
)
def test_a_text_that_does_not_fit_is_named(test, message, tmp_path):
    with pytest.raises(DataError, match=message) as raised:
        penn_treebank(write_treebank(tmp_path, test))
    assert "ptb.test.txt" in str(raised.value)


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file ptb\.train\.txt"):
        penn_treebank(tmp_path)
