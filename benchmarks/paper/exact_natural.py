"""Natural gradient descent with the whole Fisher matrix: what SNGD approximates, layer by layer.

The Fisher is exact: the expectation over the labels is taken under the network's own distribution,
not sampled. It has a row for every parameter, so it serves small networks only.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.optim import SGD

from contenders import NATURAL_RATES, Contender, Recipe, Trainee
from peers import stay_in_trust_region

DAMPING_REL_TRACE = 1e-3
"""Damping as a fraction of the Fisher's trace, as in `Config.damping_rel_trace`."""

DECAY = 0.95
"""Weight that the average of the Fishers keeps per step, as in `Config.ema_decay`."""


def output_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """Derivatives of the outputs of each example by all parameters, `[N, outputs, parameters]`."""

    def of_one(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, parameters, (example[None],))
        return outputs[0]

    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    blocks = vmap(jacrev(of_one), in_dims=(None, 0))(parameters, inputs)
    return torch.cat([block.flatten(2) for block in blocks.values()], dim=2)


@torch.no_grad()
def fisher(model: nn.Module, inputs: Tensor) -> Tensor:
    """The mean over the inputs of `J^T (diag p - p p^T) J`, for logits with softmax probability p.

    That is the Fisher of the parameters, in the order of `model.parameters()`, and the generalised
    Gauss-Newton matrix of the cross-entropy.
    """
    jacobian = output_jacobian(model, inputs)
    probabilities = model(inputs).softmax(1)
    roots = probabilities.sqrt()
    # (diag r - p r^T) (diag r - p r^T)^T = diag p - p p^T for r = sqrt p
    factors = roots.diag_embed() - probabilities[:, :, None] * roots[:, None, :]
    rows: Tensor = (factors.mT @ jacobian).flatten(0, 1)
    return rows.mT @ rows / len(inputs)


@torch.no_grad()
def natural(matrix: Tensor, gradient: Tensor, damping_rel_trace: float) -> Tensor:
    """Solve `(F + damping trace(F) I) natural = gradient`."""
    damped = matrix + damping_rel_trace * matrix.trace() * torch.eye(len(matrix)).to(matrix)
    solved: Tensor = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(damped))
    return solved[:, 0]


def exact_natural_gradient(model: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum on the exact natural gradient, in the trust region that SNGD has.

    The Fisher is that of every batch, averaged over time and corrected for its start at zero.
    """
    parameters = list(model.parameters())
    optimizer = SGD(parameters, lr=recipe.rate, momentum=0.9)
    size = sum(parameter.numel() for parameter in parameters)
    average, weight = torch.zeros(size, size, dtype=parameters[0].dtype), 0.0

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal weight
        optimizer.zero_grad()
        loss: Tensor = recipe.criterion(model(inputs), targets)
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        average.lerp_(fisher(model, inputs), 1 - DECAY)
        weight = DECAY * weight + 1 - DECAY
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        whole = natural(average / weight, flat, DAMPING_REL_TRACE)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, whole.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        stay_in_trust_region(parameters, gradients)
        optimizer.step()
        return loss.detach()

    return Trainee(model, step)


EXACT = Contender("exact NGD", exact_natural_gradient, NATURAL_RATES)
