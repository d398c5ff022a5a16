"""The study from end to end on a tiny task, and the tasks and contenders it is made of."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tasks
from benchmarks_tiny import DATA, TINY
from contenders import (
    BUILT_IN,
    RATE_BESIDE_MUON,
    Contender,
    Recipe,
    Trainee,
    adamw,
    muon,
    muon_with_head,
    plain_sgd,
)
from peers import PEERS
from study import convergence
from tasks import CHARACTERS, LENGTH, TASKS, Task

pytestmark = pytest.mark.usefixtures("thread_count")


def run(*arguments: object) -> tuple[int, str]:
    """Runs the command; its exit status and all it printed, as one line."""
    done = CliRunner().invoke(convergence.app, [str(argument) for argument in arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def broken(model: nn.Module, recipe: Recipe) -> Trainee:
    def step(inputs, targets):
        raise NotImplementedError

    return Trainee(model, step)


def test_study_from_end_to_end(tmp_path, monkeypatch):
    failing = Contender("failing peer", broken, (0.1, 0.3), "torch")
    missing = Contender("missing peer", broken, (0.1, 0.3), "no_package_has_this_name")
    monkeypatch.setattr(convergence, "ALL", (*BUILT_IN, failing, missing))
    monkeypatch.setattr(convergence, "TASKS", (TINY,))
    options = ("--steps", 100, "--seeds", 2, "--rates", 2, "--output", tmp_path)
    status, printed = run(*options)
    assert status == 0, printed
    content = json.loads((tmp_path / "convergence_tiny.json").read_text())
    assert content["conditions"]["torch"] == torch.__version__
    assert (content["conditions"]["steps"], content["seeds"], content["rates"]) == (100, 2, 2)
    results = {result["contender"]: result for result in content["contenders"]}
    assert list(results) == [*(contender.name for contender in BUILT_IN), "failing peer"]
    assert {len(result["tried"]) for result in results.values()} == {2}
    assert results["failing peer"]["failure"] == "fails: NotImplementedError"
    for run_of_adamw in results["AdamW"]["runs"]:
        half, whole = run_of_adamw["goals"]
        assert 0 <= half["steps"] <= whole["steps"] <= run_of_adamw["steps"]
        assert 0 <= half["seconds"] <= whole["seconds"] <= run_of_adamw["seconds"]
    for contender in BUILT_IN:
        for one in results[contender.name]["runs"]:
            assert one["seconds"] >= content["limit"]
            assert one["points"][0][2] == pytest.approx(
                results["SGD"]["runs"][one["seed"] - 1]["points"][0][2], rel=1e-5
            )
    page = (tmp_path / "convergence_tiny.md").read_text()
    assert all(f"| {name} |" in page for name in results)
    assert (tmp_path / "convergence_tiny.png").read_bytes().startswith(b"\x89PNG")


def test_only_and_tasks_choose(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "TASKS", (TINY, TASKS[0]))
    options = ("--steps", 10, "--seeds", 1, "--rates", 1, "--output", tmp_path)
    status, printed = run(*options, "--tasks", "tiny", "--only", "sgd")
    assert status == 0, printed
    assert [path.name for path in tmp_path.glob("*.json")] == ["convergence_tiny.json"]
    content = json.loads((tmp_path / "convergence_tiny.json").read_text())
    names = [result["contender"] for result in content["contenders"]]
    assert names == ["SGD", "AdamW"]
    status, printed = run(*options, "--tasks", "unheard-of")
    assert status == 2
    assert "no task is called 'unheard-of'; there are tiny, mlp" in printed


def test_second_packages_for_a_method_run_when_they_are_named():
    names = [contender.name for contender in convergence.ALL]
    assert set(convergence.SECOND_CHOICE) <= set(names)


@pytest.fixture
def _small_data(monkeypatch, tmp_path):
    """Digits stand in for Fashion-MNIST."""
    monkeypatch.setattr(tasks, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.setattr(tasks, "images", tasks.images.__wrapped__)


@pytest.mark.usefixtures("_small_data")
@pytest.mark.parametrize("task", [t for t in TASKS if not t.metric], ids=lambda task: task.name)
def test_every_task_can_be_learned(task: Task):
    task, data = replace(task, measured=50), task.load()
    network = task.model(0)
    trainee = adamw(network, task.recipe(1e-3))
    before = task.loss(network, data.train)
    batches = task.batches(data, 0)
    network.train()
    for _ in range(10):
        trainee.step(*next(batches))
    if task.name != "resnet":  # whose running statistics lag behind
        assert task.loss(network, data.train) < before
    assert 0 < task.score(network, tuple(part[:50] for part in data.test)) < 1
    assert task.classifies == (task.name != "autoencoder")


def test_text_predicts_the_next_character_and_keeps_the_test_apart():
    data = tasks.text()
    for inputs, targets in (data.train, data.test):
        assert inputs.shape[1] == LENGTH
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert 0 <= inputs.min() <= inputs.max() < tasks.KNOWN
    pieces = CHARACTERS // (LENGTH + 1)
    assert len(data.train[0]) + len(data.test[0]) == pieces
    assert len(data.test[0]) == pieces - pieces * 9 // 10


def test_the_text_to_test_on_is_like_the_text_to_train_on():
    data = tasks.text()
    train, test = (
        part[1].flatten().bincount(minlength=tasks.KNOWN) + 1.0 for part in (data.train, data.test)
    )
    train, test = train / train.sum(), test / test.sum()
    gap = (test * (test / train).log()).sum()  # nats that the frequencies of training cost there
    assert gap < 0.2  # of tables that a machine has written it is 0.7


@pytest.mark.parametrize(
    ("prepare", "by_muon"), [(muon, ["1.weight"]), (muon_with_head, ["1.weight", "2.weight"])]
)
def test_muon_leaves_embeddings_and_vectors_to_adamw(prepare, by_muon):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 3))

    inputs, targets = torch.arange(5), torch.tensor([0, 1, 2, 0, 1])
    one, other = network(), network()
    prepare(one, Recipe(0.01)).step(inputs, targets)
    adamw(other, Recipe(RATE_BESIDE_MUON)).step(inputs, targets)
    same = {
        name: torch.equal(value, other.state_dict()[name])
        for name, value in one.state_dict().items()
    }
    names = ("0.weight", "1.weight", "1.bias", "2.weight", "2.bias")
    assert same == {name: name not in by_muon for name in names}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_train_where_they_are_installed(peer: Contender):
    if not peer.installed:
        pytest.skip(f"{peer.package} is not installed")
    task = Task(
        "tiny",
        "MLP",
        lambda: nn.Sequential(*list(TINY.build())[:1], nn.Linear(6, 3)),
        TINY.load,
        16,
        20,
        TINY.criterion,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = task.model(0)
        before = task.loss(network.train(), DATA.train)
        trainee = peer.prepare(network.train(), Recipe(min(peer.rates)))
        batches = task.batches(DATA, 0)
        for _ in range(25):
            trainee.step(*next(batches))
    plain = task.model(0)
    plain.load_state_dict(trainee.network.state_dict())
    assert task.loss(plain, DATA.train) < before


def test_clipping_is_left_out_where_the_task_has_no_bound():
    inputs, targets = next(TINY.batches(DATA, 0))
    moved = []
    for bound in (1e-3, float("inf")):
        network = TINY.model(0)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        plain_sgd(network, Recipe(1.0, TINY.criterion, bound)).step(inputs, targets)
        pairs = zip(network.parameters(), before, strict=True)
        moved.append(sum(((a - b) ** 2).sum() for a, b in pairs).sqrt().item())
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] > 0.1
