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


@pytest.mark.parametrize("max_rows", [None, 10])
def test_a_step_waits_as_often_however_many_layers(max_rows):
    observed, plain = [], []
    for layers in (1, 1, 5):  # what happens once in a process happens to the first
        trainer = Trainer(layers, CONFIG.replace(max_rows=max_rows))
        for _ in range(4):
            trainer.step()
        observed.append(trainer.waits())
        plain.append(trainer.waits())
    assert plain[1:] == [1, 1]  # whether the gradients are finite
    assert observed[1] == observed[2] <= 3  # whether the activations were, too


def test_a_refresh_waits_four_times_a_layer():
    counts = []
    for layers in (1, 5):
        trainer = Trainer(layers)
        for _ in range(7):
            trainer.step()
        counts.append(trainer.waits())
    assert counts[1] - counts[0] <= 4 * 4


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
