"""What a local Fisher is but for its numbers: one record for plans, graphs, layers and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sngd_compile.config import Config
from sngd_compile.fisher.roots.base import FactorRoot, RootShape
from sngd_compile.fisher.trust import Trust
from sngd_compile.layout import Layout
from sngd_compile.registry import KINDS, ROOTS

FEW = 16
"""Outputs of a weight for which a map takes no longer than calling an op for it does."""

FORMAT = 1
"""Of the state of a Fisher layer; raised when one that is written now could not be read before."""

COUNTS = 3
"""Entries of the state of a Fisher layer that count steps, the first ones."""

FORMAT_ENTRY, LENGTH, TEXT = range(COUNTS, COUNTS + 3)  # the text is the rest
BYTES = 8  # of an entry
PADDING = 64  # entries of which the text takes a multiple


@dataclass(frozen=True)
class FisherSpec:
    """Describe the local Fisher of one weight (and its bias) and the root of its inverse.

    Args:
        layout: How the weight is laid out as matrices `[*, O, K]`.
        has_bias: Whether the last coordinate of a row is the bias's 1.
        kind: Name of the kind of local Fisher, see `Config.fisher`.
        root: Name of the kind of root, see `Config.root`.
        dtype: Of the statistics and of the root; float32 or float64.
        rank: Columns of a sketch; 0 of other kinds.
        blocks: Of a factor in blocks, the size of each block, bias included.
        activation: Where a layer's outputs weigh its rows, the name of what follows the layer.
        scale: Multiple of the factor that is damped and inverted, see `Config.over_outputs`.
        is_bias_apart: Whether the root leaves a bias that is mapped with the weight as it is:
            somebody trains the two in different ways.

    Attributes: found once, since Dynamo, which traces what reads them, follows no registry.
        encoded: All of the above as one string, which ops in a graph carry.
        is_diagonal: Whether factor and root are held as their diagonals.
        pays_as_op: Whether a map of the weight takes longer than calling an op for it does.
    """

    layout: Layout
    has_bias: bool
    kind: str
    root: str
    dtype: torch.dtype
    rank: int = 0
    blocks: tuple[int, ...] = ()
    activation: str = ""
    scale: float = 1.0
    is_bias_apart: bool = False
    encoded: str = field(init=False, repr=False, compare=False)
    is_diagonal: bool = field(init=False, repr=False, compare=False)
    pays_as_op: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the attributes."""
        is_diagonal = KINDS[self.kind].is_diagonal
        is_elementwise = is_diagonal or self.layout.width == 1
        pays_as_op = not is_elementwise and self.layout.outputs > FEW
        for name, value in (
            ("encoded", json.dumps(self.fields(), separators=(",", ":"))),
            ("is_diagonal", is_diagonal),
            ("pays_as_op", pays_as_op),
        ):
            object.__setattr__(self, name, value)  # the record is frozen

    @classmethod
    def of(
        cls, layout: Layout, has_bias: bool, kind: str, config: Config, dtype: torch.dtype
    ) -> FisherSpec:
        """Describe what a configuration asks for.

        Args:
            layout: As above.
            has_bias: As above.
            kind: Name of the kind; not always the configured one.
            config: Of the weight.
            dtype: Of the weight; the statistics are float32 or wider.
        """
        is_mean = config.over_outputs == "mean" and not KINDS[kind].measures_outputs
        return cls(
            layout,
            has_bias,
            kind,
            config.exact_root,
            torch.promote_types(dtype, torch.float32),
            scale=1.0 / layout.all_outputs if is_mean else 1.0,
        )

    @property
    def size(self) -> int:
        """D, weights of one output, bias included."""
        return self.layout.width + self.has_bias

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axis of a factor: the groups, where there are any."""
        return () if self.layout.groups is None else (self.layout.groups,)

    def new_root(
        self,
        size: int,
        has_bias: bool,
        groups: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> FactorRoot:
        """Make the identity root of one factor `[*, size, size]`, of the kind that is wanted."""
        made: type[FactorRoot] = ROOTS[self.root]
        return made(RootShape(size, has_bias, groups, dtype, device))

    def fields(self) -> dict[str, Any]:
        """Return plain values, which a checkpoint holds and `from_fields` takes."""
        layout = self.layout
        return {
            "layout": (layout.view, layout.order, layout.matrix),
            "has_bias": self.has_bias,
            "kind": self.kind,
            "root": self.root,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rank": self.rank,
            "blocks": self.blocks,
            "activation": self.activation,
            "scale": self.scale,
            "is_bias_apart": self.is_bias_apart,
        }

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> FisherSpec:
        """Return the record of these fields.

        Raises:
            ValueError: One is missing or more than there are, no layout, or names a kind, a root or
                a dtype that there is not.
        """
        given = dict(fields)
        try:
            layout = Layout(*(tuple(part) for part in given.pop("layout")))
            kind, root, dtype = (given[name] for name in ("kind", "root", "dtype"))
            known = kind in KINDS and root in ROOTS and dtype in ("float32", "float64")
            if not known or not layout.is_sound:
                raise ValueError(f"no local Fisher {kind!r}, root {root!r}, {dtype!r}, {layout}")
            given["blocks"] = tuple(given["blocks"])
            given["dtype"] = getattr(torch, dtype)
            return FisherSpec(layout, **given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are not the fields of a local Fisher: {error}") from error

    @staticmethod
    @lru_cache(maxsize=4096)
    def decode(text: str) -> FisherSpec:
        """Return the record of an `encoded`; cached, since ops of small weights ask often."""
        return FisherSpec.from_fields(json.loads(text))


@dataclass(frozen=True)
class Record:
    """Describe a Fisher layer.

    Args:
        spec: The record of the local Fisher.
        bias_name: Name of the bias that is mapped with the weight, in the module of the weight.
        trust: What the layer remembers of its trust region.
        gain: See `FisherLayer`.
    """

    spec: FisherSpec
    bias_name: str | None
    trust: Trust = field(default_factory=Trust)
    gain: float = 1.0


def packed(counts: Sequence[int], record: Record) -> Tensor:
    """Return what a state holds of a Fisher layer beside its buffers, enough to fold without it.

    It is a tensor of integers, which every format of checkpoints takes: `[steps, observed steps,
    root step, format, bytes of text, text...]`, the text as JSON, padded with zeros so that the
    records of like layers have one length.

    Args:
        counts: The first three, as `Schedule.restore` takes them.
        record: The rest.
    """
    fields = {"spec": record.spec.fields(), "bias_name": record.bias_name}
    fields |= record.trust.fields() | {"gain": f"{record.gain:.17e}"}
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    padded = text.ljust(-(-len(text) // (BYTES * PADDING)) * BYTES * PADDING, b"\0")
    head = torch.tensor([*counts, FORMAT, len(text)], device="cpu")
    return torch.cat([head, torch.frombuffer(bytearray(padded), dtype=torch.int64)])


def _fault(state: Tensor) -> str | None:
    """Say what is wrong with such a tensor; None where nothing is."""
    if state.dtype != torch.int64 or state.dim() != 1 or len(state) < TEXT:
        return f"is no record of a Fisher layer, but {state.dtype}, {tuple(state.shape)}"
    if bool((state < 0).any()):
        return "counts steps below 0"
    if int(state[FORMAT_ENTRY]) > FORMAT:
        return (
            f"has format {int(state[FORMAT_ENTRY])}, of a newer sngd_compile than this one, which "
            f"reads up to format {FORMAT}"
        )
    return None


def unpacked(state: Tensor) -> Record:
    """Return what `packed` was given.

    Raises:
        ValueError: It is damaged, or of a newer format.
    """
    reason = _fault(state)
    if reason is not None:
        raise ValueError(reason)
    text = state[TEXT:].cpu().contiguous().view(torch.uint8)[: int(state[LENGTH])]
    try:
        fields = json.loads(bytes(text.tolist()))
        spec, name = FisherSpec.from_fields(fields["spec"]), fields["bias_name"]
        trust, gain = Trust.from_fields(fields), float(fields.get("gain", 1.0))
        if not 0.0 < gain < math.inf:
            raise ValueError(f"a gain of {gain}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is damaged: {error}") from error
    return Record(spec, None if name is None else str(name), trust, gain)


def mismatch(given: object, own: Tensor, is_record: bool) -> str | None:
    """Say what is wrong with a tensor of a checkpoint; None where nothing is."""
    if not isinstance(given, Tensor):
        return f"is a {type(given).__name__}, no tensor"
    if is_record:
        try:
            unpacked(given)
        except ValueError as error:
            return str(error)
        return None
    if given.shape != own.shape:
        return f"has the shape {tuple(given.shape)} instead of {tuple(own.shape)}"
    if given.is_meta or bool(given.isfinite().all()):
        return None
    return "holds numbers that are not finite"
