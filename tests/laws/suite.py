"""The laws themselves, each a function of a subject, in float64."""

import copy
from collections.abc import Callable
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import sngd_compile as sngd
from laws.case import Case
from laws.subject import ABSOLUTE, RELATIVE, Subject, loss
from sngd_kernels import sketch_basis
from sngd_kernels.moments.sketch import TRACE
from sngd_kernels.reference import sketch_reference

Law = Callable[[Subject], None]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Ask for ten digits."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10)


def rewriting_keeps_the_function(subject: Subject) -> None:
    """Law 1: outputs in both modes, and gradients of the input and of every parameter."""
    case = subject.case
    model, net = case.build(), subject.reconstructed()
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


def refreshing_keeps_the_function(subject: Subject) -> None:
    """Law 2: a root that changes during training changes nothing that lives on `w`."""
    case, (net, optimizer) = subject.case, subject.trained()
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


def folding_gives_the_plain_layer(subject: Subject) -> None:
    """Law 3: the class, the keys and the shapes of the original, and the trained function."""
    case, (net, _) = subject.case, subject.trained()
    model = case.build()
    plain = sngd.fold(net)
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [*dict(plain.named_modules())] == [*dict(model.named_modules())]
    close(plain(case.input(17)), net(case.input(17)))
    close(plain.get_parameter(case.weight), attrgetter(case.weight)(net))
    model.load_state_dict(plain.state_dict())
    close(model(case.input(17)), net(case.input(17)))


def descent_is_natural(subject: Subject) -> None:
    """Law 4: one step of gradient descent on `w'` is `w <- w - lr dL/dw (G + damping)^-1`."""
    case, net = subject.case, copy.deepcopy(subject.observed)
    plain = sngd.fold(net)
    loss(plain(case.input(2))).backward()
    named = dict(plain.named_parameters())
    gradient = case.matrix({name: p.grad for name, p in named.items() if p.grad is not None})
    factor, _ = case.moments(plain, case.input())
    natural = gradient.unflatten(0, (len(factor), -1)) @ damped(case, factor).inverse()
    expected = case.matrix(named) - 0.7 * natural.flatten(0, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.7)
    loss(net(case.input(2))).backward()
    optimizer.step()
    close(case.matrix(dict(sngd.fold(net).named_parameters())), expected, case.tolerance)


def damped(case: Case, moments: Tensor) -> Tensor:
    """Return the damped metric for `[groups, D, D]`, as the options' names say it."""
    trace = moments.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    return case.metric(moments, float(RELATIVE * trace + ABSOLUTE))


def factor_is_the_mean_of_the_rows(subject: Subject) -> None:
    """Law 5: of the rule's rows and of those written out; nothing is observed outside training."""
    case, net = subject.case, copy.deepcopy(subject.observed)
    fisher = sngd.fisher_layers(net)[case.weight]
    expected, count = case.moments(net, case.input())
    with torch.no_grad():
        net(case.input(3))
    net.eval()(case.input(4))
    sngd.refresh_(net)
    close(case.full(fisher.factor), expected)
    assert fisher.rows_seen == count
    rows = torch.cat([use.rows for use in subject.uses], -2)
    assert rows.shape[-2] == count
    close(rows, case.rows(net, case.input()).reshape(rows.shape))


def factor_is_the_weighted_moment(subject: Subject) -> None:
    """The outputs weigh the rows as the case says; nothing is observed outside training."""
    case, net = subject.case, copy.deepcopy(subject.observed)
    fisher = sngd.fisher_layers(net)[case.weight]
    assert fisher.kind == case.fisher
    expected, count = case.moments(case.build(), case.input())
    with torch.no_grad():
        net(case.input(3))
    net.eval()(case.input(4))
    sngd.refresh_(net)
    close(fisher.factor if fisher.factor.dim() == expected.dim() else fisher.factor[None], expected)
    assert fisher.rows_seen == count


def factor_is_the_sketch_of_the_rows(subject: Subject) -> None:
    """The product of the rows' mean moment with the columns, and its trace; nothing else."""
    case, fisher = subject.case, sngd.fisher_layers(subject.observed)[subject.case.weight]
    assert fisher.kind == case.fisher
    moments, count = case.moments(case.build(), case.input())
    omega = case.omega(moments)
    expected = torch.stack([sketch_reference(one, omega) for one in moments])
    torch.testing.assert_close(fisher.factor.view(expected.shape), expected, rtol=1e-12, atol=1e-12)
    assert fisher.rows_seen == count


def root_is_that_of_the_sketch(subject: Subject) -> None:
    """`R^T R` inverts what stands for the factor, and `metric` is that, after training too."""
    case = subject.case
    moments, _ = case.moments(case.build(), case.input())
    observed = sngd.fisher_layers(subject.observed)[case.weight]
    close(case.full(observed.metric()), damped(case, moments), case.tolerance)
    for net in (subject.observed, subject.trained(steps=5)[0]):
        fisher = sngd.fisher_layers(net)[case.weight]
        root, metric = fisher.root, fisher.metric()
        close(root @ metric @ root.mT, torch.eye(root.shape[-1]).expand_as(root))


def factor_is_the_jacobians_moment(subject: Subject) -> None:
    """Law 6: `J^T J / N` with J the Jacobian of one output channel of the layer as it was.

    Buffers are copies of their own, which a layer may update without ceasing to be a function.
    """
    case = subject.case
    model, x = case.build(), case.input()
    factor = sngd.fisher_layers(subject.observed)[case.weight].factor
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


def root_whitens_the_factor(subject: Subject) -> None:
    """Law 7: `R (scale G + damping) R^T = I` and `R^T R` is the inverse, after training too."""
    case = subject.case
    for net in (subject.observed, subject.trained(steps=5)[0]):
        fisher = sngd.fisher_layers(net)[case.weight]
        found, root_matrix = case.full(fisher.factor), case.full(fisher.root)
        eye = torch.eye(found.shape[-1])
        factor = fisher.scale * found + fisher.damping * eye
        close(root_matrix @ factor @ root_matrix.mT, eye.expand_as(factor))
        close(root_matrix.mT @ root_matrix @ factor, eye.expand_as(factor))
        close(factor, damped(case, found))


def second_moment_is_that_of_the_rows(subject: Subject) -> None:
    """Law 8: a rule that sums outer products, or sketches, its own way adds those of its rows."""
    for use in subject.uses:
        for bias in (False, True) if use.rule.kind == "shared" else (False,):
            ones = use.rows.new_ones(*use.rows.shape[:-1], int(bias))
            rows = torch.cat([use.rows, ones], -1)
            moment = rows.mT @ rows
            close(use.add_second_moment(bias, torch.ones_like(moment)), 1 + moment)
            size = moment.shape[-1]
            omega = sketch_basis(size, min(size, 3), moment.dtype, moment.device)
            sketch = F.pad(moment @ omega, (0, 0, 0, 1))
            sketch[TRACE] = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
            close(use.add_sketch(bias, omega, torch.ones_like(sketch)), 1 + sketch)
            squares = rows.square().sum(-2)
            close(use.add_diagonal(bias, torch.ones_like(squares)), 1 + squares)
