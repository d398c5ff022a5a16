"""The demo from end to end, with few steps."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import compare

pytestmark = pytest.mark.usefixtures("thread_count")


def demo(*arguments: str | Path) -> tuple[int, str]:
    """Runs the demo; its exit status and all it printed, as one line."""
    done = CliRunner().invoke(compare.app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def test_digits_from_end_to_end(tmp_path):
    status, printed = demo("--data", "digits", "--epochs", 20, "--output", tmp_path, "--seed", 1)
    assert status == 0, printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert [result["method"] for result in content["results"]] == ["SGD", "AdamW", "SNGD"]
    assert (content["data"], content["seed"], content["torch"]) == ("digits", 1, torch.__version__)
    for result in content["results"]:
        assert 0 < result["steps_to_goal"] <= 100
        expected = result["steps_to_goal"] * result["milliseconds_per_step"] / 1000
        assert result["seconds_to_goal"] == pytest.approx(expected)
        assert result["final_accuracy"] > 0.9
        assert f"{result['final_accuracy']:.1%}" in printed
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_digits_stand_in_for_missing_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    status, printed = demo("--epochs", 1, "--output", tmp_path)
    assert status == 0, printed
    assert "training on scikit-learn's digits" in printed
    assert json.loads((tmp_path / "compare.json").read_text())["data"] == "digits"


def test_missing_file_in_a_given_folder_is_an_error(tmp_path):
    status, printed = demo("--data-dir", tmp_path, "--output", tmp_path)
    assert status == 2
    assert "train-images-idx3-ubyte" in printed
    assert not (tmp_path / "compare.json").exists()
