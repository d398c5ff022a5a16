"""The `Trainer` of transformers: ordinary checkpoints, averages, metrics."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from sngd_compile.fold_checkpoint import fold_checkpoint, save_tensors
from sngd_compile.integrations.trained_network import HeldCopies, logged_metrics, missing_extra
from sngd_compile.modules.portable_state import SAVER

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_callback import DefaultFlowCallback
except ImportError as error:
    raise missing_extra("transformers", error) from error

FOLDED = Path("sngd", "folded")
"""The folder of an ordinary checkpoint, in that of each training one and in that of the run.

Not one level up: the trainer takes a folder with an adapter in a checkpoint for one more adapter.
"""


class SngdCallback(TrainerCallback):
    """Adds to a `Trainer` what it does not know of a reconstructed network.

        trainer = Trainer(sngd.reconstruct(model), arguments, train_dataset=data)
        trainer.add_callback(SngdCallback(trainer))

    - Whenever the trainer saves, `checkpoint-N/sngd/folded` is an ordinary checkpoint, which
      `from_pretrained` loads into a plain model; at the end of training `sngd/folded` in the output
      folder is one of the final network, with `load_best_model_at_end` of the best. It goes where
      its training checkpoint goes, as by `save_total_limit`.
    - At its logging steps the trainer logs `sngd.metrics` too, as `sngd/total/condition`. Gradients
      are clipped by then: `sngd/total/norm` is at most `max_grad_norm`.
    - Copies of the network in attributes of other callbacks, as of one that averages, follow it.

    Args:
        trainer: Whose network it is.
        layers: Log the metrics of each layer too, nine numbers a weight.
    """

    def __init__(self, trainer: Trainer, layers: bool = False) -> None:
        self.trainer, self.layers = trainer, layers
        self._found: dict[str, float] = {}
        self._copies = HeldCopies()

    @property
    def net(self) -> nn.Module:
        """The network, without what the trainer wrapped around it."""
        wrapped = self.trainer.model
        net = self.trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False)
        assert isinstance(net, nn.Module)
        return net

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the copies of other callbacks follow."""
        self._copies.follow(self.trainer.callback_handler.callbacks, self.net)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the metrics of a step that will be logged, while its gradients are there."""
        self._copies.follow(self.trainer.callback_handler.callbacks, self.net)
        if _is_logged(args, state):
            self._found = logged_metrics(self.net, self.layers)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Log the metrics beside the loss of a step."""
        if "loss" in logs:  # and not those of an evaluation, or what this call logs itself
            found = self._found or logged_metrics(self.net, self.layers, has_gradients=False)
            self._found = {}
            self.trainer.log(found)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write an ordinary checkpoint into the folder of the training one."""
        self._save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDED)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write an ordinary checkpoint of the final network, unless nothing is to be saved."""
        if args.save_strategy != "no":
            self._save(Path(args.output_dir) / FOLDED)

    def _save(self, folder: Path) -> None:
        # Every process has a part in gathering the state of a network that is sharded.
        net: Any = self.net
        state = self.trainer.accelerator.get_state_dict(net)
        if not self.trainer.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        folded = fold_checkpoint(state)
        if hasattr(net, SAVER):
            net.save_pretrained(folder, state_dict=folded)
        else:
            save_tensors(folded, folder / "model.safetensors")
        if self.trainer.processing_class is not None:
            self.trainer.processing_class.save_pretrained(folder)


def _is_logged(args: Any, state: TrainerState) -> bool:
    """Say whether the trainer will log the step that is about to be made."""
    ahead = copy.copy(state)
    ahead.global_step += 1
    control = TrainerControl()
    DefaultFlowCallback().on_step_end(args, ahead, control)
    return bool(control.should_log)
