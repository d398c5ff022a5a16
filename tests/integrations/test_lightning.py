"""Lightning, unpatched: what its trainer does to a plain module it does to a network in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sngd_compile as sngd
from api import EVERY_STEP, batch, mlp
from integrations.language import gap
from sngd_compile.integrations.lightning import SngdCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning resumes where it says that the folder of the files is another.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    # Lightning 2.6 with torch 2.13.
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
]

EPOCHS, BATCHES = 4, 3
CONFIG = EVERY_STEP.replace(refresh_every=5, observe_every=2, early_observations=(1,))


class Regression(LightningModule):
    """Regresses on three of the inputs, by hand if asked to."""

    def __init__(self, by_hand: bool = False, interval: str = "step") -> None:
        super().__init__()
        self.interval = interval
        torch.manual_seed(0)
        self.net, self.automatic_optimization = mlp(), not by_hand

    def training_step(self, rows: list[Tensor], index: int) -> Tensor:
        """Return the loss; by hand, add up the gradients of two batches first."""
        (x,) = rows
        loss = F.mse_loss(self.net(x), x[:, :3])
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss / 2)
            if index % 2:
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, rows: list[Tensor], index: int) -> None:
        """Log a loss of the weights that are validated."""
        (x,) = rows
        self.log("val_loss", F.mse_loss(self.net(x), x[:, :3]))

    def configure_optimizers(self) -> Any:
        """Return what the documentation recommends, with a schedule."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.interval},
        }


def module(**options: Any) -> Regression:
    """Return a module whose network is reconstructed."""
    made = Regression(**options)
    made.net = sngd.reconstruct(made.net, CONFIG)
    return made


def rows() -> DataLoader:
    """Return the batches of an epoch, the last one smaller."""
    return DataLoader(TensorDataset(batch(0, 7 * BATCHES - 3)), batch_size=7)


def trainer_of(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """Return a trainer that shows nothing."""
    given = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(callbacks=list(callbacks), **{**given, **settings})


def every_epoch(folder: Path) -> ModelCheckpoint:
    """Return what saves at the end of each epoch."""
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1)


def fitted(made: Regression, trainer: Trainer, file: Path | None = None) -> Regression:
    """Fit, with what is trained on for validation."""
    trainer.fit(made, rows(), rows(), ckpt_path=file and str(file))
    return made


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"gradient_clip_val": 0.5}, {}),
        ({"accumulate_grad_batches": 2}, {}),
        ({}, {"by_hand": True}),
    ],
    ids=["clipped", "accumulated", "by hand"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings, options):
    whole = fitted(module(**options), trainer_of(tmp_path, every_epoch(tmp_path), **settings))
    for epoch in (0, 2):
        file = tmp_path / f"epoch={epoch}.ckpt"
        trainer = trainer_of(tmp_path, every_epoch(tmp_path / f"from {epoch}"), **settings)
        resumed = fitted(module(**options), trainer, file)
        assert gap(whole, resumed) < 1e-12
        for one, other in zip(whole.buffers(), resumed.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("averages", [False, True])
def test_the_folded_state_lies_beside_each_checkpoint_and_goes_with_it(tmp_path, averages):
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=1, monitor="val_loss", save_last=True)
    callbacks = [saver, SngdCallback(), *([EMAWeightAveraging(decay=0.7)] if averages else [])]
    trainer = trainer_of(tmp_path, *callbacks)
    made = fitted(module(), trainer)
    files = sorted(path.name for path in tmp_path.iterdir())
    best = Path(saver.best_model_path).stem
    assert files == [f"{best}.ckpt", f"{best}.folded.pt", "last.ckpt", "last.folded.pt"]
    plain = Regression()
    plain.load_state_dict(torch.load(tmp_path / "last.folded.pt", weights_only=True))
    assert gap(plain, made) < 1e-12  # at the end averages are in the module, as in the file
    trainer.save_checkpoint(tmp_path / "by hand.ckpt")
    plain.load_state_dict(torch.load(tmp_path / "by hand.folded.pt", weights_only=True))
    assert gap(plain, made) < 1e-12


class Recorder(Callback):
    """Records the ordinary weights after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        """Fold."""
        self.seen.append(sngd.fold(pl_module.net).state_dict())


def test_an_exponential_average_is_one_of_weights(tmp_path):
    recorder = Recorder()
    averaging = EMAWeightAveraging(decay=0.7)
    made = fitted(module(), trainer_of(tmp_path, recorder, averaging))
    expected = recorder.seen[0]
    for weights in recorder.seen[1:]:
        expected = {k: torch.lerp(weights[k], mean, 0.7) for k, mean in expected.items()}
    torch.testing.assert_close(sngd.fold(made.net).state_dict(), expected, rtol=1e-10, atol=1e-10)


def test_the_stochastic_average_is_one_of_weights(tmp_path):
    """Lightning's own copy is no AveragedModel: it follows because the callback lets it."""
    recorder = Recorder()
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    made = fitted(module(interval="epoch"), trainer_of(tmp_path, swa, recorder, SngdCallback()))
    # It looks when an epoch begins, from the second one on.
    before = [recorder.seen[epoch * BATCHES - 1] for epoch in range(1, EPOCHS)]
    expected = {k: torch.stack([w[k] for w in before]).mean(0) for k in before[0]}
    torch.testing.assert_close(sngd.fold(made.net).state_dict(), expected, rtol=1e-10, atol=1e-10)


def test_a_resumed_average_goes_on(tmp_path):
    def run(folder: Path, file: Path | None = None) -> Regression:
        trainer = trainer_of(tmp_path, every_epoch(folder), EMAWeightAveraging(decay=0.7))
        return fitted(module(), trainer, file)

    whole = run(tmp_path)
    assert gap(whole, run(tmp_path / "resumed", tmp_path / "epoch=1.ckpt")) < 1e-12


@pytest.mark.parametrize("by_hand", [False, True])
def test_metrics_are_logged_at_the_logging_steps(tmp_path, by_hand):
    logger = CSVLogger(tmp_path, name="", version="")
    settings = {"logger": logger, "log_every_n_steps": 2, "gradient_clip_val": None}
    fitted(module(by_hand=by_hand), trainer_of(tmp_path, SngdCallback(), **settings))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    header, found = lines[0].split(","), [line.split(",") for line in lines[1:]]
    place, step = header.index("sngd/total/norm"), header.index("step")
    logged = [int(line[step]) for line in found if line[place]]
    assert logged == ([1, 7] if by_hand else [1, 3, 5, 7, 9, 11])
    assert all(float(line[place]) > 0 for line in found if line[place])
    assert not any("net." in name for name in header)


def test_metrics_of_each_layer_on_request(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = trainer_of(tmp_path, SngdCallback(layers=True), logger=logger, log_every_n_steps=1)
    fitted(module(), trainer)
    assert "sngd/net.0.weight/share" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_a_whole_module_may_be_reconstructed(tmp_path):
    made = fitted(sngd.reconstruct(Regression(), CONFIG), trainer_of(tmp_path))
    assert gap(made.net, fitted(module(), trainer_of(tmp_path)).net) < 1e-12
