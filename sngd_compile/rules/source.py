"""What the source of a class says about a parameter, where its forward cannot be captured."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from sngd_compile.capture.bytecode import words

_PASSED_ON = words(
    "bfloat16 clone contiguous double flatten float half reshape squeeze to type_as unsqueeze view"
)
"""Methods that give the same elements."""

_ELEMENTWISE = words(
    "abs add cat concat exp expand expand_as log log1p mean mul neg norm relu repeat sigmoid "
    "softmax softplus sqrt square stack sub sum tanh"
)
"""Functions and methods in which a parameter is no matrix."""


def is_used_elementwise(module_class: type[Any], name: str) -> bool:
    """Say whether every use of `self.<name>` in a class treats it as numbers, none as a matrix.

    Args:
        module_class: The class; what it inherits from others than `nn.Module` is read too.
        name: Attribute name of the parameter.

    Returns:
        False where a use is not recognised, or no source is to be had.
    """
    verdicts = [
        _is_elementwise(node, parents)
        for parents in _trees(module_class)
        for node in parents
        if _reads(node, name)
    ]
    known = [verdict for verdict in verdicts if verdict is not None]
    return bool(known) and all(known)


_known: WeakKeyDictionary[Any, dict[ast.AST, ast.AST]] = WeakKeyDictionary()
"""What `_tree` found; it keeps no class alive."""


def _tree(base: Any) -> dict[ast.AST, ast.AST]:
    """Map every node of a class's source to its parent; nothing where there is no source."""
    if base not in _known:
        _known[base] = _parsed(base)
    return _known[base]


def _parsed(base: Any) -> dict[ast.AST, ast.AST]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError, SyntaxError):
        return {}
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def _trees(module_class: type[nn.Module]) -> Iterator[dict[ast.AST, ast.AST]]:
    """Yield a map from every node to its parent, for each class."""
    for base in module_class.__mro__:
        if base is nn.Module:
            return
        yield _tree(base)


def _reads(node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _is_elementwise(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool | None:
    """Say whether one use is elementwise; None where it asks for no element."""
    parent = parents.get(node)
    if isinstance(parent, ast.Attribute):
        call = parents.get(parent)
        if not isinstance(call, ast.Call) or call.func is not parent:
            return None
        passed_on = parent.attr in _PASSED_ON
        return _is_elementwise(call, parents) if passed_on else parent.attr in _ELEMENTWISE
    if isinstance(parent, ast.List | ast.Tuple):
        return _is_elementwise(parent, parents)
    if isinstance(parent, ast.Call):
        called = parent.func.attr if isinstance(parent.func, ast.Attribute) else ""
        fills = called.endswith("_")  # as initialisation does
        return None if fills else called in _ELEMENTWISE
    is_product = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.MatMult)
    return isinstance(parent, ast.UnaryOp | ast.BinOp) and not is_product
