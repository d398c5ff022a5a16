"""The laws themselves, each a function of a case and a kind of root, in float64."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import sngd_compile as sngd
from laws.case import Case
from laws.recorder import recorded_uses
from sngd_compile import Config

Law = Callable[[Case, str], None]
RELATIVE, ABSOLUTE, TRACE = 1e-2, 0.03, 0.2


def close(actual: Tensor, expected: Tensor) -> None:
    """Ask for ten digits."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def configuration(root: str, **fields: Any) -> Config:
    """Observe every row of every step; renew the root after steps 1, 3 and 5."""
    return Config(
        refresh_every=5,
        early_refreshes=(1, 3),
        observe_every=1,
        damping_rel_trace=RELATIVE,
        damping_abs=ABSOLUTE,
        max_rows=None,
        root=root,
        **fields,
    )


def observed(case: Case, root: str) -> nn.Module:
    """Reconstruct the layer and renew its root from one batch."""
    net = sngd.reconstruct(case.build(), configuration(root, **case.fields))
    net(case.input())
    return sngd.refresh_(net)


def trained(case: Case, root: str, steps: int = 4) -> tuple[nn.Module, torch.optim.SGD]:
    """Reconstruct the layer and train it, with momentum and refreshes on the way."""
    net = sngd.reconstruct(case.build(), configuration(root, **case.fields))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        loss(net(case.input(step))).backward()
        optimizer.step()
    return net, optimizer


def loss(outputs: Tensor) -> Tensor:
    """Weigh every output differently."""
    weights = torch.linspace(-1.0, 1.5, outputs.numel(), dtype=outputs.dtype)
    return (outputs.flatten().sin() * weights).mean()


def rewriting_keeps_the_function(case: Case, root: str) -> None:
    """Law 1: outputs in both modes, and gradients of the input and of every parameter."""
    model = case.build()
    net = sngd.reconstruct(model, configuration(root, **case.fields))
    for training in (True, False):
        given = [differentiable(case.input()) for _ in range(2)]
        outputs = [net.train(training)(given[0]), model.train(training)(given[1])]
        close(*outputs)
        for output in outputs:
            loss(output).backward()
        if given[0].requires_grad:
            close(given[0].grad, given[1].grad)
    pairs = zip(net.named_parameters(), model.named_parameters(), strict=True)
    for (name, rewritten), (original_name, original) in pairs:
        assert name == original_name
        if original.requires_grad:
            close(rewritten.grad, original.grad)


def refreshing_keeps_the_function(case: Case, root: str) -> None:
    """Law 2: a root that changes during training changes nothing that lives on `w`."""
    net, optimizer = trained(case, root)
    net(case.input(9))
    before, plain = sngd.fisher_layers(net)[case.weight].root, sngd.fold(net)
    kept = probe(net, case), on_the_weight(net, optimizer, case)
    sngd.refresh_(net)
    assert not torch.allclose(sngd.fisher_layers(net)[case.weight].root, before)
    for actual, expected in zip(on_the_weight(net, optimizer, case), kept[1], strict=True):
        close(actual, expected)
    for actual, expected, folded in zip(probe(net, case), kept[0], probe(plain, case), strict=True):
        close(actual, expected)
        close(actual, folded)


def probe(net: nn.Module, case: Case) -> tuple[Tensor, Tensor]:
    """Return the outputs for an input never trained on, and its gradient."""
    x = differentiable(case.input(17))
    outputs = net(x)
    if not x.requires_grad:
        return outputs, x
    return outputs, torch.autograd.grad(loss(outputs), x)[0]


def differentiable(x: Tensor) -> Tensor:
    """Ask for the gradient of an input, unless it is an index."""
    return x.requires_grad_() if x.is_floating_point() else x


def on_the_weight(net: nn.Module, optimizer: torch.optim.SGD, case: Case) -> tuple[Tensor, Tensor]:
    """Return the momentum `V' R` and the accumulated gradient `g' R^-T`."""
    root = sngd.fisher_layers(net)[case.weight].root
    root = case.full(root)
    named = dict(net.named_parameters())
    momentum = {name: optimizer.state[p].get("momentum_buffer") for name, p in named.items()}
    gradient = {name: p.grad for name, p in named.items()}
    blocks = [case.matrix(v).unflatten(0, (len(root), -1)) for v in (momentum, gradient)]
    return blocks[0] @ root, blocks[1] @ root.inverse().mT


def folding_gives_the_plain_layer(case: Case, root: str) -> None:
    """Law 3: the class, the keys and the shapes of the original, and the trained function."""
    model, (net, _) = case.build(), trained(case, root)
    plain = sngd.fold(net)
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [*dict(plain.named_modules())] == [*dict(model.named_modules())]
    close(plain(case.input(17)), net(case.input(17)))
    close(plain.get_parameter(case.weight), attrgetter(case.weight)(net))
    model.load_state_dict(plain.state_dict())
    close(model(case.input(17)), net(case.input(17)))


def descent_is_natural(case: Case, root: str) -> None:
    """Law 4: one step of gradient descent on `w'` is `w <- w - lr dL/dw (G + damping)^-1`."""
    net = observed(case, root)
    plain = sngd.fold(net)
    loss(plain(case.input(2))).backward()
    named = dict(plain.named_parameters())
    gradient = case.matrix({name: p.grad for name, p in named.items() if p.grad is not None})
    factor, _ = case.moments(plain, case.input())
    natural = gradient.unflatten(0, (len(factor), -1)) @ damped(factor).inverse()
    expected = case.matrix(named) - 0.7 * natural.flatten(0, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.7)
    loss(net(case.input(2))).backward()
    optimizer.step()
    close(case.matrix(dict(sngd.fold(net).named_parameters())), expected)


def damped(factor: Tensor) -> Tensor:
    """Add the damping to `[groups, D, D]`, as the options' names say it."""
    trace = factor.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    return factor + (RELATIVE * trace + ABSOLUTE) * torch.eye(factor.shape[-1])


def factor_is_the_mean_of_the_rows(case: Case, root: str) -> None:
    """Law 5: of the rule's rows and of those written out; nothing is observed outside training."""
    net = observed(case, root)
    fisher = sngd.fisher_layers(net)[case.weight]
    expected, count = case.moments(net, case.input())
    with torch.no_grad():
        net(case.input(3))
    net.eval()(case.input(4))
    sngd.refresh_(net)
    close(case.full(fisher.factor), expected)
    assert fisher.rows_seen == count
    rows = torch.cat([use.rows for use in recorded_uses(case)], -2)
    assert rows.shape[-2] == count
    close(rows, case.rows(net, case.input()).reshape(rows.shape))


def factor_is_the_weighted_moment(case: Case, root: str) -> None:
    """The outputs weigh the rows as the case says; nothing is observed outside training."""
    net = observed(case, root)
    fisher = sngd.fisher_layers(net)[case.weight]
    assert fisher.kind == case.fisher
    expected, count = case.moments(case.build(), case.input())
    with torch.no_grad():
        net(case.input(3))
    net.eval()(case.input(4))
    sngd.refresh_(net)
    close(fisher.factor if fisher.factor.dim() == expected.dim() else fisher.factor[None], expected)
    assert fisher.rows_seen == count


def factor_is_the_jacobians_moment(case: Case, root: str) -> None:
    """Law 6: `J^T J / N` with J the Jacobian of one output channel of the layer as it was.

    Buffers are copies of their own, which a layer may update without ceasing to be a function.
    """
    model, x = case.build(), case.input()
    factor = sngd.fisher_layers(observed(case, root))[case.weight].factor
    blocks = case.full(factor)
    names = [case.weight] if case.bias is None else [case.weight, case.bias]
    parameters = {name: model.get_parameter(name).detach() for name in names}
    outputs = len(case.matrix(parameters))
    for group, block in enumerate(blocks):
        channel = group * (outputs // len(blocks))

        def of_channel(values: dict[str, Tensor], channel: int = channel) -> Tensor:
            state = values | {name: buffer.clone() for name, buffer in model.named_buffers()}
            return functional_call(model, state, (x,)).select(case.channel_axis, channel).flatten()

        jacobians = jacrev(of_channel)(parameters)
        jacobian = torch.vmap(case.matrix)(jacobians)[:, channel]
        moment = jacobian.T @ jacobian / len(jacobian)
        close(block, case.kept(moment))


def root_whitens_the_factor(case: Case, root: str) -> None:
    """Law 7: `R (scale G + damping) R^T = I` and `R^T R` is the inverse, after training too."""
    for net in (observed(case, root), trained(case, root, steps=5)[0]):
        fisher = sngd.fisher_layers(net)[case.weight]
        found, root_matrix = case.full(fisher.factor), case.full(fisher.root)
        eye = torch.eye(found.shape[-1])
        factor = fisher.scale * found + fisher.damping * eye
        close(root_matrix @ factor @ root_matrix.mT, eye.expand_as(factor))
        close(root_matrix.mT @ root_matrix @ factor, eye.expand_as(factor))
        close(factor, damped(found))


def second_moment_is_that_of_the_rows(case: Case, root: str) -> None:
    """Law 8: a rule that sums outer products its own way adds those of its rows."""
    for use in recorded_uses(case):
        for bias in (False, True) if use.rule.kind == "shared" else (False,):
            ones = use.rows.new_ones(*use.rows.shape[:-1], int(bias))
            rows = torch.cat([use.rows, ones], -1)
            moment = rows.mT @ rows
            close(use.add_second_moment(bias, torch.ones_like(moment)), 1 + moment)
            squares = rows.square().sum(-2)
            close(use.add_diagonal(bias, torch.ones_like(squares)), 1 + squares)
