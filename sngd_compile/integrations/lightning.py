"""Lightning: ordinary checkpoints, averages, metrics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sngd_compile.fold_checkpoint import fold_checkpoint
from sngd_compile.integrations.trained_network import HeldCopies, logged_metrics, missing_extra

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.plugins.io import CheckpointIO
except ImportError as error:
    raise missing_extra("lightning", error) from error


class SngdCallback(Callback):
    """Adds to a `Trainer` of Lightning what it does not know of a reconstructed network.

        module.net = sngd.reconstruct(module.net)
        trainer = Trainer(callbacks=[SngdCallback()])

    - Beside every checkpoint, `last.ckpt`, is a file `last.folded.pt` with the `state_dict` of the
      plain module: `plain_module.load_state_dict(torch.load("last.folded.pt"))`. It is of the
      average where a callback puts one into checkpoints, and goes when its checkpoint goes.
    - At its logging steps the trainer logs `sngd.metrics` too, as `sngd/total/condition`; with
      several optimizers, as they are before the last one of them steps.
    - Copies of the network in attributes of other callbacks, as of one that averages, follow it.

    Args:
        layers: Log the metrics of each layer too, nine numbers a weight.
    """

    def __init__(self, layers: bool = False) -> None:
        self.layers = layers
        self._copies = HeldCopies()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let checkpoints be written folded too."""
        files = trainer.strategy.checkpoint_io
        if not isinstance(files, FoldedBeside):
            trainer.strategy.checkpoint_io = FoldedBeside(files)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the copies of other callbacks follow."""
        self._copies.follow(trainer.callbacks, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let copies follow that were made since."""
        self._copies.follow(trainer.callbacks, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Log the metrics of a step that the trainer logs."""
        every = trainer.log_every_n_steps
        # As Lightning counts: steps, or batches where the module itself steps its optimizers.
        automatic = pl_module.automatic_optimization
        done = trainer.global_step if automatic else trainer.fit_loop.epoch_loop.total_batch_idx
        if trainer.loggers and every and (done + 1) % every == 0:
            found = logged_metrics(pl_module, self.layers)
            pl_module.log_dict(found, on_step=True, on_epoch=False)


class FoldedBeside(CheckpointIO):
    """Writes each checkpoint as another does, and the folded state beside it."""

    def __init__(self, files: CheckpointIO) -> None:
        self.files = files

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write both files."""
        self.files.save_checkpoint(checkpoint, path, storage_options)
        folded = fold_checkpoint(checkpoint["state_dict"])
        self.files.save_checkpoint(folded, folded_path(path), storage_options)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read the training checkpoint."""
        checkpoint: dict[str, Any] = self.files.load_checkpoint(*args, **kwargs)
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove both files."""
        self.files.remove_checkpoint(path)
        self.files.remove_checkpoint(folded_path(path))

    def teardown(self) -> None:
        """Finish what is being written."""
        self.files.teardown()


def folded_path(path: str | os.PathLike[str]) -> str:
    """Return where the folded state lies: `last.folded.pt` for `last.ckpt`."""
    text = os.fspath(path)  # it may be the address of a store: no Path, which changes slashes
    return f"{text.removesuffix(Path(text).suffix)}.folded.pt"
