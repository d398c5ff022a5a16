"""The methods that the paper compares, as it sets them: no momentum, no clipping, L2."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import SGD

import sngd_compile as sngd
from contenders import (
    Contender,
    Recipe,
    Trainee,
    in_trust_region,
    usual_loop,
)

L2 = 1e-3
RATES = (0.1, 0.01, 0.005)
KRONECKER_RATES = (0.003, 0.001, 0.01)
TWO_SIDED = sngd.Config(fisher="kronecker", damping_rel_trace=1e-2)


def without_momentum(model: nn.Module, recipe: Recipe) -> Trainee:
    """Plain gradient descent with the authors' L2: of matrices alone, whatever coordinates move."""

    def penalised(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        layers = (module for module in network.modules() if isinstance(module, nn.Linear))
        squares = torch.stack([layer.weight.square().sum() for layer in layers])
        return recipe.loss(network, inputs, targets) + L2 / 2 * squares.sum()

    optimizer = SGD(model.parameters(), lr=recipe.rate, fused=True)
    return usual_loop(model, [optimizer], replace(recipe, objective=penalised))


def as_in_the_paper(model: nn.Module, recipe: Recipe) -> Trainee:
    """The same descent on an MLP as the authors reconstruct it: no clipping either.

    One Fisher for each unit of a hidden layer, one for all outputs of the first and the last.
    """
    shared = sngd.Config.paper()
    by_unit = shared.replace(fisher="unit")
    network = sngd.reconstruct(model, by_unit, overrides={"0.*": shared})
    return replace(without_momentum(network, recipe), finish=sngd.fold)


def with_output_side(model: nn.Module, recipe: Recipe) -> Trainee:
    """SGD with momentum on a network with both local Fisher layers: K-FAC, in SNGD's region."""
    return in_trust_region(sngd.reconstruct(model, TWO_SIDED), recipe)


GD = Contender("SGD, no momentum", without_momentum, RATES)
PAPER = Contender("SNGD, paper's preset", as_in_the_paper, RATES)
KFAC = Contender("K-FAC (fisher=kronecker)", with_output_side, KRONECKER_RATES)
