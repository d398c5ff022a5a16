"""What a forward does in Python while it is traced, refused where a graph would not repeat it.

A graph keeps the calls on activations and nothing else: side effects, contexts (`no_grad`,
autocast), identity tests and random branches would happen once, while tracing, or never.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Container, Iterator
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from sngd_compile.capture.bytecode import UncapturableError, read, refuse_code, words
from sngd_compile.torch_private import (
    COMPILER_MODULES,
    CONTEXT_MODULE,
    MODULE_CALL,
    NoDraws,
    version_of,
)

_REFUSED_TORCH = words(
    "torch.amp torch.autograd.function torch.autograd.grad_mode torch.autograd.graph "
    "torch.autograd.profiler torch.compiler torch.cuda torch.distributed torch.profiler "
    "torch.random torch.serialization torch.utils.checkpoint"
) | {CONTEXT_MODULE, *COMPILER_MODULES}
_REFUSED_METHODS = words(
    "parameters named_parameters buffers named_buffers state_dict train eval requires_grad_ to "
    "float half bfloat16 double cpu cuda type zero_grad apply"
)
PURE = words(
    "abc builtins cmath collections copy dataclasses enum functools importlib itertools math "
    "numbers operator types typing _abc _collections _collections_abc _frozen_importlib "
    "_functools _operator"
)
Content = tuple[object, int]
"""A member of a container, and how often it was changed in place (a tensor's version)."""


class _Calling(threading.local):
    """The builtin function that the forward of this thread is calling now."""

    function: object = None


_calling = _Calling()


class FunctionWithoutProxiesError(UncapturableError):
    """The forward gives a placeholder to a function that would have to be kept as a call."""


class Followed:
    """Call `_event` for each call of Python in this thread, and let nothing draw random numbers."""

    def __enter__(self) -> None:
        """Start, remembering the profiler that is set."""
        # States of generators are no thread's own: what would draw is stopped before it does.
        self.no_draws = NoDraws(refuse_draws)
        self.no_draws.__enter__()  # type: ignore[no-untyped-call]
        # A profile hook sees calls into C as well, where print, random and lists do their work.
        self.previous = sys.getprofile()
        # A collection may run somebody's callback, which is no part of the forward.
        self.collecting = gc.isenabled()
        gc.disable()
        sys.setprofile(self._event)

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Stop."""
        # A profiler in C is not a function that could be set; it has to be switched on again.
        switch_on = getattr(self.previous, "enable", None)
        sys.setprofile(None if switch_on else self.previous)
        if switch_on is not None:
            switch_on()
        if self.collecting:
            gc.enable()
        self.no_draws.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        raise NotImplementedError


class Watch(Followed):
    """Follow the Python that runs in a traced forward; raise at the first thing a graph drops.

    Uses the interpreter's profiling hook for the time of one forward. Code of torch itself is
    trusted, except for what `_REFUSED_TORCH` lists.

    Args:
        marked: Functions, or their code, that a placeholder must not reach.
    """

    def __init__(self, marked: Container[object]) -> None:
        self.marked = marked

    @staticmethod
    def calling() -> object:
        """Return the builtin function that the forward of this thread is calling now."""
        # Not asked of an instance, because the proxies ask for it, which know of none.
        return _calling.function

    def __enter__(self) -> None:
        """Start."""
        self.root: FrameType | None = None
        self.outside: dict[tuple[str, int], tuple[object, list[Content]]] = {}
        super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Stop; refuse what can be seen only afterwards."""
        super().__exit__(kind, *details)
        for (name, _), (value, before) in self.outside.items():
            if kind is None and not same_contents(before, contents(value)):
                raise UncapturableError(f"its forward changes {name}, which is not its own")

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            if self.root is None:
                self.root = frame
            self._enter(frame)
        # Only now are all locals known. One that was read from the module is a parameter at every
        # call, so testing it is answered rightly.
        elif event == "return" and self._is_user(frame):
            _refuse_identity_tests(frame, at_return=True)
        elif event in ("c_return", "c_exception") and self._is_user(frame):
            _calling.function = None
            if event == "c_exception" and argument.__module__ == "math":
                raise FunctionWithoutProxiesError(f"its forward calls {argument.__name__}()")
        elif event == "c_call" and self._is_user(frame):
            _calling.function = argument
            holder = getattr(argument, "__self__", None)
            if argument in self.marked:
                raise FunctionWithoutProxiesError(f"its forward calls {argument.__name__}()")
            if isinstance(holder, torch.Generator):
                refuse_draws()
            if isinstance(holder, type) and issubclass(holder, torch.autograd.Function):
                # `apply` is Python up to torch 2.13 and C from 2.14 on.
                raise UncapturableError("its forward calls torch.autograd.function")
            _refuse_stdlib(argument.__module__ or type(holder).__module__, argument.__name__)

    def _enter(self, frame: FrameType) -> None:
        code, module = frame.f_code, module_of(frame)
        if code is MODULE_CALL:
            # A call of a twin never comes here.
            raise UncapturableError("its forward calls a module that it does not hold as a child")
        if code in self.marked:
            raise FunctionWithoutProxiesError(f"its forward calls {code.co_name}()")
        if self._is_user(frame):
            if names_draws_of_numpy(frame):
                refuse_draws()
            refuse_code(code)
            _refuse_identity_tests(frame, at_return=False)
            for name, value in outer_values(frame):
                self.outside.setdefault((name, id(value)), (value, contents(value)))
        elif frame.f_back is not None and self._is_user(frame.f_back):
            _refuse_stdlib(module, code.co_name)
            if any(f"{module}.".startswith(f"{refused}.") for refused in _REFUSED_TORCH):
                raise UncapturableError(f"its forward calls {module}")
            if module == "torch.nn.modules.module" and code.co_name in _REFUSED_METHODS:
                raise UncapturableError(f"its forward calls {code.co_name}() of a module")

    def _is_user(self, frame: FrameType) -> bool:
        top = module_of(frame).partition(".")[0]
        library = top in ("torch", "sngd_compile") or top in sys.stdlib_module_names
        # The forward itself is looked at even where it is one of torch's own.
        return frame is self.root or not library


def members_of(value: object) -> list[object]:
    """List what a container holds, of a dictionary keys and values in turn; nothing of others.

    As its base class does: one of a user's own may not say its length, or count itself.
    """
    if isinstance(value, dict):
        return [member for pair in dict.items(value) for member in pair]
    bases: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
    for base in bases:
        if isinstance(value, base):
            return [*base.__iter__(value)]
    return []


def contents(value: object, depth: int = 3) -> list[Content]:
    """List a value and, inside containers and plain objects, all that it holds."""
    version = 0
    if isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value):
        version = 0 if value.is_inference() else version_of(value)
    found: list[Content] = [(value, version)]
    members = members_of(value)
    if not members and not isinstance(value, torch.Tensor | nn.Module | type | fx.Proxy):
        members = [state] if isinstance(state := getattr(value, "__dict__", None), dict) else []
    if depth:
        for member in members:
            found += contents(member, depth - 1)
    return found


def same_contents(before: list[Content], after: list[Content]) -> bool:
    """Say whether two lists of `contents` hold the same objects, unchanged."""
    return len(before) == len(after) and all(
        old is new and version == now
        for (old, version), (new, now) in zip(before, after, strict=True)
    )


def _refuse_identity_tests(frame: FrameType, at_return: bool) -> None:
    """Refuse `x is None` on an activation, which is never None while tracing."""
    for name in read(frame.f_code)[1]:
        value = frame.f_locals.get(name)
        if isinstance(value, fx.Proxy) and not (at_return and value.node.op == "get_attr"):
            raise UncapturableError(f"its forward tests whether {name} is None, or is another")


def _refuse_stdlib(module: str, name: str) -> None:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and top not in PURE:
        raise UncapturableError(f"its forward calls {name}() of {module}")


def outer_values(frame: FrameType) -> Iterator[tuple[str, object]]:
    """Yield the globals and enclosing variables that a function names."""
    for name in frame.f_code.co_names:
        if isinstance(frame.f_globals.get(name), dict | list | set | deque):
            yield name, frame.f_globals[name]
    for name in frame.f_code.co_freevars:
        if isinstance(frame.f_locals.get(name), dict | list | set | deque):
            yield name, frame.f_locals[name]


def refuse_draws() -> None:
    """Raise, for what draws decides what it computes."""
    raise UncapturableError("its forward draws random numbers")


def names_draws_of_numpy(frame: FrameType) -> bool:
    """Say whether a function names numpy's global generator, whose calls no hook sees."""
    names = frame.f_code.co_names
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    found = [frame.f_globals.get(name) for name in names]
    is_named = "numpy" in names or any(value is numpy for value in found)
    return (is_named and "random" in names) or any(
        value is numpy.random or type(getattr(value, "__self__", None)) is numpy.random.RandomState
        for value in found
        if value is not None
    )


def module_of(frame: FrameType) -> str:
    """Name the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__", ""))
