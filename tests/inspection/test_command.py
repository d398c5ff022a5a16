"""The command line: every verb, exit codes, errors without tracebacks."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import sngd_compile as sngd
from sngd_compile.command.app import main
from sngd_compile.command.targets import Target

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, 2)

    def forward(self, x, scale=None):
        y = self.outer(self.inner(x).tanh())
        return y if scale is None else y * scale

class Off(Net):
    def forward(self, x):
        return super().forward(x) + torch.rand(())

off = Off()
batch = torch.randn(8, 3)

def two():
    return torch.randn(8, 3), torch.ones(2)

def named():
    return {"x": torch.randn(8, 3)}

def loss(y):
    return y.square().sum()

def number():
    return 3

def leaves():
    raise SystemExit("no \x1b device")

def leaves_well():
    raise SystemExit

def wrong():
    raise ZeroDivisionError("by \\x1b[31m nothing")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own_model.py"
    path.write_text(CODE)
    return str(path)


def test_explain_prints_what_the_function_does(file, capsys):
    assert main(["explain", f"{file}:Net"]) == 0
    found = capsys.readouterr()
    assert f"imports and runs {file}" in found.err
    first = found.out.splitlines()[0]
    assert first == "reconstructed: 2 weights, 26 of 26 elements (100.0 %)"
    assert main(["explain", f"{file}:off", "--by", "state"]) == 0
    assert capsys.readouterr().out.splitlines()[4].startswith("outer.weight")
    assert main(["explain", f"{file}:Net", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["reconstructed_share"] == 1.0


@pytest.mark.parametrize("form", ["text", "diff", "python", "mermaid", "dot"])
def test_graphs_in_every_form(file, capsys, form):
    assert main(["graph", f"{file}:Net", "--module", "inner", "--format", form]) == 0
    text = capsys.readouterr().out
    assert "weight_fisher" in text
    assert "outer" not in text


def test_passes(file, capsys):
    assert main(["passes", f"{file}:Net"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["passes", f"{file}:Net", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6


def test_report(file, capsys, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", f"{file}:Net", "--out", str(page)]) == 0
    assert "inner.weight" in page.read_text()
    assert main(["report", f"{file}:Net", "--out", str(tmp_path / "none" / "page.html")]) == 1
    assert "make the folder first" in capsys.readouterr().err


@pytest.mark.parametrize("inputs", ["batch", "two", "named"])
def test_verify_holds(file, capsys, inputs):
    arguments = ["verify", f"{file}:Net", "--inputs", f"{file}:{inputs}", "--loss", f"{file}:loss"]
    assert main(arguments) == 0
    assert "FAILS" not in capsys.readouterr().out


def test_verify_fails_with_a_code(file, capsys, monkeypatch):

    verify = import_module("sngd_compile.verify")
    failed = verify.Check(name="fold", holds=False, error=1.0)
    monkeypatch.setitem(verify.CHECKS, "fold", lambda subject: failed)
    arguments = ["verify", f"{file}:Net", "--inputs", f"{file}:batch", "--json"]
    assert main(arguments) == 1
    checks = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks if check["holds"] is False] == ["fold"]


def test_bench(file, capsys):
    arguments = ["bench", f"{file}:Net", "--inputs", f"{file}:batch", "--steps", "3"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("ms a step") == 2
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"plain", "reconstructed", "mean_ratio"}
    assert all(value > 0 for value in found.values())


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    # Not each wheel says in its metadata what it was built for.
    assert f"torch {torch.__version__.split('+')[0]}" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"]["second_moment"]["path"] in ("triton", "reference")
    assert all(found["missing"].values())  # each says what it is for


def test_a_class_of_transformers(capsys):
    pytest.importorskip("transformers")
    settings = ["n_layer=1", "n_embd=8", "n_head=2", "vocab_size=11", "n_positions=6"]
    options = [part for setting in settings for part in ("--config", setting)]
    arguments = ["explain", "--transformers", "GPT2LMHeadModel", *options, "--json"]
    assert main(arguments) == 0
    sites = json.loads(capsys.readouterr().out)["sites"]
    assert sites[0]["shape"] == [11, 8]
    assert main(["explain", "--transformers", "NoModel"]) == 1
    assert "no model class NoModel" in capsys.readouterr().err
    assert main([*arguments, "--config", "n_layer"]) == 1
    assert "expected key=value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["explain"], "one of both"),
        (["explain", "{file}:Net", "--transformers", "X"], "one of both"),
        (["explain", "nowhere"], "expected MODULE:NAME or FILE.py:NAME"),
        (["explain", "no_such_module:Net"], "ModuleNotFoundError"),
        (["explain", "none.py:Net"], "there is no file none.py"),
        (["explain", "{file}:Nothing"], "has no Nothing"),
        (["explain", "{file}:number"], "gave int, expected a torch module"),
        (["explain", "{file}:wrong"], r"ZeroDivisionError: by \x1b[31m nothing"),
        (["verify", "{file}:Net"], "name what makes one batch"),
        (["graph", "{file}:Net", "--module", "x"], "'inner', 'outer'"),
    ],
)
def test_an_error_is_a_line(file, capsys, arguments, text):
    given = [argument.format(file=file) for argument in arguments]
    assert main(given) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert text in line
    with pytest.raises(Exception, match=r"."):
        main(["--debug", *given])


def test_code_that_ends_the_program_has_the_last_word(file, capsys):
    assert main(["explain", f"{file}:leaves"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == r"error: no \x1b device"
    assert main(["explain", f"{file}:leaves_well"]) == 0


def test_wrong_usage_has_its_own_code(capsys):
    assert main(["explain", "--by", "colour"]) == 2
    assert main(["nothing"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_module_it_finds_code_beside_it(file, tmp_path):
    command = [sys.executable, "-m", "sngd_compile", "explain", "own_model:Net", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == sngd.explain(_net(file)).to_dict()


def _net(file):

    return Target(f"{file}:Net").model()
