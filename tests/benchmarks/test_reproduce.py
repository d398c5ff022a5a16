"""Every experiment of the page at its quick size, what it is made of, and how a run goes on."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sngd_compile as sngd
import tasks
from benchmarks_tiny import DATA, TINY
from contenders import REFERENCE, SNGD, Recipe
from paper import reproduce
from paper.experiments import EXPERIMENTS, Experiment, Sources, mlp
from paper.paper_contenders import (
    GD,
    L2,
    PAPER,
    as_in_the_paper,
    with_output_side,
    without_momentum,
)
from paper.reproduce_page import cells, header, page
from study.race import Budget, race


@pytest.fixture(autouse=True)
def _small_data(monkeypatch, tmp_path, thread_count):
    """Digits stand in for Fashion-MNIST."""
    monkeypatch.setattr(tasks, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(tasks, "images", tasks.images.__wrapped__)


def run(*arguments: object) -> tuple[int, str]:
    """Runs the command; its exit status and all it printed, as one line."""
    done = CliRunner().invoke(reproduce.app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_experiment_runs_alone_and_joins_the_page(experiment: Experiment, tmp_path):
    status, printed = run("--quick", "--only", experiment.name, "--output", tmp_path)
    assert status == 0, printed
    content = json.loads((tmp_path / "reproduce" / f"{experiment.name}.json").read_text())
    assert content["conditions"]["torch"] == torch.__version__
    assert content["conditions"]["device"] == "cpu"
    runs = {one["contender"]: one["runs"] for one in content["contenders"]}
    assert list(runs) == [contender.name for contender in experiment.contenders]
    steps = reproduce.QUICK.steps
    assert {one["steps"] for fresh in runs.values() for one in fresh} == {steps}
    starts = [one["points"][0][2] for fresh in runs.values() for one in fresh]
    assert starts == pytest.approx([starts[0]] * len(starts), rel=1e-5)
    plot = (tmp_path / "reproduce" / f"{experiment.name}.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    text = (tmp_path / "reproduce.md").read_text()
    own = next(part for part in text.split("\n## ") if part.startswith(experiment.name + "\n"))
    assert all(part in own for part in (*experiment.differs, *experiment.reported.values()))
    assert "\n- **SNGD**: " in own
    assert f"[{experiment.name}](#{experiment.name}), SNGD* | " in text  # of one rate
    assert text.count("Not run yet") == len(EXPERIMENTS) - 1


EASY = Experiment("easy", lambda _: TINY, (REFERENCE, SNGD), ("Nothing.",), {SNGD.name: "99 %"})


@pytest.fixture
def _easy(monkeypatch):
    monkeypatch.setattr(reproduce, "EXPERIMENTS", (EASY,))


@pytest.mark.usefixtures("_easy")
def test_resuming_leaves_out_what_is_stored_at_this_size(tmp_path):
    stored = tmp_path / "reproduce" / "easy.json"
    assert run("--seeds", 2, "--output", tmp_path)[0] == 0
    first = stored.read_text()
    assert "there is a result already" in run("--seeds", 2, "--resume", "--output", tmp_path)[1]
    assert "already" in run("--seeds", 1, "--resume", "--output", tmp_path)[1]
    assert stored.read_text() == first
    more = ("--seeds", 1, "--rates", 4, "--resume", "--output", tmp_path)
    assert "already" not in run(*more)[1]
    assert json.loads(stored.read_text())["seeds"] == 1
    assert "already" not in run("--seeds", 2, "--resume", "--output", tmp_path)[1]
    assert "already" not in run("--seeds", 1, "--output", tmp_path)[1]


@pytest.mark.usefixtures("_easy")
def test_an_experiment_that_breaks_off_leaves_the_others(tmp_path, monkeypatch):
    broken = replace(EASY, name="broken", task=lambda _: replace(TINY, batch_size=-1))
    monkeypatch.setattr(reproduce, "EXPERIMENTS", (EASY, broken))
    status, _ = run("--seeds", 1, "--output", tmp_path)
    assert status != 0
    assert [path.name for path in (tmp_path / "reproduce").glob("*.json")] == ["easy.json"]
    assert (tmp_path / "reproduce.md").exists()


def test_unknown_names_and_folders_are_errors(tmp_path):
    status, printed = run("--only", "unheard-of", "--output", tmp_path)
    assert status == 2
    assert "no experiment is called 'unheard-of'; there are mlp-a" in printed
    status, printed = run("--quick", "--data", tmp_path, "--output", tmp_path)
    assert status == 2
    assert "none of the folders mnist, cifar10, ptb is here" in printed
    for name, folder in {"mlp-a": "mnist", "cnn": "cifar10", "lstm": "ptb"}.items():
        (tmp_path / folder).mkdir()
        arguments = ("--quick", "--only", name, "--data", tmp_path, "--output", tmp_path)
        status, printed = run(*arguments)
        assert status == 2, name
        assert re.search(f"{folder}:(no|neither)", re.sub(r"\s", "", printed))
    assert not (tmp_path / "reproduce").exists()


def test_only_takes_parts_of_names():
    assert [e.name for e in reproduce.wanted(["mlp"])] == ["mlp-a", "mlp-b", "mlp-c", "mlp-d"]
    assert reproduce.wanted(None) == list(EXPERIMENTS)


def test_the_authors_network_is_the_first_shape():
    task = EXPERIMENTS[0].task(Sources())
    widths = [tuple(layer.weight.shape) for layer in task.model(0) if isinstance(layer, nn.Linear)]
    assert widths == [(80, 784), (80, 80), (80, 80), (10, 80)]
    assert task.batch_size == 50


def test_the_paper_descends_without_momentum_on_decayed_weights():
    inputs, targets = next(TINY.batches(DATA, 0))
    model = TINY.model(0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    TINY.criterion(model(inputs), targets).backward()
    slopes = {name: value.grad.clone() for name, value in model.named_parameters()}
    decay = {name: L2 if value.dim() > 1 else 0.0 for name, value in before.items()}
    expected = {n: before[n] - 0.1 * (slopes[n] + decay[n] * before[n]) for n in before}
    for contender in (GD, PAPER):  # the paper's first roots are identities
        trainee = contender.prepare(TINY.model(0), Recipe(0.1, TINY.criterion))
        trainee.step(inputs, targets)
        stepped = dict(trainee.finish(trainee.network).named_parameters())
        torch.testing.assert_close(stepped, expected)


def test_presets_are_those_that_the_page_names():
    network = mlp(6, 6)
    layers = [
        next(prepare(network, Recipe(0.1)).network.modules())
        for prepare in (without_momentum, as_in_the_paper, with_output_side)
    ]
    names = [[name for name in layer.state_dict() if "fisher.factor" in name] for layer in layers]
    kinds = [any("output_side" in name for name in layer.state_dict()) for layer in layers]
    assert [bool(found) for found in names] == [False, True, True]
    assert kinds == [False, False, True]


def test_hidden_layers_have_a_fisher_for_each_unit_as_the_authors_have():
    network = as_in_the_paper(mlp(6, 6, 6), Recipe(0.1)).network
    sites = sngd.explain(network).sites
    assert [site.kind for site in sites] == ["shared", "unit", "unit", "shared"]
    assert [site.spec.activation for site in sites] == ["", "relu", "relu", ""]
    common = sngd.Config.paper()
    assert {site.config.replace(fisher="shared") for site in sites} == {common}


def test_every_step_is_counted_once_off_the_clock():
    count = 0

    def after_step() -> None:
        nonlocal count
        count += 1

    race([(REFERENCE, 0.1), (SNGD, 0.03)], TINY, DATA, 0, Budget(7, "steps", 1), after_step)
    assert count == 14


def content(**changes: object) -> dict:
    """What is stored of two seeds."""
    point = {"steps": 5, "seconds": 1.0, "loss": 0.5}
    one = {"failure": None, "steps": 10, "seconds": 2.0, "score": 0.8, "points": [[10, 2.0, 0.4]]}
    runs = [{**one, "goals": [point, point]}, {**one, "goals": [point, None], **changes}]
    tried = [{"rate": rate, "loss": 1.0} for rate in (0.3, 0.1, 0.03)]
    outcome = {"contender": SNGD.name, "rate": 0.03, "tried": tried, "failure": None, "runs": runs}
    return {"goals": [1.0, 0.5], "judged": "test accuracy", "contenders": [outcome]}


def test_a_row_has_the_papers_figure_beside_ours():
    stored = content()
    row = cells(EASY, stored, stored["contenders"][0])
    assert row[:3] == ["SNGD", "0.03*", "200.00 (200.00 to 200.00)"]
    assert row[3:5] == ["reached by 1 of 2"] * 2
    assert row[5:] == ["0.4 (0.4 to 0.4)", "80.0% (80.0% to 80.0%)", "99 %"]
    assert len(row) == len(header(EASY, stored))


def test_a_failure_stays_in_its_row():
    stored = content(failure="diverges", points=[])
    row = cells(EASY, stored, stored["contenders"][0])
    assert row == ["SNGD", *[""] * 5, "diverges on 1 of 2 seeds", "99 %"]


def test_a_page_of_nothing_says_how_to_run_it(tmp_path):
    text = page(tmp_path)
    assert all(f'make reproduce ARGS="--only {e.name}"' in text for e in EXPERIMENTS)
    assert "examples/imagenet.py" in text
