"""Natural gradient descent as plain gradient descent on a reconstructed network.

`reconstruct` a model, train it with `torch.optim.SGD` in the usual loop, `fold` it back.
"""

from sngd_compile.averaging import follow
from sngd_compile.backend.checkpoint import load_state_dict, state_dict
from sngd_compile.config import Config
from sngd_compile.errors import (
    AlreadyReconstructedError,
    ConfigError,
    MissingExtraError,
    ModelError,
    PlanError,
    RuleError,
    SngdError,
    SngdWarning,
)
from sngd_compile.explain import explain, fisher_layers, graph, passes
from sngd_compile.fold import fold, fold_, refresh_
from sngd_compile.fold_checkpoint import fold_checkpoint
from sngd_compile.metrics import metrics
from sngd_compile.reconstruct import reconstruct
from sngd_compile.rules import Rule, register_rule
from sngd_compile.verify import verify

__all__ = [
    "AlreadyReconstructedError",
    "Config",
    "ConfigError",
    "MissingExtraError",
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
    "fold_checkpoint",
    "follow",
    "graph",
    "load_state_dict",
    "metrics",
    "passes",
    "reconstruct",
    "refresh_",
    "register_rule",
    "state_dict",
    "verify",
]
