"""What holds whatever is trained, on whatever batches, wherever it is interrupted."""

import copy
import gc
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from unittest import mock

import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sngd_compile as sngd
from api.interruption import StrikeAt
from fuzz import OPTIMIZERS, WAYS, Training, loss, note_kinds, trainings
from sngd_compile import SngdError, SngdWarning
from sngd_compile.training import optimizer_hooks

# make check draws as many as make test: more of them are what make fuzz is for.
many = settings(max_examples=4 * max(10, settings().max_examples // 5))
ALLOWED = {"float64": 1e-5, "float32": 2e-3, "bfloat16": 0.2}
"""Share of a weight that a refresh may change; the guard's bound on the largest layer."""


@pytest.fixture(autouse=True)
def warnings_of_its_own() -> Iterator[None]:
    """A hostile training is warned of; of what, other tests ask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SngdWarning)
        yield


def plain_errors(training: Training) -> list[type]:
    """Name what the plain network raises in each step of the same training."""
    run = training.start(training.model())
    return [type(raised_by(training, run, x)) for x in training.stream()]


def started(training: Training) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Begin, and show in a failing example what was trained."""
    net, optimizer = training.start()
    note(str(net))
    note_kinds(net)
    return net, optimizer


def raised_by(training: Training, run: tuple, x: Tensor) -> Exception | None:
    """Take a step, and return what it raised."""
    try:
        training.step(*run, x)
    except Exception as error:
        return error
    return None


def train(net: nn.Module, optimizer: torch.optim.Optimizer, training: Training) -> list[float]:
    """Take all steps that the plain network would take; return their losses."""
    losses = []
    for number, x in enumerate(training.stream()):
        try:
            losses.append(training.step(net, optimizer, x))
        except SngdError as error:
            event(f"refused: {type(error).__name__}")
        except Exception as error:
            if type(error) is not plain_errors(training)[number]:
                raise
            event(f"as the plain network: {type(error).__name__}")
    return losses


def finite(values: list[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


@many
@given(trainings())
def test_only_what_the_plain_network_raises_is_raised(training):
    train(*started(training), training)


@many
@given(trainings())
def test_finite_losses_leave_finite_weights(training):
    net, optimizer = started(training)
    losses = train(net, optimizer, training)
    if all(map(math.isfinite, losses)):
        assert finite(list(sngd.fold(net).parameters())), "a folded weight is not finite"
        assert finite(list(net.parameters())), "w' is not finite, though the folded weights are"


@many
@given(trainings())
def test_a_refresh_keeps_every_weight_or_the_old_root(training):
    net, optimizer = started(training)
    sites = [list(site.places[0].parameter_names) for site in sngd.explain(net).sites]
    for x in training.stream():
        with suppress(Exception):
            training.step(net, optimizer, x)
            training.backward(net, x)
        before = sngd.fold(net).state_dict()
        if not finite(list(before.values())):
            return
        sngd.refresh_(net)
        after = sngd.fold(net).state_dict()
        for names in sites:
            old, new = (
                torch.cat([w[n].flatten().double() for n in names]) for w in (before, after)
            )
            change, size = float((new - old).norm()), float(old.norm())
            assert change <= ALLOWED[training.dtype] * size, f"{names} changed by {change / size}"


@many
@given(trainings())
def test_the_folded_network_computes_the_same(training):
    net, optimizer = started(training)
    train(net, optimizer, training)
    rounded, plain = sngd.fold(net), sngd.fold(net.double())
    if not finite(list(plain.parameters())):
        return
    for one, other in zip(rounded.parameters(), plain.parameters(), strict=True):
        rtol = torch.finfo(one.dtype).eps
        # Beyond the largest number of a dtype the nearest is infinity.
        expected = other.to(one.dtype).double() if one.isinf().any() else other
        torch.testing.assert_close(one.double(), expected, rtol=rtol, atol=1e-30)
    x = training.inputs(99).double()
    with torch.no_grad():
        expected, folded = net.eval()(x), plain.eval()(x)
        # As far as a root without damping can be told from its inverse.
        noisy = copy.deepcopy(plain)
        for p in noisy.parameters():
            p += 1e-8 * p.abs().max() * torch.randn_like(p)
        moved = noisy(x)
        if not finite([expected]):
            return
        assert finite([folded]), "fold(net) overflows where net does not"
        if not finite([moved]):
            return  # so near to overflow that nothing says what rounding may do
        # Squares of what has diverged would overflow.
        unit = expected.abs().max().clamp(min=1.0)
        gap, noise = (folded - expected) / unit, (moved - folded) / unit
        allowed = 1e-8 * (1 / unit + (expected / unit).norm()) + 3 * noise.norm()
        # A branch on data may jump where rounding takes the other side of it.
        near = [plain(x * (1 + e)) for e in (-1e-13, 1e-13)]
        jumps = any(((output - folded) / unit).norm() > allowed for output in near)
    if not jumps:
        assert gap.norm() <= allowed, "fold(net) is another function"


@many
@given(trainings(), st.sampled_from(list(WAYS)), st.integers(0, 5))
def test_what_is_resumed_goes_on_exactly_alike(training, way, place):
    net, optimizer = started(training)
    runs = [(net, optimizer)]
    for number, x in enumerate(training.stream()):
        if number == place:
            runs.append(WAYS[way](net, optimizer, training))
        errors = {type(raised_by(training, run, x)) for run in runs}
        assert len(errors) == 1, f"one run raises what the other does not: {errors}"
    for resumed, state in runs[1:]:
        torch.testing.assert_close(
            resumed.state_dict(), net.state_dict(), rtol=0, atol=0, equal_nan=True
        )
        theirs, ours = state.state_dict()["state"], optimizer.state_dict()["state"]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)


@many
@given(
    trainings(
        batches=st.just(["usual"] * 3),
        optimizer=st.sampled_from([name for name in OPTIMIZERS if name != "adamw"]),
        clips=st.just(True),
    ),
    st.integers(1, 400),
)
def test_training_goes_on_after_an_interruption(training, number):
    net, optimizer = started(training)
    for group in optimizer.param_groups:
        group["lr"] /= 10  # at the full rate one step more or less may take a loss anywhere
    for x in training.stream():
        training.step(net, optimizer, x)
    # What is interrupted has taken the step, or that without the refresh which follows it, or has
    # but observed it, or has not begun it.
    others = [copy.deepcopy((net, optimizer)) for _ in range(4)]
    training.step(*others[0], training.inputs(3))
    with mock.patch.object(optimizer_hooks, "refresh_sites"):
        training.step(*others[1], training.inputs(3))
    training.backward(others[2][0], training.inputs(3))
    strike = StrikeAt(number, KeyboardInterrupt())
    with strike, suppress(KeyboardInterrupt):
        training.step(net, optimizer, training.inputs(3))
    event("interrupted" if strike.left <= 0 else "the step was shorter")
    for step in range(4, 10):
        found, *usual = [evaluated(one, training) for one, _ in ((net, optimizer), *others)]
        assert found <= 2 * max(usual) + 0.1, f"{found}, and {usual} undisturbed"
        for run in ((net, optimizer), *others):
            training.step(*run, training.inputs(step))


def evaluated(net: nn.Module, training: Training) -> float:
    """Return the loss on a batch that is in no training."""
    with torch.no_grad():
        found = float(loss(net.eval(), training.inputs(99)))
    net.train()
    return found


def alive() -> int:
    """Count the tensors that something holds."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@many
@given(trainings())
def test_nothing_stays_of_a_network_that_is_gone(training):
    # What is cached for good, as tables of signs, comes with the first run.
    train(*training.start(), training)
    gc.freeze()
    try:
        before = alive()
        train(*training.start(), training)
        assert alive() == before, "tensors outlive their network"
    finally:
        gc.unfreeze()
