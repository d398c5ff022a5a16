"""The benchmarks from end to end on tiny networks; no time is judged."""

import json

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import benchmarks_tiny
import contenders
import sngd_compile as sngd
from contenders import Contender, Recipe, Trainee
from interleave import CYCLE, WARM_UP, Ratio, Times
from profiling import profile_step, step_floor
from sngd_compile.fisher.layer import FisherLayer
from steps import compiled_step, gate, memory, reconstruct_time, step_time
from tasks import TIMED
from workloads import CLASSES, Workload


def tiny_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def tiny_conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES))


TINY = (
    Workload("tiny MLP", tiny_mlp, (6,), 8, bar=1e9),
    Workload("tiny conv net", tiny_conv_net, (1, 4, 4), 4, bar=0.0),
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, thread_count):
    for script in (step_time, memory, profile_step):
        monkeypatch.setattr(script, "WORKLOADS", TINY)
    monkeypatch.setattr(compiled_step, "COMPILED_WORKLOADS", TINY)


def run(app: typer.Typer, *arguments: object) -> tuple[int, str]:
    """Runs a command; its exit status and all it printed, as one line."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def command(main: object) -> typer.Typer:
    """What `typer.run` makes of a function."""
    app = typer.Typer()
    app.command()(main)
    return app


def absent(model: nn.Module, recipe: Recipe) -> Trainee:
    raise AssertionError("a package that is missing was used")


def broken(model: nn.Module, recipe: Recipe) -> Trainee:
    raise RuntimeError


def tiring(model: nn.Module, recipe: Recipe) -> Trainee:
    """Train as SGD does, and break off a few steps after the warm-up."""
    trainee, left = contenders.REFERENCE.prepare(model, recipe), iter(range(WARM_UP + 3))

    def step(inputs, targets):
        if next(left, None) is None:
            raise RuntimeError("no more")
        return trainee.step(inputs, targets)

    return Trainee(trainee.network, step)


def test_step_time_from_end_to_end(tmp_path, monkeypatch):
    missing = Contender("missing peer", absent, (0.1,), "no_package_has_this_name")
    failing = Contender("failing peer", broken, (0.1,), "torch")
    tired = Contender("tired peer", tiring, (0.1,), "torch")
    monkeypatch.setattr(step_time, "ALL", (*contenders.BUILT_IN, missing, failing, tired))
    status, printed = run(step_time.app, "--steps", CYCLE, "--output", tmp_path)
    assert status == 0, printed
    content = json.loads((tmp_path / "step_time.json").read_text())
    assert (content["steps"], content["torch"]) == (CYCLE, torch.__version__)
    assert [result["workload"] for result in content["workloads"]] == [w.name for w in TINY]
    for result in content["workloads"]:
        rows = {row["contender"]: row for row in result["rows"]}
        assert rows["SGD"]["ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
        assert rows["SNGD"]["ratio"]["low"] <= rows["SNGD"]["ratio"]["mean"]
        assert rows["missing peer"]["not_run"] == "not installed"
        assert rows["failing peer"]["not_run"] == "fails: RuntimeError"
        assert rows["tired peer"]["not_run"] == "fails after 3 steps: RuntimeError"
        assert [layer["explained"] == layer["measured"] for layer in result["memory"]] == [True] * 2
    text = (tmp_path / "step_time.md").read_text()
    assert "pass (<= 1e+09)" in text
    assert "miss (<= 0)" in text


def test_only_takes_parts_of_names():
    everyone, always = contenders.BUILT_IN, contenders.REFERENCE
    chosen = contenders.chosen(["adam"], everyone, always)
    assert [contender.name for contender in chosen] == ["SGD", "AdamW"]
    assert contenders.chosen(None, everyone, always) == list(everyone)
    with pytest.raises(typer.BadParameter, match="no contender is called 'unheard-of'"):
        contenders.chosen(["unheard-of"], everyone, always)


@pytest.fixture
def wrong_networks(monkeypatch):
    """Networks that are not the function they were reconstructed from."""
    original = sngd.reconstruct

    def wrong(model: nn.Module) -> nn.Module:
        network = original(model)
        with torch.no_grad():
            next(network.parameters()).mul_(1.1)
        return network

    monkeypatch.setattr(sngd, "reconstruct", wrong)


@pytest.mark.usefixtures("wrong_networks")
def test_nothing_is_shown_when_the_network_is_wrong(tmp_path):
    status, printed = run(step_time.app, "--only", "sngd", "--output", tmp_path)
    assert status == 1
    assert "the network is wrong. its outputs: relative error" in printed
    assert "mean" not in printed
    assert list(tmp_path.iterdir()) == []


def test_gate_sees_a_gradient_that_is_not_natural(monkeypatch):
    model = tiny_mlp()
    network, (inputs, labels) = sngd.reconstruct(model), next(TINY[0].batches())
    gate.check_network(network, model, inputs, labels, TINY[0].criterion)
    twice = property(lambda layer: 2 * layer.root_buffers.matrix())
    monkeypatch.setattr(FisherLayer, "root", twice)
    with pytest.raises(gate.GateError, match=r"0\.weight: its gradient"):
        gate.check_network(network, model, inputs, labels, TINY[0].criterion)


def test_gate_sees_memory_that_explain_left_out():
    model = tiny_mlp()
    network, (inputs, labels) = sngd.reconstruct(model), next(TINY[0].batches())
    sngd.fisher_layers(network)["0.weight"].register_buffer("another", torch.zeros(3))
    with pytest.raises(gate.GateError, match=r"0\.weight: explain says \d+ bytes, it takes \d+"):
        gate.check_network(network, model, inputs, labels, TINY[0].criterion)


def test_ratio_compares_cycles():
    reference = Times([1.0] * CYCLE + [2.0] * CYCLE)
    assert Ratio.of(Times([3.0] * 2 * CYCLE), reference) == Ratio(2.0, 1.5, 3.0)


def test_bars_are_those_of_the_networks_that_are_timed():
    assert [workload.bar for workload in TIMED] == [1.35, 1.10, 1.10, 1.15, 1.15, 1.15, 1.40]


def test_memory_from_end_to_end():
    status, printed = run(command(memory.main))
    assert status == 0, printed
    assert printed.count("weight") == 6


def test_every_kind_of_step_is_profiled(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    kinds = profile_step.breakdown(TINY[0], CYCLE, rate=1e9)
    assert tuple(kinds) == profile_step.KINDS
    parts = {kind: profile.parts for kind, profile in kinds.items()}
    assert [kind for kind, own in parts.items() if own.get("refresh")] == ["refresh"]
    assert [kind for kind, own in parts.items() if own.get("observation")] == ["observed"]
    assert [kind for kind, own in parts.items() if "guard" not in own] == ["plain"]
    assert all(own["matrix products"] > 0 for own in parts.values())
    allocations = [profile.allocations for profile in kinds.values()]
    assert 0 < allocations[0] < allocations[1] < min(allocations[2:])
    assert all(profile.allocated > 0 for profile in kinds.values())


def test_profile_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_step, "TASKS", (benchmarks_tiny.TINY,))
    monkeypatch.setattr(profile_step, "STUDIED", (benchmarks_tiny.TINY.name,))
    status, printed = run(command(profile_step.main), "--steps", 2, "--output", tmp_path)
    assert status == 0, printed
    text = (tmp_path / "profile_step.md").read_text()
    assert all(workload.name in printed and workload.name in text for workload in TINY)
    assert benchmarks_tiny.TINY.title in text
    assert "| matrix products |" in text


def test_floors_are_the_multiply_adds_of_the_layers():
    """By hand: 8 rows, weights 5 x 6 and 10 x 5; 4 images, a 2 x 1 x 3 x 3 kernel at 4 places."""
    first, second = step_floor.work_of(TINY[0])
    assert (first.plain, second.plain) == (2 * 8 * 30, 3 * 8 * 50)
    # The first layer's root on the rows, one way, or on the weights; the second's likewise.
    assert (first.root, second.root) == (min(8 * 36, 2 * 30 * 6), min(2 * 8 * 25, 2 * 50 * 5))
    assert (first.observation, second.observation) == (8 * 49 // 2, 8 * 36 // 2)
    convolution, last = step_floor.work_of(TINY[1])
    assert convolution.plain == 2 * 4 * 4 * 18
    assert (convolution.is_convolution, last.is_convolution) == (True, False)
    steady, refresh = (step_floor.work_by_group(TINY[1], kind) for kind in ("steady", "refresh"))
    assert steady["convolutions"] == convolution.plain
    assert steady["matrix products"] == last.plain + last.root + convolution.root
    assert set(refresh) - set(steady) == {"refresh"}


def test_reconstruct_time_from_end_to_end():
    status, printed = run(command(reconstruct_time.main), "--few", 1, "--many", 10, "--repeats", 1)
    assert status == 0, printed
    assert "hooks a layer, µs" in printed
    assert "(<= 12)" in printed


@pytest.mark.slow
def test_compiled_steps_from_end_to_end():
    arguments = ("--steps", 1, "--backend", "eager")
    status, printed = run(command(compiled_step.main), *arguments)
    assert status == 0, printed
    assert all(workload.name in printed for workload in TINY)
    assert "(<= 1.5)" in printed


@pytest.mark.usefixtures("wrong_networks")
def test_compiled_steps_are_not_timed_when_the_network_is_wrong():
    status, printed = run(command(compiled_step.main), "--backend", "eager")
    assert status == 1
    assert "the network is wrong. tiny MLP: its first loss is" in printed
