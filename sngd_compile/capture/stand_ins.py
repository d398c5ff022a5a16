"""What stands for activations, modules and decisions while a forward is only rehearsed.

A forward that branches on data has no single graph. But run on values of which nothing is known,
with every branch taken once each way, it shows which calls its weights enter.
"""

from __future__ import annotations

import dis
import inspect
import logging
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from sngd_compile.capture.bytecode import EFFECTS, is_of_torch, words
from sngd_compile.capture.side_effects import (
    PURE,
    Followed,
    members_of,
    module_of,
    names_draws_of_numpy,
    outer_values,
)
from sngd_compile.capture.twin import copied
from sngd_compile.torch_private import IGNORING_SUBCLASS

MOST_PATHS = 48
MOST_DECISIONS = 400
A_FEW = 2
"""Length of what is iterated over, and every number that a loop asks for."""

_HARMLESS = PURE | words("contextlib inspect re string threading weakref")


class PathEnd(BaseException):
    """One path of a rehearsal goes no further; no `except Exception` of a forward catches it."""


class Unknown(Tensor):
    """A value of which nothing is known: a tensor, a number, or what a child module returned."""

    __torch_function__ = IGNORING_SUBCLASS
    paths: Paths

    def __bool__(self) -> bool:
        """Go one way; the other one is taken on another path."""
        return bool(self.paths.decide(_site(), (True, False)))

    def __len__(self) -> int:
        """Take one number of axes or members after the other."""
        return int(self.paths.decide(_site(), (A_FEW, A_FEW + 1, A_FEW + 2)))

    def __index__(self) -> int:
        """Count a few."""
        return A_FEW

    __int__ = __index__

    def __float__(self) -> float:
        """Be any number."""
        return float(A_FEW)

    def __iter__(self) -> Iterator[Unknown]:
        """Give as many members as they are unpacked into, or a few."""
        frame = sys._getframe(1)
        return iter([self.paths.unknown() for _ in range(_wanted(frame.f_code, frame.f_lasti))])

    def __getattr__(self, name: str) -> Any:
        """Be any record, as a child module may return."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self.paths.unknown()

    def __call__(self, *args: object, **kwargs: object) -> Unknown:
        """Be any function."""
        return self.paths.unknown()

    def __format__(self, spec: str) -> str:
        """Be any text."""
        return "?"

    __repr__ = __str__ = lambda self, **kwargs: "?"  # type: ignore[assignment]
    __hash__ = object.__hash__


class Paths:
    """The ways through one forward: every branch is taken each way on one of them at least."""

    def __init__(self) -> None:
        """Start with the path that answers every question with its first answer."""
        self.left: list[tuple[Any, ...]] = [()]
        self.known: set[tuple[Any, Any]] = set()
        self.script: tuple[Any, ...] = ()
        self.taken: list[tuple[Any, Any]] = []
        self.problem = ""

    def unknown(self) -> Unknown:
        """Make a value."""
        # Integers: what an index is, and of an activation no rule asks.
        made = torch.empty((), dtype=torch.int64, device="meta").as_subclass(Unknown)
        made.paths = self
        return made

    def run(self, forward: Callable[[], object]) -> None:
        """Run a forward along all paths; what it raises ends one of them."""
        for _ in range(MOST_PATHS):
            if not self.left:
                return
            self.script, self.taken = self.left.pop(0), []
            try:
                with _Unharmed():
                    forward()
            except (Exception, PathEnd) as error:  # of code that meets what it does not expect
                self.problem = self.problem or f"{type(error).__name__}: {error}".splitlines()[0]

    def decide(self, site: Any, answers: tuple[Any, ...]) -> Any:
        """Answer a question that a forward asks of a value, and remember the other answers."""
        number = len(self.taken)
        if number >= MOST_DECISIONS:
            raise PathEnd("it asks too many questions")
        if number < len(self.script):
            answer = self.script[number]
        else:
            # A loop that asks again comes to its end.
            again = any(site == earlier for earlier, _ in self.taken)
            answer = answers[-1] if again else answers[0]
            before = tuple(given for _, given in self.taken)
            self.known.add((site, answer))
            for other in answers:
                if (site, other) not in self.known:
                    self.known.add((site, other))
                    self.left.append((*before, other))
        self.taken.append((site, answer))
        return answer


def _site() -> tuple[CodeType, int]:
    frame = sys._getframe(2)
    return frame.f_code, frame.f_lasti


@lru_cache(maxsize=4096)
def _wanted(code: CodeType, place: int) -> int:
    """Return how many values the instruction at a place of a function unpacks."""
    for step in dis.get_instructions(code):
        if step.offset == place and step.opname == "UNPACK_SEQUENCE":
            return int(step.arg or 0)
        if step.offset == place and step.opname == "UNPACK_EX":
            return (int(step.arg or 0) & 0xFF) + (int(step.arg or 0) >> 8)
    return A_FEW


def stand_in(
    module: nn.Module, module_class: type[nn.Module], paths: Paths, held: Mapping[Tensor, Tensor]
) -> nn.Module:
    """Return a module like another, whose children do nothing, and whose tensors are unknown.

    Args:
        module: The module; neither it nor what it holds is changed.
        module_class: Its class, of a reconstructed module the original one.
        paths: Where values of which nothing is known come from.
        held: What stands for a parameter.
    """
    made: dict[nn.Module, nn.Module] = {}
    classes: dict[type[nn.Module], Any] = {}

    def silent(child: nn.Module) -> Any:
        original = getattr(child, "original_class", type(child))
        if original not in classes:
            classes[original] = _made(original, (_Silent, original), paths)
        return classes[original]

    def like(original: nn.Module, original_class: type[nn.Module]) -> nn.Module:
        if original in made:
            return made[original]
        twin = made[original] = object.__new__(original_class)
        own = twin.__dict__
        own.update({name: copied(value, {}) for name, value in original.__dict__.items()})
        own["training"] = True
        own["_modules"] = {
            name: child
            for name, child in original._modules.items()
            # It is rehearsed as it was before, when it had no Fisher layers.
            if getattr(child, "is_part_of_forward", True)
        }
        for group in (own, own["_buffers"], own["_parameters"]):
            for name, value in group.items():
                if isinstance(value, Tensor):
                    known = held.get(value)
                    group[name] = paths.unknown() if known is None else known
        for name, child in own["_modules"].items():
            if isinstance(child, torch.jit.ScriptModule):
                own["_modules"][name] = paths.unknown()
            elif child is not None:
                own["_modules"][name] = like(child, silent(child))
        return twin

    return like(module, _made(module_class, (_Quiet, module_class), paths))


def _made(original: type[Any], bases: tuple[type[Any], ...], paths: Paths) -> type[Any]:
    """Make a class like another, whose methods neither print nor warn."""
    body: dict[str, Any] = {"rehearsed": paths, "__module__": original.__module__}
    for base in reversed(original.__mro__):
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and not is_of_torch(method):
                body[name] = _quiet(method, paths)
    return type(original.__name__, bases, body)


def _quiet(method: FunctionType, paths: Paths) -> FunctionType:
    """Copy a method, for which what it would say goes nowhere."""
    known = method.__globals__
    said = {n: paths.unknown() for n in method.__code__.co_names if _speaks(n, known.get(n))}
    if not said:
        return method
    code, closure = method.__code__, method.__closure__
    made = FunctionType(code, {**known, **said}, method.__name__, method.__defaults__, closure)
    made.__kwdefaults__ = method.__kwdefaults__
    return made


def _speaks(name: str, value: object) -> bool:
    return value is warnings or (name == "print" and value is None)


class _Quiet:
    """Mixed into a class that is made for a rehearsal."""

    rehearsed: Paths

    def __init_subclass__(cls) -> None:
        """Keep the original class's own hook out."""


class _Silent(_Quiet):
    """Mixed into the class of a child, whose call then gives a value of which nothing is known."""

    def __call__(self, *args: object, **kwargs: object) -> Unknown:
        return self.rehearsed.unknown()


def arguments_of(
    module_class: type[nn.Module], paths: Paths
) -> list[tuple[list[Any], dict[str, Any]]]:
    """List ways to call a forward: with what it asks for, and with more where it takes more."""
    parameters = list(inspect.signature(module_class.forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    kinds = {p.kind for p in parameters}
    required = [paths.unknown() for p in named if p.kind != p.KEYWORD_ONLY and p.default is p.empty]
    by_name = {p.name: paths.unknown() for p in named if p.kind == p.KEYWORD_ONLY}
    by_name = {
        n: v for n, v in by_name.items() if n in {p.name for p in named if p.default is p.empty}
    }
    ways = [(required, by_name)]
    optional = {p.name: paths.unknown() for p in named if p.default is None}
    if optional:
        ways.append((required, by_name | optional))
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        everything = [paths.unknown() for p in named if p.kind != p.KEYWORD_ONLY]
        ways += [([*everything, *(paths.unknown() for _ in range(n))], by_name) for n in (1, 2, 3)]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        # They are handed on, to a method of its own most likely.
        taken = {p.name for p in named}
        asked = {n: paths.unknown() for n in required_names(module_class) if n not in taken}
        ways.append((required, by_name | asked))
    return ways


def required_names(module_class: type[nn.Module]) -> list[str]:
    """List the arguments that the methods of a class ask for."""
    methods = [v for v in vars(module_class).values() if isinstance(v, FunctionType)]
    parameters = [p for m in methods for p in list(inspect.signature(m).parameters.values())[1:]]
    return [
        p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
    ]


class _Unharmed(Followed):
    """Leave what is outside a forward as it was: lists it appends to, random numbers, files."""

    def __enter__(self) -> None:
        self.kept: dict[int, tuple[Any, list[Any]]] = {}
        self.loggers: set[logging.Logger] = set()
        super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        for logger in self.loggers:
            logger.removeFilter(self._is_of_others)
        for held, before in self.kept.values():
            now = members_of(held)
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                held.clear()
                if isinstance(held, dict):
                    held.update(zip(before[::2], before[1::2], strict=True))
                else:
                    getattr(held, "update" if isinstance(held, set) else "extend")(before)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and not _is_library(frame):
            if names_draws_of_numpy(frame):
                raise PathEnd("it draws random numbers of numpy")
            for _, value in outer_values(frame):
                if type(value) in (dict, list, set, deque):  # others have ways of their own
                    self.kept.setdefault(id(value), (value, members_of(value)))
        elif event == "call" and module_of(frame) == "logging":
            self._silence(frame.f_locals.get("self"), frame.f_code.co_name)
        elif event == "call" and frame.f_back is not None and not _is_library(frame.f_back):
            _refuse(module_of(frame), frame.f_code.co_name)
        elif event == "c_call" and not _is_library(frame):
            holder = getattr(argument, "__self__", None)
            _refuse(argument.__module__ or type(holder).__module__, argument.__name__)

    def _silence(self, logger: Any, name: str) -> None:
        """Let a logger say what other threads have to say, and nothing else."""
        is_made = issubclass(type(logger), logging.Logger) and name != "__init__"
        if is_made and logger not in self.loggers:
            self.thread = threading.get_ident()
            self.loggers.add(logger)
            logger.addFilter(self._is_of_others)
        elif name == "basicConfig":
            raise PathEnd("it sets logging up")

    def _is_of_others(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


def _refuse(module: str, name: str) -> None:
    top = module.partition(".")[0]
    is_harmless = top not in sys.stdlib_module_names or top in _HARMLESS
    # What is drawn would decide what is planned.
    if not is_harmless or (top == "builtins" and name in EFFECTS) or "numpy.random" in module:
        raise PathEnd(f"it calls {name}() of {module}")


def _is_library(frame: FrameType) -> bool:
    top = module_of(frame).partition(".")[0]
    return top in ("torch", "sngd_compile") or top in sys.stdlib_module_names
