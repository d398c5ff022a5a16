"""`torch.compile(model, backend="sngd")`: the parameters stay `w`, their gradients come natural."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from sngd_compile.backend.compiled_models import COMPILED, note_left
from sngd_compile.backend.frame import Frame, Reference, Slot, analyse, describe
from sngd_compile.backend.natural_gradient import inputs_of, merged
from sngd_compile.backend.parameter_state import (
    ParameterState,
    become_last,
    find_modules,
    get_or_create,
    state_of,
)
from sngd_compile.backend.rewrite import FrameRewriter
from sngd_compile.config import Config
from sngd_compile.errors import ConfigError
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.fisher.spec import FisherSpec
from sngd_compile.passes.runner import logged, logger
from sngd_compile.plan.report import graph_report
from sngd_compile.torch_private import (
    compiler_of,
    fake_mode,
    inductor_in_mode,
    lookup_backend,
    trace_artifact,
)

Run = Callable[..., Any]
Forms = Sequence[FisherSpec | None]
"""For each slot of a frame the local Fisher of its parameter; None leaves the gradient plain."""

Inner = Callable[[fx.GraphModule, Sequence[Any]], Run]


def sngd(module: fx.GraphModule, examples: Sequence[Any], **options: Any) -> Run:
    """Compile one frame so that plain gradient descent on its parameters is natural.

    The forward stays. The gradient of each weight that a rule understands is multiplied by
    `(G + damping)^-1` on its way to the parameter. The local Fisher G is estimated and refreshed
    as after `reconstruct`.

    Args:
        module: Dynamo's graph.
        examples: Its inputs, real or fake.
        options: `options` of `torch.compile`: the fields of `Config`, and `inner_backend`, the
            backend that compiles the result (default "inductor"). `mode` goes to inductor.

    Returns:
        What runs instead of the frame.

    Raises:
        ConfigError: An option is unknown or out of range; when the frame first runs.

    Source: arXiv 2412.07441; docs/which_api.md. Tested by tests/backend.
    """
    given = {**options.pop("options", {}), **options}
    mode = given.pop("mode", None)
    try:
        inner = _inner(given.pop("inner_backend", "inductor"), mode)
        config = _config(given)
    except ConfigError as error:  # Dynamo would wrap it in an error of its own
        return _refusal(error)
    # Dynamo guards on the grad mode: a frame that is compiled here without gradients is compiled
    # again before it trains.
    if not torch.is_grad_enabled():
        return inner(module, examples)
    frame = analyse(module, examples, config)
    logger.debug("plan of a frame\n%s", describe(frame))
    trace_artifact("sngd_plan", lambda: describe(frame))
    note_left((_example(where, examples), reason) for _, where, reason in frame.left)
    if not frame.slots:
        return inner(module, examples)
    return CompiledFrame(frame, examples, config, inner).run


def _config(options: dict[str, Any]) -> Config:
    known = {field.name for field in fields(Config)}
    for name in options:
        if name not in known:
            raise ConfigError(f"no option {name!r}; there are: inner_backend, {sorted(known)}")
    return Config(**options)


def _refusal(error: ConfigError) -> Run:
    def refuse(*args: Any) -> Any:
        raise error

    return refuse


def _inner(backend: Any, mode: str | None) -> Inner:
    """Find the backend that compiles the rewritten frame."""
    try:
        found = lookup_backend(backend)
    except Exception as error:
        raise ConfigError(
            f"inner_backend = {backend!r}: expected one of torch.compiler.list_backends()"
        ) from error
    if found is sngd:
        raise ConfigError("inner_backend = 'sngd': expected another backend")
    if mode is None:
        return found
    if backend != "inductor":
        raise ConfigError(f"mode = {mode!r}: inner_backend {backend!r} takes none")
    return inductor_in_mode(mode)


class CompiledFrame:
    """A frame that looks the state of its parameters up each time it runs.

    Args:
        frame: What was found in it.
        examples: Example inputs.
        config: Options.
        inner: Compiles the rewritten graph.
    """

    def __init__(self, frame: Frame, examples: Sequence[Any], config: Config, inner: Inner) -> None:
        """Compile it for the states that its parameters have, or will get."""
        self.frame, self.config = frame, config
        self.forms = [_likely_form(slot, examples) for slot in frame.slots]
        self.others: dict[tuple[FisherSpec | None, ...], Run] = {}
        module, inputs = self._rewritten(self.forms, examples)
        self.compiled = inner(module, [*examples, *inputs])

    def run(self, *args: Any) -> Any:
        """Run the frame on its own arguments."""
        states = [self._state(slot, args) for slot in self.frame.slots]
        if any(state is not None and not state.modules for state in states):
            # This walks through every object of the process: once for a state, not once a run.
            find_modules([s for s in states if s is not None and not s.modules])
            COMPILED.name_states([state for state in states if state is not None])
        for slot, state in zip(self.frame.slots, states, strict=True):
            if slot.is_last and state is not None:
                become_last(state)
        inputs = [tensor for state in states if state is not None for tensor in state.inputs()]
        forms = [None if state is None else state.spec for state in states]
        # A frame compiled since may have changed the form of a weight that both use, and the graph
        # compiled here takes inputs of the old shapes.
        if forms == self.forms:
            return self.compiled(*args, *inputs)
        return self._other(tuple(forms))(*args, *inputs)

    def _state(self, slot: Slot, args: Sequence[Any]) -> ParameterState | None:
        weight, bias = _real(slot.weight, args), None
        if slot.bias is not None:
            bias = _real(slot.bias, args)
        described = (slot.name, slot.rule, slot.note)
        return get_or_create(weight, bias, slot.spec, self.config, described)

    def _other(self, forms: tuple[FisherSpec | None, ...]) -> Run:
        """Rewrite the frame for other forms, which a later frame brought; it runs uncompiled."""
        if forms not in self.others:
            logger.info("a compiled frame runs eagerly: another frame changed what its weights are")
            self.others[forms] = self._rewritten(forms, None)[0]
        return self.others[forms]

    def _rewritten(
        self, forms: Forms, examples: Sequence[Any] | None
    ) -> tuple[fx.GraphModule, list[Tensor]]:
        """Return the rewritten graph, and examples of the inputs that it has beside the frame's."""
        wanted = [form for form in forms if form is not None]
        # On the meta device: how many buffers the root has is all that is asked.
        layers = [FisherLayer("", form, self.config, torch.device("meta")) for form in wanted]
        counts = [len(inputs_of(layer, layer.tally)) for layer in layers]
        rewriter = FrameRewriter(self.frame, forms, counts)
        for step in (rewriter.precondition_, rewriter.observe_):
            with logged(step.__name__, rewriter.module.graph):
                step()
        trace_artifact("sngd_graph", lambda: graph_report(rewriter.module.graph))
        return rewriter.finished(), [] if examples is None else self._examples(forms, examples)

    def _examples(self, forms: Forms, examples: Sequence[Any]) -> list[Tensor]:
        """Make fake inputs whose sizes are fixed: real ones might become dynamic."""
        made: list[Tensor] = []
        with fake_mode():
            for slot, form in zip(self.frame.slots, forms, strict=True):
                if form is not None:
                    device = _example(slot.weight, examples).device
                    layer = FisherLayer("", form, self.config, device)
                    made += inputs_of(layer, layer.schedule.gate)
        return made


def _likely_form(slot: Slot, examples: Sequence[Any]) -> FisherSpec | None:
    """Return the form that the state will have when the frame runs."""
    # Under DDP's optimizer the examples are fake and have no state; `run` compares the real ones.
    known = state_of(_example(slot.weight, examples))
    if known is None:
        return slot.spec
    bias = None if slot.bias is None else _example(slot.bias, examples)
    return merged(known.spec, slot.spec, bias is known.bias)


def _real(reference: Reference, args: Sequence[Any]) -> Tensor:
    value: Tensor = args[reference] if isinstance(reference, int) else reference
    return value


_example = _real


def _is_compiled(module: nn.Module) -> bool:
    """Say whether a module was compiled with this backend, by `torch.compile` or in place."""
    return compiler_of(module) is sngd


COMPILED.watch(_is_compiled)
