"""The law of the state: a network that loads one goes on with exactly the same numbers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sngd_compile.fold import refresh_
from sngd_compile.verification.function import NO_SITE
from sngd_compile.verification.outputs import floating_in
from sngd_compile.verification.report import Check, checked, unfit
from sngd_compile.verification.subject import Subject, copy_of

RATE = 1e-3
"""Learning rate of the step with which both go on."""


def a_loaded_state_goes_on(subject: Subject) -> Check:
    """A fresh network with the state of another takes the same step, refresh and forward pass."""
    if not subject.layers:
        return unfit("state", NO_SITE)
    net = copy_of(subject.refreshed)
    _step_(subject, net)  # so that there are steps to count, and statistics that wait
    fresh = subject.fresh()
    fresh.load_state_dict(copy.deepcopy(net.state_dict()))
    ends = [_gone_on(subject, each) for each in (fresh, copy_of(net))]
    errors = _errors(subject, *ends)
    if not any(errors.values()):
        return checked("state", errors, 0.0)
    # Sums whose order nothing fixes, as on a GPU, let two copies differ too: that is no fault of
    # the state.
    twin = _errors(subject, _gone_on(subject, copy_of(net)), ends[1])
    plain = copy_of(subject.plain)
    _step_(subject, plain)
    loaded = copy_of(subject.plain)
    loaded.load_state_dict(copy.deepcopy(plain.state_dict()))
    if any(_errors(subject, _gone_on(subject, loaded), _gone_on(subject, plain)).values()):
        return unfit("state", "the state dict of the plain model does not hold all of its state")
    return checked("state", errors, max(twin.values()), "the largest difference of a number")


def _gone_on(subject: Subject, net: nn.Module) -> dict[str, Tensor]:
    """Take a step, renew the roots, and return all numbers of the network and its outputs."""
    _step_(subject, net)
    refresh_(net)
    outputs = floating_in(subject.forward(net))
    return net.state_dict() | {str(number): output for number, output in enumerate(outputs)}


def _step_(subject: Subject, net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = None
    subject.train_on_batch(net)
    torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9).step()


def _errors(
    subject: Subject, found: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, float]:
    """Return the largest difference by the name of the weight whose state it is in."""
    errors: dict[str, float] = {"": 0.0}
    for key in found | expected:
        one, other = found.get(key), expected.get(key)
        name = next((n for n in subject.layers if key.startswith(n)), "")
        errors[name] = max(errors.get(name, 0.0), _difference(one, other))
    return errors


def _difference(one: object, other: object) -> float:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0 if one is None and other is None else float("inf")
    if one.shape != other.shape:
        return float("inf")
    if torch.equal(one, other) or not one.numel():
        return 0.0
    both_nan = one.isnan() & other.isnan()
    return float((one.double() - other.double()).masked_fill(both_nan, 0.0).abs().max())
