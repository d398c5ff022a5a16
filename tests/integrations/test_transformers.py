"""The `Trainer` of transformers, unpatched: what it does to a plain model it does to a network."""

import copy
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import GPT2LMHeadModel, TrainerCallback

import sngd_compile as sngd
from api import batch, mlp
from integrations.language import STEPS, gap, gpt, network, trainer_of
from sngd_compile.integrations.transformers import SngdCallback

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]


def trained(folder: Any, *, callback: bool = False, resume: Any = None, **settings: Any) -> Any:
    """Train the same network on the same words."""
    trainer = trainer_of(network(), folder, **settings)
    trainer.eval_dataset = trainer.train_dataset
    if callback:
        trainer.add_callback(SngdCallback(trainer))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any) -> nn.Module:
    """A network after a training without anything special."""
    torch.set_default_dtype(torch.float64)
    net = trained(tmp_path_factory.mktemp("uninterrupted")).model
    torch.set_default_dtype(torch.float32)
    return net


def test_ordinary_checkpoints_lie_beside_those_of_training_and_go_with_them(tmp_path):
    trainer = trained(
        tmp_path,
        callback=True,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worst is the best, which is the first
    )
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [best.split("/")[-1]]
    folders = {tmp_path / "checkpoint-2/sngd/folded", tmp_path / "sngd/folded"}
    assert {path.parent for path in tmp_path.rglob("folded/*.safetensors")} == folders
    for folder in folders:
        plain, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert gap(plain, trainer.model) < 1e-12
    sngd.fold_(trainer.model)
    trainer.save_model(tmp_path / "by hand")
    ordinary = GPT2LMHeadModel.from_pretrained(tmp_path / "by hand")
    assert gap(ordinary, plain) < 1e-12


class Log(TrainerCallback):
    """Remembers what is logged, as a logger does."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, logs, **kwargs):
        """Take a line."""
        self.lines.append((state.global_step, logs))


class Averaging(TrainerCallback):
    """Averages as people write it, in a copy of the network."""

    def __init__(self) -> None:
        self.average: Any = None
        self.expected: dict[str, torch.Tensor] = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        """Move the average towards the network, and those of ordinary weights likewise."""
        weights = sngd.fold(model).state_dict()
        if self.average is None:
            self.average, self.expected = copy.deepcopy(model), weights
            return
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 0.3)
        for name, weight in weights.items():
            self.expected[name] = torch.lerp(self.expected[name], weight, 0.3)


def test_metrics_are_logged_with_the_loss_and_copies_follow(tmp_path):
    trainer = trainer_of(
        network(),
        tmp_path,
        logging_strategy="steps",
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=STEPS,
        max_grad_norm=0.1,
    )
    log, averaging = Log(), Averaging()
    for callback in (log, SngdCallback(trainer, layers=True), averaging):
        trainer.add_callback(callback)
    trainer.train()
    ours = [(step, line) for step, line in log.lines if any("sngd/" in name for name in line)]
    assert [step for step, _ in ours] == [2, 4, 6]
    names = {name for _, line in ours for name in line if name != "epoch"}
    assert {"sngd/total/norm", "sngd/total/condition"} <= names
    assert "sngd/transformer.h.0.attn.c_attn.weight/share" in names
    assert all(0 < line["sngd/total/norm"] <= 0.1 for _, line in ours)
    assert len([line for line in trainer.state.log_history if "sngd/total/norm" in line]) == 3
    found = sngd.fold(averaging.average).state_dict()
    for name, weight in averaging.expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-11, atol=1e-11)


def test_where_the_gradients_are_gone_what_needs_them_is_left_out(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 18}
    trainer = trained(tmp_path, callback=True, logging_strategy="epoch", **settings)
    (line,) = [line for line in trainer.state.log_history if "sngd/total/condition" in line]
    ours = [name for name in line if "sngd/" in name]
    assert not any("norm" in name for name in ours)
    assert all(name.startswith("sngd/total/") for name in ours)


class Regression(nn.Sequential):
    """A model that is none of transformers', with a tie."""

    def __init__(self) -> None:
        super().__init__(*mlp(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self[5].weight = self[3].weight

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss."""
        y = super().forward(x)
        return {"loss": (y - labels[:, :3]).square().mean(), "y": y}


def test_a_model_of_ones_own_has_a_file_of_tensors(tmp_path):
    model = Regression()
    trainer = trainer_of(sngd.reconstruct(model), tmp_path)
    trainer.train_dataset = [{"x": row, "labels": row} for row in batch(0, 36)]
    callback = SngdCallback(trainer)
    trainer.add_callback(callback)
    trainer.train()
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    assert not list(tmp_path.glob("*"))  # nothing was to be saved
    callback.on_save(trainer.args, trainer.state, trainer.control)
    state = safetensors.torch.load_file(
        tmp_path / f"checkpoint-{STEPS}/sngd/folded/model.safetensors"
    )
    assert state.keys() == model.state_dict().keys()
    model.load_state_dict(state)
    assert gap(model, trainer.model) < 1e-12


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, uninterrupted):
    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    whole = trained(tmp_path, callback=True, save_strategy="steps", save_steps=4, **settings)
    resumed = trained(tmp_path, callback=True, resume=tmp_path / "checkpoint-4", **settings)
    assert resumed.state.global_step == STEPS
    assert gap(whole.model, resumed.model) < 1e-12
    assert gap(whole.model, uninterrupted) < 1e-12  # whose batches are not accumulated


# Dynamo asks for it after a graph break, in any model.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": 0}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": 1}},
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "inductor"}, marks=pytest.mark.nightly
        ),
    ],
    ids=["checkpointed", "checkpointed reentrant", "compiled"],
)
def test_other_ways_through_a_batch_are_the_same_training(tmp_path, uninterrupted, settings):
    # transformers computes the loss in float32, which a compiler rounds in another order.
    tolerance = 1e-6 if "torch_compile" in settings else 1e-11
    assert gap(trained(tmp_path, **settings).model, uninterrupted) < tolerance


def test_autocast_observes_every_weight(tmp_path):
    """Statistics are float32 or wider, of activations that were rounded once."""
    torch.set_default_dtype(torch.float32)
    trainer = trainer_of(sngd.reconstruct(gpt()), tmp_path, bf16=True)
    trainer.train()
    layers = sngd.fisher_layers(trainer.model)
    assert all(layer.rows_seen for layer in layers.values())
    assert {layer.factor.dtype for layer in layers.values()} == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
