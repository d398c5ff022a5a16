"""The report on a model: as text, as a table of a terminal or a notebook, as data, as a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.plan.cost import cost_of
from sngd_compile.plan.records import Plan, Site, bytes_text, fisher_text
from sngd_compile.plan.report import Block, blocks_of, joined
from sngd_compile.plan.totals import totals_of
from sngd_compile.training.joint_roots import sent_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
"""Version of what `to_dict` returns: raised when a key is renamed, removed or changes meaning."""


class Explanation:
    """A plan that prints itself; `sites` and `skips` are its records, one for each weight.

    Attributes:
        state_bytes: Memory of all Fisher layers, in bytes: of a network that of their buffers, of
            a model what they will be.
        work_per_step: Multiply-adds that the roots add to a step, forward and backward, over those
            of the weights, `3 N O K` for N rows, O outputs and K weights of one output; the root of
            a matrix that multiplies rows on the cheaper side. N is the mean of the rows that a
            layer has counted in an observed step, at most `Config.max_rows` of a pass; while no
            layer has counted any, 256. Tables that are looked up are left out.
        reconstructed_share: Elements of the parameters that are reconstructed, over those of all
            that require a gradient; 0.0 where there are none.
        sent_bytes: What each process gives to the messages of a refresh and of the observed steps
            since the one before, in bytes, by its number; () where no processes train together, or
            no step has been taken under `fully_shard`.
        observed_share: Elements of the weights (and biases) whose Fisher layer has seen rows, over
            all that are reconstructed; 0.0 before training.
    """

    def __init__(
        self, plan: Plan, layers: Mapping[str, FisherLayer], plan_anew: Callable[[], Plan]
    ) -> None:
        """Hold the plan, and add it up with the Fisher layers that there are."""
        self.plan, self.sites, self.skips = plan, plan.sites, plan.skips
        self._layers, self._plan_anew = layers, plan_anew
        self._totals = totals_of(plan, layers)
        self.state_bytes = self._totals.state_bytes
        self.work_per_step = self._totals.work_per_step
        self.reconstructed_share = self._totals.reconstructed_share
        self.observed_share = self._totals.observed_share
        self.sent_bytes = sent_bytes({id(f): f for f in layers.values()}.values())

    def __str__(self) -> str:
        """Return the tables, every parameter with rule and cost or why it is left, and totals."""
        return self.text()

    def text(self, by: str = "order") -> str:
        """Return the tables as plain text.

        Args:
            by: "order", that of the model; or the cost by which weights are sorted, highest first:
                "state", "step" or "refresh".

        Raises:
            ConfigError: `by` is none of these.
        """
        return joined(self.blocks(by))

    def blocks(self, by: str = "order") -> list[Block]:
        """Return the tables as rows of cells.

        Args:
            by: As for `text`.
        """
        blocks = blocks_of(self.plan, self._totals, by)
        if self.sent_bytes:
            each = ", ".join(map(bytes_text, self.sent_bytes))
            said = f"For a refresh {len(self.sent_bytes)} processes send, in turn: {each}."
            blocks[-1] = Block(f"{blocks[-1].text}\n{said}", blocks[-1].rows)
        return blocks

    def __rich__(self) -> RenderableType:
        """Return the tables for a terminal; `rich.print` asks for them."""
        return self.table()

    def table(self, by: str = "order") -> RenderableType:
        """Return the tables for a rich console.

        Args:
            by: As for `text`.
        """
        of_terminal: Callable[[Sequence[Block]], RenderableType] = _form("terminal").tables
        return of_terminal(self.blocks(by))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, see docs/reading_a_report.md for every key."""
        return {
            "schema": SCHEMA,
            "totals": {**asdict(self._totals), "sent_bytes": list(self.sent_bytes)},
            "sites": [self._site(site) for site in self.sites],
            "skips": [
                {"name": skip.name, "shape": list(skip.shape), "reason": skip.reason}
                for skip in self.skips
            ],
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return `to_dict` as JSON.

        Args:
            indent: As for `json.dumps`.
        """
        return json.dumps(self.to_dict(), indent=indent)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each reconstructed weight.

        Raises:
            ImportError: pandas is not installed.
        """
        return import_module("pandas").DataFrame(self.to_dict()["sites"])

    def to_html(
        self, path: str | Path, history: Sequence[tuple[int, Mapping[str, float]]] = ()
    ) -> Path:
        """Write a page that holds everything it shows: no network is needed to read it.

        Totals, a table to search and sort, for each weight its graph before and after the passes,
        the spectrum of its metric where it has been observed, and curves.

        Args:
            path: The file; it is replaced.
            history: Pairs of a step and what `sngd.metrics` returned then, for the curves.

        Returns:
            The path.
        """
        path = Path(path)
        text = _form("page").page(
            self._plan_anew(), self.blocks(), self.to_dict(), self._layers, history
        )
        path.write_text(text, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        """Return the tables for a notebook."""
        html: str = _form("page").fragment(self.blocks())
        return html

    def _site(self, site: Site) -> dict[str, Any]:
        layer = self._layers.get(site.name)
        is_there = layer is not None and not layer.factor.is_meta
        cost = cost_of(site, layer)
        return {
            "name": site.name,
            "parameters": site.parameter_names,
            "shape": list(site.shape),
            "elements": site.parameter_count,
            "rule": site.rule,
            "fisher": site.kind,
            "fisher_text": fisher_text(site.spec),
            "size": site.size,
            "groups": site.layout.groups,
            "rank": site.spec.rank,
            "has_bias": site.spec.has_bias,
            "state_bytes": site.state_bytes,
            "step_work": site.step_work,
            "refresh_work": site.refresh_work,
            "rows_seen": layer.rows_seen if layer is not None and is_there else None,
            "damping": layer.damping if layer is not None and is_there else None,
            **asdict(cost),
            "added_ratio": cost.added_ratio,
            "note": site.note,
        }


def _form(name: str) -> ModuleType:
    """Import what writes a report, which a training that asks for none does not pay for."""
    return import_module(f"sngd_compile.inspection.{name}")
