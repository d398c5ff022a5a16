"""What a function's bytecode says about tracing it, before it runs."""

from __future__ import annotations

import dis
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FunctionType

Steps = list[dis.Instruction]


class UncapturableError(Exception):
    """The forward of a module cannot be turned into a graph; the text is the reason.

    Attributes:
        names_read: The attributes of the module on which that may depend.
    """

    names_read: frozenset[str] = frozenset()


def words(text: str) -> frozenset[str]:
    """Make a set of the words of a text."""
    return frozenset(text.split())


_QUESTIONS = words("type hasattr callable id vars globals locals")
EFFECTS = words("print open input exec eval setattr delattr")
# A graph would keep for good what these were while it was traced.
_REFUSED_READS = words(
    "is_grad_enabled is_autocast_enabled is_inference_mode_enabled is_compiling get_default_dtype "
    "_parameters _buffers __dict__"
)


def refuse_code(code: CodeType) -> None:
    """Refuse a function for what its bytecode does.

    Raises:
        UncapturableError: With the reason.
    """
    reason, _ = read(code)
    if reason:
        raise UncapturableError(f"its forward {reason}")


@lru_cache(maxsize=4096)
def read(code: CodeType) -> tuple[str | None, frozenset[str]]:
    """Return why a function cannot be traced, and the names that it tests for identity."""
    # Read before it runs: a `with`, or a write to an attribute, cannot be undone once it has run.
    steps = list(dis.get_instructions(code))
    tested: set[str] = set()
    for index, step in enumerate(steps):
        reason = _reason(code, step)
        if reason:
            return reason, frozenset()
        operands = 2 if step.opname == "IS_OP" else 1
        if operands == 2 or ("NONE" in step.opname.split("_") and "JUMP" in step.opname):
            names = _loaded_names(steps[:index], operands)
            if names is None:
                return "tests whether a computed value is None", frozenset()
            tested |= names
    return None, frozenset(tested)


def changes_in_place(owner: type, function: object, name: str) -> bool:
    """Say whether a method, or one that it calls on `self`, changes `self.<name>` in place.

    A reconstructed weight is read as `w' R`, made anew each time: such a change would be lost.
    """

    def changes(steps: Steps) -> bool:
        return any(
            step.argval == name
            and (step.opname == "STORE_ATTR" or (step.opname == "LOAD_ATTR" and _is_change(after)))
            for step, after in pairwise(steps)
        )

    return _is_done(owner, function, changes)


def reads_parameters_raw(owner: type, function: object) -> bool:
    """Say whether a method, or one that it calls on `self`, takes parameters out of `_parameters`.

    There a reconstructed weight is `w'`, and the attribute is `w`.
    """

    def reads(steps: Steps) -> bool:
        return any(s.opname == "LOAD_ATTR" and s.argval == "_parameters" for s in steps)

    # `x.to(...)` names a method of nn.Module too, which looks there and is not called.
    return _is_done(owner, function, reads, into_torch=False)


def names_read(owner: type, function: object) -> frozenset[str]:
    """List the attributes that a method reads of anything, or what it calls: methods, functions."""
    found: set[str] = set()

    def collect(steps: Steps) -> bool:
        found.update(str(s.argval) for s in steps if s.opname in ("LOAD_ATTR", "LOAD_METHOD"))
        return False

    _is_done(owner, function, collect, into_torch=False, into_helpers=True)
    return frozenset(found)


def _is_done(
    owner: type,
    function: object,
    does: Callable[[Steps], bool],
    into_torch: bool = True,
    into_helpers: bool = False,
    depth: int = 5,
) -> bool:
    """Say whether the bytecode of a method, or of one that it calls on `self`, does something."""
    code = getattr(function, "__code__", None)
    # The depth ends the search where methods call each other.
    if not isinstance(code, CodeType) or depth == 0:
        return False
    steps = [step for step in dis.get_instructions(code) if step.opname not in _NO_STEPS]
    if does(steps):
        return True
    called = [
        *_called(owner, function, steps),
        *(_helpers(function, steps) if into_helpers else ()),
    ]
    return any(
        _is_done(owner, each, does, into_torch, into_helpers, depth - 1)
        for each in called
        if into_torch or not is_of_torch(each)
    )


def is_python(function: object) -> bool:
    """Say whether a function has bytecode, and so arguments with names."""
    return isinstance(getattr(function, "__code__", None), CodeType)


def is_of_torch(function: object) -> bool:
    """Say whether a function is one of torch's own."""
    return str(getattr(function, "__module__", "")).partition(".")[0] == "torch"


def _called(owner: type, function: object, steps: Steps) -> list[object]:
    """List the methods of `owner` that a function names, and the functions inside it."""
    methods = {s.argval for s in steps if s.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    called = [getattr(owner, method, None) for method in methods if isinstance(method, str)]
    code = function.__code__  # type: ignore[attr-defined]
    inner = [_Inner(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return [f for f in (*called, *inner) if f is not function and hasattr(f, "__code__")]


def _helpers(function: object, steps: Steps) -> list[object]:
    """List the functions that a function finds among its globals or in its closure."""
    found = dict(getattr(function, "__globals__", {}))
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=False):  # type: ignore[attr-defined]
        with suppress(ValueError):  # it is empty as yet
            found[name] = cell.cell_contents
    named = {s.argval for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_DEREF")}
    return [found[name] for name in named if isinstance(found.get(name), FunctionType)]


# CPython renames opcodes: PRECALL went with 3.12, KW_NAMES with 3.13, where CALL_KW came.
_NO_STEPS = words("CACHE PRECALL EXTENDED_ARG NOP PUSH_NULL")


def _is_change(step: dis.Instruction) -> bool:
    attribute = step.argval if step.opname in ("LOAD_ATTR", "LOAD_METHOD") else None
    in_place = str(attribute).endswith("_") and not str(attribute).startswith("_")
    return attribute == "data" or (in_place and attribute != "requires_grad_")


@dataclass(frozen=True)
class _Inner:
    """A function inside a function, known by its code."""

    __code__: CodeType


def _reason(code: CodeType, step: dis.Instruction) -> str | None:
    name, value = step.opname, step.argval
    is_global = name in ("LOAD_GLOBAL", "LOAD_NAME")
    reasons = (
        (f"decides by {value}(), which a graph cannot ask", is_global and value in _QUESTIONS),
        (f"has a side effect, {value}()", is_global and value in EFFECTS),
        (f"depends on {value}", name.startswith("LOAD_") and value in _REFUSED_READS),
        (f"changes or creates .{value}", name in ("STORE_ATTR", "DELETE_ATTR")),
        (f"changes the global {value}", name in ("STORE_GLOBAL", "DELETE_GLOBAL")),
        (
            f"changes {value}, a variable of the function around it",
            # A variable of its own that an inner function reads is stored by the same opcode.
            name == "STORE_DEREF" and value in code.co_freevars,
        ),
        # From CPython 3.11 on a `try` is entered without an opcode. This one begins every handler,
        # and that of a `with`.
        ("uses `with` or `try`", name == "PUSH_EXC_INFO"),
        ("uses `match`", name.startswith("MATCH_")),
    )
    return next((reason for reason, found in reasons if found), None)


def _loaded_names(steps: list[dis.Instruction], operands: int) -> set[str] | None:
    """Name the variables behind the last operands; None where one is more than `a` or `a.b`."""
    names: set[str] = set()
    for step in reversed(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "EXTENDED_ARG", "NOP"):
            continue
        if not step.opname.startswith("LOAD_"):
            return None
        loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        if "FAST" in step.opname or "DEREF" in step.opname:
            names.update(loaded)
        operands -= 1 if "CONST" in step.opname else len(loaded)
        if operands <= 0:
            return names
    return None
