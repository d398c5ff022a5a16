"""All that a network could draw, instead of one draw: sampled gradients without chance."""

import pytest
import torch
from torch import Tensor, nn

import sngd_compile as sngd
from sngd_compile import sampling


def categorical(logits: Tensor) -> list[Tensor]:
    """Enumerate the classes, weighed by the roots of their probabilities."""
    p = logits.softmax(-1)
    eye = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return [p[..., k, None].sqrt() * (p - eye[k]) for k in range(logits.shape[-1])]


def bernoulli(logits: Tensor) -> list[Tensor]:
    """Take the standard deviation of one entry at a time: entries are independent."""
    p = logits.sigmoid()
    return list(((p * (1 - p)).sqrt()[..., None] * torch.eye(p.shape[-1])).unbind(-1))


def gaussian(means: Tensor) -> list[Tensor]:
    """Take one entry at a time."""
    return list(torch.eye(means.shape[-1]).expand(*means.shape, -1).unbind(-1))


ENUMERATED = {"categorical": categorical, "bernoulli": bernoulli, "gaussian": gaussian}
"""Residuals by the outputs `[N, O]`; their outer products add up to the Fisher of each row."""


def show_all(net: nn.Module, outputs: Tensor, name: str, patch: pytest.MonkeyPatch) -> None:
    """Let the network "draw" everything that it could, once: B is the mean of O of them."""
    for residual in ENUMERATED[name](outputs.detach()):
        patch.setitem(sampling.RESIDUALS, name, lambda *_, drawn=residual: drawn)
        sngd.sample_fisher_(net, outputs, distribution=name)
