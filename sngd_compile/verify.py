"""Checking the laws on a user's own network and batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.backend.compiled_models import COMPILED
from sngd_compile.config import Config
from sngd_compile.errors import ConfigError, ModelError, SngdWarning, first_line
from sngd_compile.modules.reconstructed import reconstructed_modules
from sngd_compile.torch_private import ORIGINAL_MODULE
from sngd_compile.verification.function import (
    folding_gives_the_model_back,
    forward_repeats_itself,
    refresh_keeps_the_function,
    rewriting_keeps_the_function,
)
from sngd_compile.verification.outputs import mean_square
from sngd_compile.verification.randomness import generators_kept
from sngd_compile.verification.report import Check, Report, unfit
from sngd_compile.verification.state import a_loaded_state_goes_on
from sngd_compile.verification.statistics import (
    every_weight_is_observed,
    factor_is_the_jacobians_moment,
)
from sngd_compile.verification.step import root_inverts_the_factor, step_is_natural
from sngd_compile.verification.subject import Subject

CHECKS: dict[str, Callable[[Subject], Check]] = {
    "reconstruct": rewriting_keeps_the_function,
    "observed": every_weight_is_observed,
    "factor": factor_is_the_jacobians_moment,
    "root": root_inverts_the_factor,
    "refresh": refresh_keeps_the_function,
    "natural step": step_is_natural,
    "fold": folding_gives_the_model_back,
    "state": a_loaded_state_goes_on,
}
"""After "forward", in the order of the report."""


def verify(
    net: nn.Module,
    *inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    config: Config | None = None,
    **kwargs: Any,
) -> Report:
    """Check the laws of the library on a network and a batch: the first answer to a doubt.

    Deep copies are reconstructed, run, stepped, refreshed, folded and loaded; `net`, its gradients,
    statistics, optimizers and mode, and the random generators stay as they are. It takes about
    twenty passes and the memory of six copies.

    Args:
        net: A plain model, or a reconstructed network at any point of its training.
        inputs: One batch: what `net` is called with. Copies of them are used.
        loss: Output of `net` to a scalar. By default the mean of the squares of all floating
            numbers in the output, each with a weight from 1/2 to 3/2. The output may be a tensor, a
            tuple, a dictionary, or an object with tensors in its attributes, such as `.loss` and
            `.logits`.
        config: For a plain model, as for `reconstruct`; a reconstructed network brings its own.
        kwargs: Named arguments of the forward pass, but for `loss` and `config`.

    Returns:
        What `print` shows as one screen: for each law whether it holds, the error that was measured
        and the largest that rounding explains; for one that fails the layer, what that means for
        training and what to do. `.checks` has the same as records, `.ok` says whether none fails.

    Raises:
        ModelError: `net` is no module, cannot be copied, is compiled with `backend="sngd"`, or does
            not run on this batch by itself; or the loss is no scalar tensor.
        ConfigError: `config` is none, or is given for a reconstructed network.

    Source: docs/verify.md. Tested by tests/verify.
    """
    net = _require_verifiable(net, loss, config)
    # Copies that are made in inference mode could not be trained.
    with torch.inference_mode(False), torch.enable_grad(), generators_kept() as generators:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject = Subject(net, (inputs, kwargs), loss or mean_square, config, generators)
            subject.first  # noqa: B018 - raises where the batch does not fit
        forward = _made("forward", forward_repeats_itself, subject)
        checks = [forward]
        for name, check in CHECKS.items():
            reason = "" if forward.holds else "the forward does not repeat itself"
            if name != "reconstruct":
                reason = reason or subject.untrainable
            checks.append(unfit(name, reason) if reason else _made(name, check, subject))
    return Report(_title(subject), tuple(checks))


def _made(name: str, check: Callable[[Subject], Check], subject: Subject) -> Check:
    """Make a check; what it raises is a failure, and what it warns of a remark."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = check(subject)
        except Exception as error:  # the plain model runs on this batch: so the library is to blame
            text = f"it raised {first_line(error)}"
            found = Check(name=name, holds=False, error=float("inf"), remark=text)
    texts = [str(w.message) for w in caught if issubclass(w.category, SngdWarning)]
    remark = "; ".join(filter(None, (found.remark, *dict.fromkeys(texts))))
    return replace(found, remark=remark)


def _title(subject: Subject) -> str:
    model = type(subject.plain).__name__
    what = "the network" if subject.is_network else "a reconstruction"
    count = len(subject.layers)
    return f"verify: {what} of {model}, {count} weight{'' if count == 1 else 's'} reconstructed"


def _require_verifiable(net: object, loss: object, config: object) -> nn.Module:
    """Check the types; of a model that `torch.compile` returned, give the one inside."""
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(net).__name__}")
    if COMPILED.includes(net):
        raise ModelError(
            'a model compiled with backend="sngd" has its Fisher layers beside it: verify the '
            "model that was compiled, before it is"
        )
    if loss is not None and not callable(loss):
        raise ModelError(f"loss = {loss!r}: expected a callable from the output to a scalar")
    if config is not None and not isinstance(config, Config):
        raise ConfigError(f"config = {config!r}: expected a Config")
    inner = getattr(net, ORIGINAL_MODULE, None)
    net = inner if isinstance(inner, nn.Module) else net
    if config is not None and reconstructed_modules(net):
        raise ConfigError("config is for a plain model: a reconstructed network brings its own")
    return net
