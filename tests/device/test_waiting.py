"""How often a step waits for the GPU, and what memory it leaves behind."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sngd_compile as sngd
from device import DEVICE, SETTING
from sngd_compile import Config

CONFIG = SETTING.replace(refresh_every=4, early_refreshes=(), observe_every=2)


class Trainer:
    """Train one network step by step on one batch."""

    def __init__(self, layers: int, config: Config = CONFIG):
        parts = [nn.Sequential(nn.Linear(20, 20), nn.Tanh()) for _ in range(layers)]
        model = nn.Sequential(*parts, nn.Linear(20, 3)).to(DEVICE)
        self.net = sngd.reconstruct(model, config)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        self.inputs = torch.randn(30, 20, device=DEVICE)
        self.labels = torch.zeros(30, dtype=torch.long, device=DEVICE)

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.inputs), self.labels).backward()
        self.optimizer.step()

    def waits(self) -> int:
        """Take one step and count how often the host waited for the GPU."""
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(one.message) for one in caught)


@pytest.mark.parametrize("layers", [1, 5])
def test_a_step_waits_once_however_many_layers(layers):
    trainer = Trainer(layers)
    for _ in range(4):
        trainer.step()
    observed, plain = trainer.waits(), trainer.waits()
    print(f"\n{layers} layers: {observed} waits observed, {plain} plain")
    assert plain == 1  # whether the gradients are finite
    assert observed == 2  # whether the activations were


def test_a_refresh_waits_as_often_whatever_the_layers():
    counts = []
    for layers in (1, 5):
        trainer = Trainer(layers)
        for _ in range(7):
            trainer.step()
        counts.append(trainer.waits())
    print(f"\nrefresh: {counts} waits for 1 and 5 layers")
    assert counts[0] == counts[1]


def test_steps_leave_no_memory_behind():
    trainer = Trainer(3)
    for _ in range(8):
        trainer.step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(16):
        trainer.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
