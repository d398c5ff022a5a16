"""The ImageNet script from end to end on a few drawn pictures, and how it reads them."""

import re
from functools import partial

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import imagenet
from data import DataError
from image_folder import DEVIATION, MEAN, ImageFolder, middle, random_box
from resnet import resnet18


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """Two channels where there would be 64."""
    monkeypatch.setattr(imagenet, "resnet18", partial(resnet18, width=2))


def write_pictures(folder, classes=("a", "b"), count=4, size=(50, 40)):
    """Pictures of one colour for each class, darker from one to the next."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for shade in range(count):
            colour = tuple(255 - 20 * shade if i == number else 0 for i in range(3))
            suffix = "JPEG" if shade % 2 else "png"
            Image.new("RGB", size, colour).save(folder / name / f"{shade}.{suffix}")
    return folder


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "val"):
        write_pictures(tmp_path / "data" / part)
    return tmp_path / "data"


def run(*arguments):
    done = CliRunner().invoke(imagenet.app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def small(folder, output, epochs):
    sizes = ("--batch-size", 4, "--side", 32, "--workers", 0)
    return run(folder, "--epochs", epochs, "--output", output, *sizes)


def test_training_ends_in_a_plain_network(folder, tmp_path):
    status, printed = small(folder, tmp_path / "out", 2)
    assert status == 0, printed
    assert re.search(r"epoch 2: training loss \d+\.\d+, top-1 \d+\.\d%", printed)
    plain = resnet18(2, width=2)
    plain.load_state_dict(torch.load(tmp_path / "out" / "resnet18.pt"))
    assert all(value.isfinite().all() for value in plain.state_dict().values())


def test_a_broken_off_run_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    assert small(folder, tmp_path / "out", 3)[0] == 0
    schedules = []
    original = imagenet.Training.run_epoch

    def one_epoch(training, batches):
        schedules.append((training.epoch, training.optimizer.param_groups[0]["lr"]))
        if len(schedules) == 3:
            raise KeyboardInterrupt
        return original(training, batches)

    monkeypatch.setattr(imagenet.Training, "run_epoch", one_epoch)
    assert small(folder, tmp_path / "again", 3)[0] != 0
    status, printed = small(folder, tmp_path / "again", 3)
    assert status == 0, printed
    assert "going on after epoch 2" in printed
    assert schedules[2] == schedules[3]
    saved = torch.load(tmp_path / "again" / "checkpoint.pt")
    assert saved["epoch"] == 3
    steps = [value for name, value in saved["network"].items() if "extra_state" in name]
    assert {int(state[0]) for state in steps} == {6}  # two batches an epoch


def test_pictures_are_normalised_and_numbered_by_class(folder):
    found = ImageFolder(folder / "val", 32, training=False)
    assert (len(found), found.classes) == (8, ["a", "b"])
    picture, number = found[4]
    assert number == 1
    for channel, value in enumerate((0.0, 1.0, 0.0)):
        expected = (value - MEAN[channel]) / DEVIATION[channel]
        torch.testing.assert_close(picture[channel], torch.full((32, 32), expected))


@pytest.mark.parametrize("size", [(50, 40), (1, 1), (3, 200)], ids=str)
def test_parts_lie_in_the_picture(size):
    torch.manual_seed(0)
    boxes = [middle(*size), *(random_box(*size) for _ in range(50))]
    for box in boxes:
        assert 0 <= box.left <= box.left + box.width - 1 < size[0]
        assert 0 <= box.top <= box.top + box.height - 1 < size[1]
    assert boxes[0].width == boxes[0].height


def test_what_is_no_picture_is_named(folder):
    (folder / "train" / "a" / "0.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"0\.png: not a picture"):
        ImageFolder(folder / "train", 32, training=True)[0]


def test_folders_that_do_not_fit_are_named(folder, tmp_path):
    status, printed = small(tmp_path / "absent", tmp_path / "out", 1)
    assert status == 2
    assert "no such folder" in printed
    write_pictures(folder / "train", classes=("c",))
    assert "c is a class of train or of val alone" in small(folder, tmp_path / "out", 1)[1]
    (folder / "train" / "d").mkdir()
    with pytest.raises(DataError, match=r"train.d: no picture here"):
        ImageFolder(folder / "train", 32, training=True)
    with pytest.raises(DataError, match="no folder of a class"):
        ImageFolder(folder / "train" / "d", 32, training=True)
