"""Level DEBUG shows the plan and what each pass did; `TORCH_LOGS=+sngd_compile` asks for it."""

import logging
import os
import subprocess
import sys

from torch import nn

import sngd_compile as sngd


def test_reconstructing_logs_the_plan_and_every_pass(caplog):
    with caplog.at_level(logging.DEBUG, "sngd_compile"):
        sngd.reconstruct(nn.Linear(3, 2))
    messages = [r.getMessage() for r in caplog.records if r.name == "sngd_compile"]
    assert [text.splitlines()[0] for text in messages] == [
        "plan",
        "pass reparameterise_",
        "pass observe_",
        "pass associate_",
    ]
    assert "weight + bias" in messages[0]
    assert any(line.startswith("+ fold = fold(") for line in messages[1].splitlines())
    assert any(line.startswith("- ") for line in messages[3].splitlines())


def test_nothing_is_said_otherwise(caplog):
    with caplog.at_level(logging.INFO, "sngd_compile"):
        sngd.reconstruct(nn.Linear(3, 2))
    assert [r for r in caplog.records if r.name == "sngd_compile"] == []


def test_the_variable_of_torch_turns_it_on():
    code = "import sngd_compile; from torch import nn; sngd_compile.reconstruct(nn.Linear(3, 2))"
    environment = os.environ | {"TORCH_LOGS": "+sngd_compile", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "plan" in done.stderr
    assert "pass observe_" in done.stderr
