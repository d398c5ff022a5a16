"""What `verify` returns: of each law whether it holds, by which error, and what to do if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from textwrap import fill

from sngd_compile.errors import shown

WIDTH = 100
"""Columns of the report."""

VERDICTS = {True: "holds", False: "FAILS", None: "does not apply"}


@dataclass(frozen=True)
class Law:
    """One law in words.

    Args:
        text: What holds.
        meaning: What it means for training where it does not.
        remedy: What to do then.
    """

    text: str
    meaning: str
    remedy: str


REPORT_IT = "report it with this table and `print(sngd.explain(model))`"

LAWS = {
    "forward": Law(
        "two runs with the same seed agree",
        "no comparison of this network with another says anything, and the laws that need one are "
        "not checked",
        "look for state outside of the network: counters, clocks, generators of its own",
    ),
    "reconstruct": Law(
        "the rewritten network computes what the model does",
        "another network than yours is trained",
        f"leave the layer out by overrides={{name: None}}, and {REPORT_IT}",
    ),
    "observed": Law(
        "every weight of the plan is observed",
        "this weight takes steps of plain descent",
        "see that forward and loss use it with finite numbers in training, or leave it out by "
        "overrides={name: None}",
    ),
    "factor": Law(
        "the factor is the moment of the Jacobian",
        "the steps of this layer are not natural: other inputs are measured than those it has",
        f"leave the layer out by overrides={{name: None}}, and {REPORT_IT}",
    ),
    "root": Law(
        "the root inverts the damped factor",
        "the steps of this layer have another length and direction than its statistics say",
        f"raise damping_rel_trace, take Config(root='symmetric'), and {REPORT_IT}",
    ),
    "refresh": Law(
        "a refresh changes no output",
        "the loss jumps whenever roots are renewed",
        f"raise damping_rel_trace, keep parameters in float32, and {REPORT_IT}",
    ),
    "natural step": Law(
        "a step of SGD on w' is w - lr g G^-1",
        "what SGD does to this layer is not natural gradient descent",
        "see that no hook on the weight or its gradient changes either; if none does, " + REPORT_IT,
    ),
    "fold": Law(
        "folding gives function, classes and keys back",
        "what is saved or deployed after training is another network",
        f"keep net.state_dict(), and {REPORT_IT}",
    ),
    "state": Law(
        "a loaded state goes on with the same numbers",
        "a resumed run is another run than the one that was interrupted",
        f"keep the whole network with torch.save(net), and {REPORT_IT}",
    ),
}
"""By the name of their check, in the order of the report."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One law on one network and batch.

    Args:
        name: Short, a key of `LAWS`.
        holds: Whether the error is within the bound; None where the law does not apply.
        error: The largest that was measured, relative but for "state"; of "observed" the number of
            weights that were not. 0.0 where nothing was.
        bound: The largest error that rounding explains.
        layer: Name of the weight with the largest error; "" where none is concerned.
        remark: What was compared or left out, or why nothing was.
    """

    name: str
    holds: bool | None
    error: float = 0.0
    bound: float = 0.0
    layer: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Report:
    """The checks in the order in which they were made; prints itself as one table."""

    title: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no law fails."""
        return all(check.holds is not False for check in self.checks)

    @property
    def exit_code(self) -> int:
        """For `sys.exit`: 0 where no law fails, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        """Return the table, the remarks, and of what fails what it means and what to do."""
        rows = [("check", "law", "verdict", "error", "bound"), *map(_row, self.checks)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        parts = [self.title, "\n".join(lines)]
        remarks = [c for c in self.checks if c.remark and c.holds is not False]
        if remarks:
            parts.append("\n".join(_paragraph(f"{c.name}: {c.remark}") for c in remarks))
        parts += [_failure(check) for check in self.checks if check.holds is False]
        return "\n\n".join(parts)


def checked(name: str, errors: Mapping[str, float], bound: float, remark: str = "") -> Check:
    """Compare the largest of the errors with the bound.

    Args:
        name: Of the check.
        errors: By the names of weights; "" for the whole network.
        bound: The largest that holds.
        remark: See `Check`.
    """
    # What is no number is no error that rounding explains.
    sound = {layer: float("inf") if isnan(error) else error for layer, error in errors.items()}
    layer = max(sound, key=sound.__getitem__)
    holds = sound[layer] <= bound
    named = layer if sound[layer] > 0 else ""
    return Check(
        name=name, holds=holds, error=sound[layer], bound=bound, layer=named, remark=remark
    )


def unfit(name: str, reason: str) -> Check:
    """Say why a law does not apply."""
    return Check(name=name, holds=None, remark=reason)


def _row(check: Check) -> tuple[str, ...]:
    applies = check.holds is not None
    return (
        check.name,
        LAWS[check.name].text,
        VERDICTS[check.holds],
        f"{check.error:.1e}" if applies else "",
        f"{check.bound:.1e}" if applies else "",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def _failure(check: Check) -> str:
    law = LAWS[check.name]
    where = f" of {check.layer}" if check.layer else ""
    why = f": {check.remark.rstrip('.')}" if check.remark else ""
    texts = (f"{check.name}{where} fails{why}.", f"Meaning: {law.meaning}.")
    return "\n".join(map(_paragraph, (*texts, f"What to do: {law.remedy}.")))


def _paragraph(text: str) -> str:
    return fill(
        shown(text), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
