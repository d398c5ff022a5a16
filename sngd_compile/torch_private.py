"""Every private name of torch that this library uses, with the versions on which it was seen.

A private name may change with any release of torch: this module is what to read, and to run the
tests for, when a new one is out. `make lint` refuses private names of torch anywhere else. The
dictionaries `_parameters`, `_modules` and `_buffers` of a module do not count as private: they are
the only way to a module's own entries, everybody reads them, and no release has changed them. Nor
do methods that a subclass overrides and calls by `super()`, such as `_apply`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._C import DispatchKey
from torch._logging._internal import trace_structured_artifact
from torch.autograd import Variable, forward_ad
from torch.autograd.function import BackwardCFunction
from torch.optim import Optimizer
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map_only as tree_map_only

# What says nothing else was seen on 2.11, 2.13 and 2.14.

# Tensors and the protocol of their subclasses.

BASE_OF_VIEW: Any = Tensor._base
"""The attribute that gives what a tensor is a view of, as `__torch_function__` meets it."""

DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass
"""The context in which no subclass is asked: the documented way to leave the protocol."""

IGNORING_SUBCLASS: Any = torch._C._disabled_torch_function_impl
"""A `__torch_function__` that takes no part in the protocol."""

PARAMETER_FLAG = "_is_param"
"""The attribute by which `isinstance` takes a subclass of tensors for `nn.Parameter`."""

TensorMeta = torch._C._TensorMeta
"""The class of `torch.Tensor`."""

grouped_mm = torch._grouped_mm
"""What the public `F.grouped_mm` calls."""

OpOverload, OpOverloadPacket = torch._ops.OpOverload, torch._ops.OpOverloadPacket
"""An operator with its schema, as in an exported graph; all overloads of one name."""


def name_of_operator(packet: Any) -> str:
    """Return the name of an operator with its namespace, as `aten::linear`."""
    return str(packet._qualified_op_name)


version_of: Callable[[Tensor], int] = attrgetter("_version")
"""Return how often a tensor was changed in place; an inference tensor does not count it."""


def stored_values(gradient: Tensor) -> Tensor:
    """Return as real numbers what a sparse tensor stores, equal indices not added up, or all."""
    values = gradient._values() if gradient.is_sparse else gradient
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


foreach_mul: Any = torch._foreach_mul
foreach_mul_: Any = torch._foreach_mul_
foreach_norm: Any = torch._foreach_norm
foreach_addcmul_: Any = torch._foreach_addcmul_
"""One call for a list of tensors, as optimizers use it; seen on 2.13."""


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of dense tensors, one after another, in one call; seen on 2.13."""
    return torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-any-return]


# Autograd and the dispatcher.

FRAMES_INSIDE_TORCH = "torch._"
"""How the names of the private modules of torch begin."""

OUTSIDE_BACKWARD = -1
"""What `backward_pass` returns where none is running."""

are_functorch_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a vmap, grad or jvp is running."""


def backward_pass() -> int:
    """Return the number of the backward pass that is running in this thread."""
    return torch._C._current_graph_task_id()


def repeats_a_forward() -> bool:
    """Say whether a forward pass inside of a backward pass ran before with gradients.

    One that checkpointing repeats where saved tensors are asked for did. One that the backward of
    an `autograd.Function` runs did not, since its first run was inside of the function's forward:
    reentrant checkpointing is such a function, and so are those of other libraries.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "unpack_hook" and code.co_filename == checkpoint.__file__:
            return True
        is_inside_torch = frame.f_globals.get("__name__", "").startswith(FRAMES_INSIDE_TORCH)
        if code.co_name == "backward" and code.co_argcount and not is_inside_torch:
            context = frame.f_locals.get(code.co_varnames[0])
            if isinstance(context, BackwardCFunction):
                return False
        frame = frame.f_back
    return True


def queue_callback(action: Callable[[], None]) -> None:
    """Call `action` at the end of the backward pass that is running."""
    Variable._execution_engine.queue_callback(action)


def dual_level() -> int:
    """Return how many levels of forward mode are entered, less one."""
    return forward_ad._current_level


class NoDraws(TorchDispatchMode):
    """Call `drawn`, which raises, before a function takes numbers from a random generator.

    It sees the operations of its own thread.
    """

    def __init__(self, drawn: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = drawn

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the method as it is, since no compiler sees it."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look at the tags of the operator."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.drawn()
        return func(*args, **kwargs or {})


class SeenCalls(TorchDispatchMode):
    """Show `seen` every operation of this thread: the operator, its arguments, what it returned."""

    def __init__(self, seen: Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run it, then show it."""
        returned = func(*args, **kwargs or {})
        self.seen(func, args, kwargs or {}, returned)
        return returned


def autograd_keys_lifted() -> AbstractContextManager[None]:
    """Return a context in which an op, which runs below autograd, sees autograd again."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded)


# Modules.

MODULE_CALL = nn.Module._call_impl.__code__
"""The code that runs whenever a module is called."""

EXTRA_STATE = "_extra_state"  # the name that `nn.Module` gives it in a state dict


def loads_as_torch(module_class: type[nn.Module]) -> bool:
    """Say whether modules of a class take a state as `nn.Module` does."""
    return module_class._load_from_state_dict is nn.Module._load_from_state_dict


IGNORED_BY_DATA_PARALLEL = "_ddp_params_and_buffers_to_ignore"
"""The attribute whose names DistributedDataParallel does not broadcast; from 1.8 on."""


def is_joining(wrapper: Any) -> bool:
    """Say whether DistributedDataParallel is inside its `join()`."""
    return bool(wrapper._join_config.enable)


_PIPELINE = "torch.distributed.pipelining.stage"
_SCHEDULES = "torch.distributed.pipelining.schedules"
_SHAPES_ARE_FOUND = ("_prepare_forward_infra", "_prepare_backward_infra")
"""Methods of a stage of a pipeline that run its module on made-up numbers; seen on 2.13."""


def _calling(name: str) -> Iterator[Any]:
    """Yield the frames that run code of a module of torch, where it was imported."""
    frame = sys._getframe(2) if name in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == name:
            yield frame
        frame = frame.f_back


def is_in_pipeline() -> bool:
    """Say whether the schedule of a pipeline is running in this thread."""
    return any(True for _ in _calling(_SCHEDULES))


def finds_shapes() -> bool:
    """Say whether a stage of a pipeline runs its module only to find the shapes of its outputs."""
    return any(frame.f_code.co_name in _SHAPES_ARE_FOUND for frame in _calling(_PIPELINE))


def gradient_divisor() -> int:
    """Return by what a pipeline that is running will divide gradients after its backward passes."""
    schedules = (frame.f_locals.get("self") for frame in _calling(_SCHEDULES))
    found = next((s for s in schedules if hasattr(s, "scale_grads")), None)
    return found._n_microbatches if found is not None and found.scale_grads else 1


DISTRIBUTED = "_distribute_module_applied"
"""What `distribute_module`, by which tensor parallel cuts parameters, reads of a module first."""


def is_distributing() -> bool:
    """Say whether `distribute_module` is running in this thread."""
    frames = _calling("torch.distributed.tensor._api")
    return any(frame.f_code.co_name == "distribute_module" for frame in frames)


ORIGINAL_MODULE = "_orig_mod"
"""The name of a module inside the one that `torch.compile` returns."""

# The fused calls of nn.RNNBase read FLAT_WEIGHTS; FLAT_REFERENCES says whether they are still
# those; INIT_FLAT_WEIGHTS rewrites both in place.
FLAT_WEIGHTS, FLAT_REFERENCES = "_flat_weights", "_flat_weight_refs"
INIT_FLAT_WEIGHTS = "_init_flat_weights"


def flat_names(module: Any) -> list[str]:
    """Return the names of the weights of a recurrent module in the order of the fused call."""
    return list(module._flat_weights_names)


def forward_pre_hooks(module: nn.Module) -> list[Any]:
    """List what runs before each forward of a module, as `weight_norm` does."""
    return list(module._forward_pre_hooks.values())


_OWN_HOOKS = -1
"""The number of this library's hooks, one for all modules: torch counts theirs, from 0 on.

A compiler looks at the numbers, and would compile each of several equal networks anew.
"""


def surround_forward(module: nn.Module, before: Any, after: Any) -> None:
    """Add a hook before the forward and one behind it, which runs whatever happens in between."""
    module._forward_pre_hooks[_OWN_HOOKS] = before
    module._forward_hooks[_OWN_HOOKS] = after
    module._forward_hooks_always_called[_OWN_HOOKS] = True


def remove_hooks(module: nn.Module, loading: Any) -> None:
    """Take those away again, and a hook of loading, whose handle a copy does not have."""
    tables = module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called
    for table in tables:
        table.pop(_OWN_HOOKS, None)
    for number, held in list(module._load_state_dict_pre_hooks.items()):
        if getattr(held, "hook", held) is loading:
            del module._load_state_dict_pre_hooks[number]


def is_replica(module: nn.Module) -> bool:
    """Say whether a module is one of the copies that DataParallel makes for a forward pass."""
    return getattr(module, "_is_replica", False) is True


OPTIMIZER_STEP = Optimizer.profile_hook_step(lambda: None).__code__
"""The code around the step of every optimizer; its variable `self` is the optimizer."""

STATE_MAKER = "_init_optim_state"
"""The function in which `torch.distributed.checkpoint` lets an optimizer make states, by zeros."""


# FX and Dynamo.

CONTEXT_MODULE = "torch.utils._contextlib"
COMPILER_MODULES = ("torch._compile", "torch._dynamo")
"""Modules whose functions change what the calls inside them mean."""


def functions_kept_as_calls() -> list[tuple[dict[str, Any], str]]:
    """List what `torch.fx.wrap` has marked: the globals of a module, and a name in them."""
    marked = fx._symbolic_trace._wrapped_fns_to_patch
    return [(table, name) for (_, name), table in [*marked.items()]]


ARGUMENT_CHECKS = ("_assert", "_assert_is_none")
"""Names of the functions by which FX checks an argument that was fixed while tracing."""

SET_GRAD_ENABLED = "_set_grad_enabled"
"""Name of the function that stands in Dynamo's graph for `no_grad` and `enable_grad`."""


def source_of(node: fx.Node) -> str | None:
    """Return where Dynamo found what a node holds, as an expression; None where it does not say."""
    source = getattr(node, "_dynamo_source", None)
    return None if source is None else str(getattr(source, "name", ""))


def copy_source_(node: fx.Node, copy: Any) -> None:
    """Let a copied node say where Dynamo found what the first one holds."""
    if hasattr(node, "_dynamo_source"):
        copy._dynamo_source = node._dynamo_source


def declare_without_source_(node: Any) -> None:
    """Say of an input that Dynamo found it nowhere."""
    node._dynamo_source = None


def copy_parameter_sources_(module: Any, copy: Any) -> None:
    """Let a copied graph module say where Dynamo found its parameters."""
    if hasattr(module, "_param_name_to_source"):
        copy._param_name_to_source = module._param_name_to_source


def compiler_of(module: nn.Module) -> Any:
    """Return the backend with which a module was compiled, by `torch.compile` or in place."""
    context = module.__dict__.get("dynamo_ctx")
    call = module.__dict__.get("_compiled_call_impl")
    # `module.compile()` puts no context on the module: the closure of its call holds it.
    if context is None and call is not None:
        cells = [cell.cell_contents for cell in getattr(call, "__closure__", None) or ()]
        context = next((value for value in cells if hasattr(value, "callback")), None)
    backend: Any = getattr(context, "callback", None)
    while backend is not None and not hasattr(backend, "compiler_fn"):
        backend = getattr(backend, "_torchdynamo_orig_backend", None)
    while hasattr(backend, "compiler_fn"):
        backend = backend.compiler_fn
    return backend


def lookup_backend(backend: Any) -> Callable[..., Any]:
    """Find a backend of `torch.compile` by its name; raise where there is none."""
    return cast(Callable[..., Any], torch._dynamo.lookup_backend(backend))


def inductor_in_mode(mode: str) -> Callable[..., Any]:
    """Return the backend `inductor` in one of the modes of `torch.compile`."""
    patches = torch._inductor.list_mode_options(mode)
    return lambda module, examples: torch._inductor.compile(module, list(examples), patches)


def fake_mode() -> AbstractContextManager[Any]:
    """Return the context in which a backend makes fake tensors; an empty one where none is."""
    context = torch._guards.TracingContext.try_get()
    mode = None if context is None else context.fake_mode
    return nullcontext() if mode is None else mode


def admit_to_dynamo(module_class: type) -> None:
    """Let Dynamo wrap modules of a class whose base class it refuses, and no others; on 2.13."""
    builder: Any = torch._dynamo.variables.builder.VariableBuilder

    def wrap(self: Any, value: Any) -> Any:
        with torch._dynamo.config.patch(allow_rnn=True):
            return self.wrap_module(value)

    builder._type_dispatch()[module_class] = wrap


def trace_artifact(name: str, payload: Callable[[], str]) -> None:
    """Put a text among the artifacts that `TORCH_TRACE` collects; seen on 2.13."""
    trace_structured_artifact(name, "string", payload)
