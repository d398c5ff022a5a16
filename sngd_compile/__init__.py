"""Natural gradient descent as plain gradient descent on a reconstructed network.

    net = sngd.reconstruct(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    ...                                    # the usual loop, with clip_grad_norm_(1.0)
    plain = sngd.fold(net)
"""

from sngd_compile.config import Config
from sngd_compile.errors import (
    AlreadyReconstructedError,
    ConfigError,
    ModelError,
    PlanError,
    RuleError,
    SngdError,
    SngdWarning,
)
from sngd_compile.fold import fold, fold_, refresh_
from sngd_compile.inspection import explain, fisher_layers, graph
from sngd_compile.reconstruct import reconstruct
from sngd_compile.rules import Rule, register_rule

__all__ = [
    "AlreadyReconstructedError",
    "Config",
    "ConfigError",
    "ModelError",
    "PlanError",
    "Rule",
    "RuleError",
    "SngdError",
    "SngdWarning",
    "explain",
    "fisher_layers",
    "fold",
    "fold_",
    "graph",
    "reconstruct",
    "refresh_",
    "register_rule",
]
