"""Second-order and matrix optimizers from PyPI; each adapter fits on a screen.

Statistics and inverses are renewed every `INTERVAL` steps where a package lets one choose.
"""

import itertools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

from contenders import LARGEST_NORM, Contender, Trainee, usual_loop

INTERVAL = 10
RATE = 1e-3
DAMPING = 1e-3


def asdl_kfac(model: nn.Module) -> Trainee:
    """ASDL's K-FAC (one Monte-Carlo sample) before SGD."""
    # ASDL marks NVTX ranges, which a build of torch without CUDA refuses.
    if not torch.cuda.is_available():
        torch.cuda.nvtx.range_push = lambda message: 0
        torch.cuda.nvtx.range_pop = lambda: 0
    asdl = import_module("asdl")
    config = asdl.PreconditioningConfig(preconditioner_upd_interval=INTERVAL, damping=DAMPING)
    maker = asdl.KfacGradientMaker(model, config)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        outputs = maker.setup_model_call(model, inputs)
        maker.setup_loss_call(criterion, outputs, labels)
        config.data_size = len(inputs)
        loss: Tensor = maker.forward_and_backward()[1]
        clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        return loss.detach()

    return Trainee(model, step)


def curvlinops_kfac(model: nn.Module) -> Trainee:
    """K-FAC (one Monte-Carlo sample) of the present batch by curvlinops, before SGD."""
    kfac, inverse = import_module("curvlinops.kfac"), import_module("curvlinops.inverse")
    parameters, criterion = list(model.parameters()), nn.CrossEntropyLoss()
    optimizer = SGD(parameters, lr=RATE, momentum=0.9)
    steps = itertools.count()
    present: dict[str, Any] = {}

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = criterion(model(inputs), labels)
        loss.backward()
        gradients = [parameter.grad for parameter in parameters]
        if next(steps) % INTERVAL == 0:
            factors = kfac.KFACLinearOperator(
                model, criterion, parameters, [(inputs, labels)], check_deterministic=False
            )
            present["inverse"] = inverse.KFACInverseLinearOperator(factors, damping=DAMPING)
        for parameter, natural in zip(parameters, present["inverse"] @ gradients, strict=True):
            parameter.grad = natural
        clip_grad_norm_(parameters, LARGEST_NORM)
        optimizer.step()
        return loss.detach()

    return Trainee(model, step)


def singd(model: nn.Module) -> Trainee:
    """SINGD with dense factors: K-FAC without inverses."""
    optimizer = import_module("singd.optim.optimizer").SINGD(model, lr=RATE, T=INTERVAL)
    return usual_loop(model, [optimizer])


def heavyball_soap(model: nn.Module) -> Trainee:
    """SOAP by HeavyBall, uncompiled."""
    heavyball = import_module("heavyball")
    heavyball.utils.compile_mode = None
    optimizer = heavyball.SOAP(model.parameters(), lr=RATE, precondition_frequency=INTERVAL)
    return usual_loop(model, [optimizer])


def library_soap(model: nn.Module) -> Trainee:
    """SOAP by pytorch_optimizer."""
    library = import_module("pytorch_optimizer")
    optimizer = library.SOAP(model.parameters(), lr=RATE, precondition_frequency=INTERVAL)
    return usual_loop(model, [optimizer])


def library_shampoo(model: nn.Module) -> Trainee:
    """Shampoo by pytorch_optimizer."""
    library = import_module("pytorch_optimizer")
    optimizer = library.ScalableShampoo(
        model.parameters(),
        lr=RATE,
        start_preconditioning_step=1,
        preconditioning_compute_steps=INTERVAL,
        statistics_compute_steps=INTERVAL,
    )
    return usual_loop(model, [optimizer])


PEERS = (
    Contender("K-FAC (asdfghjkl)", asdl_kfac, "asdl"),
    Contender("K-FAC (curvlinops)", curvlinops_kfac, "curvlinops"),
    Contender("SINGD (singd)", singd, "singd"),
    Contender("SOAP (heavyball)", heavyball_soap, "heavyball"),
    Contender("SOAP (pytorch-optimizer)", library_soap, "pytorch_optimizer"),
    Contender("Shampoo (pytorch-optimizer)", library_shampoo, "pytorch_optimizer"),
)
