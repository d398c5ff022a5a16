"""The laws of `Config(fisher="eigen")`, against the dense matrix `B (x) A + damping I`."""

import torch
from torch import Tensor, nn

import sngd_compile as sngd
from laws.case import Case
from laws.suite import ABSOLUTE, RELATIVE, close, loss, probe, trained
from laws.two_sided import blocks, observed, output_moment
from sngd_compile.fisher.layer import FisherLayer


def metric(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return `B (x) A + damping`, `[groups, O D, O D]`, of a matrix whose rows are joined."""
    product = torch.stack([torch.kron(b, a) for a, b in zip(inputs, outputs, strict=True)])
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    return product + (RELATIVE * trace + ABSOLUTE) * torch.eye(product.shape[-1])


def written_out(net: nn.Module, case: Case) -> Tensor:
    """Return M with `vec w = M vec w'`, `[groups, O D, O D]`: turn, scale, turn."""
    fisher = sngd.fisher_layers(net)[case.weight]
    turns = zip(blocks(fisher.output_root), blocks(fisher.root), strict=True)
    rotation = torch.stack([torch.kron(b.mT, a.mT) for b, a in turns])
    return rotation * fisher.gain.reshape(len(rotation), 1, -1)


def root_whitens_the_product(case: Case, root: str) -> None:
    """`M^T (B (x) A + damping) M = I`, with rotations and gains, after training too."""
    for net in (observed(case, root), trained(case, root, steps=5)[0]):
        fisher = sngd.fisher_layers(net)[case.weight]
        dense = metric(blocks(fisher.factor), blocks(fisher.output_side.factor))
        matrix = written_out(net, case)
        eye = torch.eye(matrix.shape[-1]).expand_as(matrix)
        close(matrix.mT @ dense @ matrix, eye)
        for turn in (blocks(fisher.root), blocks(fisher.output_root)):
            close(turn @ turn.mT, torch.eye(turn.shape[-1]).expand_as(turn))
        for damping in (fisher.damping, fisher.output_side.damping):
            close(torch.tensor(damping), (dense[0] - torch.kron(*factors_of(fisher)))[0, 0])


def factors_of(fisher: FisherLayer) -> tuple[Tensor, Tensor]:
    """Return B and A of the first group."""
    return blocks(fisher.output_side.factor)[0], blocks(fisher.factor)[0]


def descent_is_exactly_damped(case: Case, root: str) -> None:
    """One step of gradient descent on `w'` is `w <- w - lr (B (x) A + damping)^-1 dL/dw`."""
    net = observed(case, root)
    plain = sngd.fold(net)
    inputs = case.moments(plain, case.input())[0]
    dense = metric(inputs, output_moment(case, plain, case.input()))
    loss(plain(case.input(2))).backward()
    named = dict(plain.named_parameters())
    gradient = case.matrix({name: p.grad for name, p in named.items() if p.grad is not None})
    natural = torch.linalg.solve(dense, gradient.reshape(len(dense), -1, 1))
    expected = case.matrix(named) - 1e-3 * natural.reshape(gradient.shape)
    optimizer = torch.optim.SGD([*net.parameters()], lr=1e-3)
    loss(net(case.input(2))).backward()
    optimizer.step()
    close(case.matrix(dict(sngd.fold(net).named_parameters())), expected)


def turning_keeps_the_function(case: Case, root: str) -> None:
    """New rotations and gains change nothing that lives on `w`: outputs, momentum, gradient."""
    net, optimizer = trained(case, root)
    loss(net(case.input(9))).backward()
    before = sngd.fisher_layers(net)[case.weight].gain
    kept = probe(net, case), on_the_weight(net, optimizer, case)
    sngd.refresh_(net)
    assert not torch.allclose(sngd.fisher_layers(net)[case.weight].gain, before)
    for actual, expected in zip(on_the_weight(net, optimizer, case), kept[1], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for actual, expected in zip(probe(net, case), kept[0], strict=True):
        close(actual, expected)


def on_the_weight(net: nn.Module, optimizer: torch.optim.SGD, case: Case) -> tuple[Tensor, Tensor]:
    """Return the momentum `M v'` and the accumulated gradient `M^-T g'`."""
    matrix, named = written_out(net, case), dict(net.named_parameters())
    momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in named.items()}
    gradient = {name: p.grad for name, p in named.items()}
    parts = [case.matrix(v).reshape(len(matrix), -1, 1) for v in (momentum, gradient)]
    return matrix @ parts[0], torch.linalg.solve(matrix.mT, parts[1])
