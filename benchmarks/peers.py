"""Second-order and matrix optimizers from PyPI; each adapter fits on a screen.

Statistics and inverses are renewed every `INTERVAL` steps where a package lets one choose; SOAP's
every step too.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from contenders import (
    LARGEST_FISHER_NORM,
    MUON_RATES,
    NATURAL_RATES,
    RATE_BESIDE_MUON,
    SGD_RATES,
    Contender,
    Recipe,
    Trainee,
    has_hidden_matrices,
    hidden_matrices,
    usual_loop,
)

INTERVAL = 10
DAMPING = 1e-2
"""Of K-FAC. A tenth of it diverges on the autoencoder of the convergence study."""

NEWEST = 0.3
"""Weight of the newest statistics in the average of ASDL."""


@torch.no_grad()
def stay_in_trust_region(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Shorten natural gradients, given what they were made of, to SNGD's largest Fisher norm."""
    naturals = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squared = sum(float((a * b).sum()) for a, b in zip(naturals, gradients, strict=True))
    if squared > LARGEST_FISHER_NORM**2:
        for natural in naturals:
            natural.mul_(LARGEST_FISHER_NORM / squared**0.5)


def asdl_kfac(model: nn.Module, recipe: Recipe) -> Trainee:
    """ASDL's K-FAC (one Monte-Carlo sample) before SGD, in the trust region that SNGD has."""
    # ASDL marks NVTX ranges, which a build of torch without CUDA refuses.
    if not torch.cuda.is_available():
        torch.cuda.nvtx.range_push = lambda message: 0
        torch.cuda.nvtx.range_pop = lambda: 0
    asdl = import_module("asdl")
    config = asdl.PreconditioningConfig(
        preconditioner_upd_interval=INTERVAL,
        damping=DAMPING,
        ema_decay=NEWEST,
        ignore_modules=[nn.Embedding],  # ASDL takes one for supported, and then fails
    )
    loss_type = "mse" if isinstance(recipe.criterion, nn.MSELoss) else "cross_entropy"
    maker = asdl.KfacGradientMaker(model, config, loss_type=loss_type)
    parameters = list(model.parameters())
    optimizer = SGD(parameters, lr=recipe.rate, momentum=0.9, fused=True)
    precondition = maker.precondition

    def precondition_and_shorten() -> None:
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        precondition()
        stay_in_trust_region(parameters, gradients)

    maker.precondition = precondition_and_shorten

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        outputs = maker.setup_model_call(model, inputs)
        maker.setup_loss_call(recipe.criterion, outputs, targets)
        config.data_size = len(targets)
        loss: Tensor = maker.forward_and_backward()[1]
        optimizer.step()
        return loss.detach()

    return Trainee(model, step)


def curvlinops_kfac(model: nn.Module, recipe: Recipe) -> Trainee:
    """K-FAC (one Monte-Carlo sample) of the present batch by curvlinops, in SNGD's trust region."""
    kfac, inverse = import_module("curvlinops.kfac"), import_module("curvlinops.inverse")
    parameters, criterion = list(model.parameters()), recipe.criterion
    optimizer = SGD(parameters, lr=recipe.rate, momentum=0.9, fused=True)
    steps = itertools.count()
    present: dict[str, Any] = {}

    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = criterion(model(inputs), targets)
        loss.backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if next(steps) % INTERVAL == 0:
            factors = kfac.KFACLinearOperator(
                model, criterion, parameters, [(inputs, targets)], check_deterministic=False
            )
            present["inverse"] = inverse.KFACInverseLinearOperator(factors, damping=DAMPING)
        for parameter, natural in zip(parameters, present["inverse"] @ gradients, strict=True):
            parameter.grad = natural
        stay_in_trust_region(parameters, gradients)
        optimizer.step()
        return loss.detach()

    return Trainee(model, step)


def singd(model: nn.Module, recipe: Recipe) -> Trainee:
    """SINGD with dense factors: K-FAC without inverses."""
    optimizer = import_module("singd.optim.optimizer").SINGD(model, lr=recipe.rate, T=INTERVAL)
    return usual_loop(model, [optimizer], recipe)


def heavyball_soap(model: nn.Module, recipe: Recipe, interval: int = INTERVAL) -> Trainee:
    """SOAP by HeavyBall, uncompiled."""
    heavyball = import_module("heavyball")
    heavyball.utils.compile_mode = None
    optimizer = heavyball.SOAP(model.parameters(), lr=recipe.rate, precondition_frequency=interval)
    return usual_loop(model, [optimizer], recipe)


def library_soap(model: nn.Module, recipe: Recipe) -> Trainee:
    """SOAP by pytorch_optimizer."""
    library = import_module("pytorch_optimizer")
    optimizer = library.SOAP(model.parameters(), lr=recipe.rate, precondition_frequency=INTERVAL)
    return usual_loop(model, [optimizer], recipe)


def library_normuon(model: nn.Module, recipe: Recipe) -> Trainee:
    """NorMuon by pytorch_optimizer for hidden matrices in place of Muon."""
    library = import_module("pytorch_optimizer")
    hidden = hidden_matrices(model)
    optimizer = library.NorMuon(
        [{"params": hidden, "lr": recipe.rate, "weight_decay": 0.01, "use_muon": True}],
        update_scale="match_rms",
    )
    taken = set(hidden)
    others = [parameter for parameter in model.parameters() if parameter not in taken]
    beside = AdamW(others, lr=RATE_BESIDE_MUON, fused=True)
    return usual_loop(model, [optimizer, beside], recipe)


def library_shampoo(model: nn.Module, recipe: Recipe) -> Trainee:
    """Shampoo by pytorch_optimizer."""
    library = import_module("pytorch_optimizer")
    optimizer = library.ScalableShampoo(
        model.parameters(),
        lr=recipe.rate,
        start_preconditioning_step=1,
        preconditioning_compute_steps=INTERVAL,
        statistics_compute_steps=INTERVAL,
    )
    return usual_loop(model, [optimizer], recipe)


SOAP_RATES = (3e-3, 1e-2, 1e-3, 3e-2)

PEERS = (
    Contender("K-FAC (asdfghjkl)", asdl_kfac, NATURAL_RATES, "asdl", needs_outputs=True),
    Contender(
        "K-FAC (curvlinops)", curvlinops_kfac, NATURAL_RATES, "curvlinops", needs_outputs=True
    ),
    Contender("SINGD (singd)", singd, NATURAL_RATES, "singd"),
    Contender("SOAP (heavyball)", heavyball_soap, SOAP_RATES, "heavyball"),
    Contender(
        "SOAP, every step (heavyball)", partial(heavyball_soap, interval=1), SOAP_RATES, "heavyball"
    ),
    Contender("SOAP (pytorch-optimizer)", library_soap, SOAP_RATES, "pytorch_optimizer"),
    Contender(
        "NorMuon (pytorch-optimizer)",
        library_normuon,
        MUON_RATES,
        "pytorch_optimizer",
        fits=has_hidden_matrices,
    ),
    Contender("Shampoo (pytorch-optimizer)", library_shampoo, SGD_RATES, "pytorch_optimizer"),
)
