"""The first API: a model becomes its reconstructed network."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from sngd_compile.config import Config
from sngd_compile.errors import AlreadyReconstructedError, ConfigError, ModelError
from sngd_compile.modules.copying import copied
from sngd_compile.modules.portable_state import let_saver_fold
from sngd_compile.modules.reconstructed import reconstruct_, reconstructed_modules
from sngd_compile.modules.whole_network import watch
from sngd_compile.plan.planner import Overrides, make_plan
from sngd_compile.training.averaged_copies import remember_twins
from sngd_compile.training.data_parallel import keep_out_of_broadcast
from sngd_compile.training.refresh import LocalSite
from sngd_compile.training.sharding import sharded_name

Model = TypeVar("Model", bound=nn.Module)


def reconstruct(
    model: Model,
    config: Config | None = None,
    *,
    overrides: Overrides | None = None,
    inplace: bool = False,
) -> Model:
    """Rewrite a model so that plain gradient descent on it is natural gradient descent.

    Every weight that a rule understands becomes `w = w' R` with a local Fisher layer `R`,
    `R^T R = G^-1`, so that one step of gradient descent on `w'` is `w <- w - lr dL/dw G^-1`. The
    network computes what the model computed. Train it as it is, with `torch.optim.SGD`; `fold`
    gives the ordinary model back.

    Args:
        model: Any module. Its containers keep their class; a rewritten module is a subclass of
            its own class. `explain(model)` prints beforehand what will happen.
        config: For every weight that no override names; the defaults suit
            `SGD(lr=0.03, momentum=0.9, nesterov=True)`, with `clip_grad_norm_(1.0)` or without.
        overrides: Glob patterns of weight names to their own `Config`, or to None to leave the
            weight as it is; the last match counts.
        inplace: Rewrite `model` itself instead of a deep copy.

    Returns:
        The reconstructed network, of the model's class.

    Raises:
        ModelError: `model` is no module, cannot be copied, or is sharded already.
        AlreadyReconstructedError: A part of it is reconstructed already.
        ConfigError: An override matches no parameter, or `config` is none.

    Source: arXiv 2412.07441; docs/method.md. Tested by tests/laws and tests/theorem.
    """
    if config is not None and not isinstance(config, Config):
        raise ConfigError(f"config = {config!r}: expected a Config")
    if isinstance(model, nn.Module):
        done = reconstructed_modules(model)
        if done:
            where = next(iter(done)) or "the model itself"
            raise AlreadyReconstructedError(
                f"{where} is reconstructed already; fold first, or keep training it as it is"
            )
        name = sharded_name(model)
        if name is not None:
            raise ModelError(
                f"{name} is sharded already: fully_shard(reconstruct(model)). A weight that "
                "parallelize_module has cut, as tensor parallel does, cannot be reconstructed"
            )
    # What is made in inference mode, a copy or Fisher layers, could not be trained.
    with torch.inference_mode(False):
        if isinstance(model, nn.Module) and not inplace:
            model = copied(model, "reconstruct it itself, with inplace=True")
        _rewrite_(model, config or Config(), overrides or {})
    return model


def _rewrite_(model: nn.Module, config: Config, overrides: Overrides) -> None:
    """Plan, rewrite, and look after what is rewritten."""
    plan = make_plan(model, config, overrides)
    reconstruct_(plan)
    # Before anybody wraps it: DistributedDataParallel reads the list when it is made.
    keep_out_of_broadcast(model)
    if plan.sites:
        watch(model)
        remember_twins(model, [site for _, site in _sites_by_prefix(model)])
        let_saver_fold(type(model), _sites_by_prefix)


def _sites_by_prefix(net: nn.Module) -> list[tuple[str, LocalSite]]:
    """List the sites of a network, each with what its keys in a state begin with."""
    modules = reconstructed_modules(net).items()
    return [(f"{name}." if name else "", s) for name, m in modules for s in m.local_sites()]
