"""The laws of `Config(fisher="kronecker")`: what changes where a layer has an output side too."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws.case import Case
from laws.subject import ABSOLUTE, RELATIVE, Subject, loss
from laws.suite import close, probe

TwoSidedLaw = Callable[[Subject], None]


def output_moment(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    """Return `N sum g g^T`, `[groups, O, O]`, from the plain layer: `N g` belongs to one sample."""
    outputs = model(x)
    (gradient,) = torch.autograd.grad(loss(outputs), outputs)
    by_channel = gradient.movedim(case.channel_axis, -1)
    rows = by_channel.reshape(-1, by_channel.shape[-1])
    batched = outputs.dim() > -case.channel_axis
    samples = outputs.shape[0] if batched else 1
    samples = len(rows) if case.channel_axis == -1 else samples
    groups = getattr(model, "groups", 1)
    each = rows.unflatten(-1, (groups, -1)).movedim(1, 0) * samples
    return each.mT @ each / samples


def damped(first: Tensor, second: Tensor) -> list[Tensor]:
    """Add to each factor its share of the damping."""
    traces = [f.diagonal(dim1=-2, dim2=-1).sum(-1).mean() for f in (first, second)]
    means = [t / f.shape[-1] for t, f in zip(traces, (first, second), strict=True)]
    strength = (RELATIVE**2 * traces[0] * traces[1] + ABSOLUTE * means[1]).sqrt()
    pi = (means[0] / means[1]).sqrt()
    shares = (strength * pi, strength / pi)
    return [f + s * torch.eye(f.shape[-1]) for f, s in zip((first, second), shares, strict=True)]


def output_factor_is_the_moment_of_gradients(subject: Subject) -> None:
    """B is that of the plain layer, whose samples are counted."""
    case = subject.case
    fisher = sngd.fisher_layers(subject.observed)[case.weight]
    expected = output_moment(case, case.build(), case.input())
    close(blocks(fisher.output_side.factor), expected)


def both_roots_whiten(subject: Subject) -> None:
    """`R (factor + damping) R^T = I` on either side, after training too."""
    case = subject.case
    for net in (subject.observed, subject.trained(steps=5)[0]):
        fisher = sngd.fisher_layers(net)[case.weight]
        side = fisher.output_side
        wanted = damped(blocks(fisher.factor), blocks(side.factor))
        sides = [
            (fisher.factor, fisher.damping, fisher.root),
            (side.factor, side.damping, fisher.output_root),
        ]
        for (factor, damping, found), expected in zip(sides, wanted, strict=True):
            eye = torch.eye(factor.shape[-1])
            close(blocks(factor) + damping * eye, expected)
            close(blocks(found) @ expected @ blocks(found).mT, eye.expand_as(expected))


def descent_is_kfac(subject: Subject) -> None:
    """One step of gradient descent on `w'` is `w <- w - lr B^-1 dL/dw A^-1`."""
    case, net = subject.case, copy.deepcopy(subject.observed)
    plain = sngd.fold(net)
    factors = case.moments(plain, case.input())[0], output_moment(case, plain, case.input())
    inputs, outputs = damped(*factors)
    loss(plain(case.input(2))).backward()
    named = dict(plain.named_parameters())
    gradient = case.matrix({name: p.grad for name, p in named.items() if p.grad is not None})
    natural = outputs.inverse() @ gradient.unflatten(0, (len(inputs), -1)) @ inputs.inverse()
    expected = case.matrix(named) - 1e-3 * natural.flatten(0, 1)
    optimizer = torch.optim.SGD([*net.parameters()], lr=1e-3)
    loss(net(case.input(2))).backward()
    optimizer.step()
    close(case.matrix(dict(sngd.fold(net).named_parameters())), expected)


def refreshing_keeps_the_function(subject: Subject) -> None:
    """New roots change nothing that lives on `w`: outputs, momentum, accumulated gradient."""
    case, (net, optimizer) = subject.case, subject.trained()
    loss(net(case.input(9))).backward()
    before = sngd.fisher_layers(net)[case.weight].output_root
    kept = probe(net, case), on_the_weight(net, optimizer, case)
    sngd.refresh_(net)
    assert not torch.allclose(sngd.fisher_layers(net)[case.weight].output_root, before)
    for actual, expected in zip(on_the_weight(net, optimizer, case), kept[1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for actual, expected in zip(probe(net, case), kept[0], strict=True):
        close(actual, expected)


def on_the_weight(net: nn.Module, optimizer: torch.optim.SGD, case: Case) -> tuple[Tensor, Tensor]:
    """Return the momentum `R_B^T V' R_A` and the gradient `R_B^-1 g' R_A^-T`."""
    fisher = sngd.fisher_layers(net)[case.weight]
    inputs, outputs = blocks(fisher.root), blocks(fisher.output_root)
    named = dict(net.named_parameters())
    momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in named.items()}
    gradient = {name: p.grad for name, p in named.items()}
    parts = [case.matrix(v).unflatten(0, (len(inputs), -1)) for v in (momentum, gradient)]
    return (
        outputs.mT @ parts[0] @ inputs,
        outputs.inverse() @ parts[1] @ inputs.inverse().mT,
    )


def blocks(matrices: Tensor) -> Tensor:
    """Return `[groups, D, D]`."""
    return matrices.reshape(-1, *matrices.shape[-2:])
