"""A small language model, its words, and a `Trainer` for it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sngd_compile as sngd
from api import EVERY_STEP

STEPS = 6
CONFIG = EVERY_STEP.replace(refresh_every=2, observe_every=1, damping_abs=0.1)
SIZES = {"vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
OFF = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def gpt() -> GPT2LMHeadModel:
    """Return the same model each time."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, **OFF, bos_token_id=0, eos_token_id=0))


def network(config: sngd.Config = CONFIG) -> Any:
    """Return the same reconstructed network each time."""
    return sngd.reconstruct(gpt(), config)


def words(seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Draw 36 rows of words."""
    rows = torch.randint(0, 11, (36, 7), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer_of(net: nn.Module, folder: Path, **settings: Any) -> Trainer:
    """Return a trainer that descends by SGD and reports to nobody."""
    given = {
        "use_cpu": True,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "max_steps": STEPS,
        "per_device_train_batch_size": 6,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **{**given, **settings})
    return Trainer(net, arguments, train_dataset=words(), eval_dataset=words(2))


def gap(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of the plain weights of two networks."""
    pairs = zip(sngd.fold(one).parameters(), sngd.fold(other).parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)
