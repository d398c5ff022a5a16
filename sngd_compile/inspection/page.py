"""The report as a page of one file: every name in it is text, whatever it is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jinja2
import torch
from markupsafe import Markup

from sngd_compile.errors import shown
from sngd_compile.fisher.layer import FisherLayer
from sngd_compile.inspection.curves import Curve, curve, spectrum
from sngd_compile.inspection.pass_records import PassRecords, run_recorded_
from sngd_compile.plan.records import Plan, bytes_text, qualified
from sngd_compile.plan.report import Block, count_text, difference_report, shape_text

LARGEST_SPECTRUM = 1024
"""D up to which the page has the spectrum of a metric: it is decomposed as a whole."""

CURVES = ("norm", "plain_norm", "condition", "root_age", "observed_share")
"""The metrics of a whole network of which the page shows the course."""


def fragment(blocks: Sequence[Block]) -> str:
    """Return the tables alone, for a notebook."""
    return _template("fragment.html").render(blocks=blocks)


def page(
    plan: Plan,
    blocks: Sequence[Block],
    record: Mapping[str, Any],
    layers: Mapping[str, FisherLayer],
    history: Sequence[tuple[int, Mapping[str, float]]],
) -> str:
    """Return the page.

    Args:
        plan: A plan that nobody else holds: the passes run on its graphs.
        blocks: The report as tables.
        record: The report as data.
        layers: The Fisher layers, by the name of their weight; empty for a model.
        history: Pairs of a step and what `sngd.metrics` returned then.
    """
    records = run_recorded_(plan)
    return _template("report.html").render(
        torch_version=torch.__version__,
        blocks=blocks,
        totals=_totals(record),
        rows=[_row(site) for site in record["sites"]],
        skips=record["skips"],
        passes=str(records),
        graphs=_graphs(plan, records),
        spectra=_spectra(layers),
        curves=_curves(history),
    )


def _totals(record: Mapping[str, Any]) -> dict[str, str]:
    totals, sites = record["totals"], record["sites"]
    found = {
        "reconstructed": f"{100 * totals['reconstructed_share']:.1f} % of all trained elements",
        "weights": f"{len(sites):,} reconstructed, {len(record['skips']):,} parameters left",
        "state": bytes_text(totals["state_bytes"]),
        "work of a step": f"{100 * totals['work_per_step']:.3g} % more multiply-adds",
    }
    if totals["is_trained"]:
        found["observed"] = f"{100 * totals['observed_share']:.1f} % of the reconstructed elements"
    return found


class Cell(NamedTuple):
    """What a table shows of a weight.

    Args:
        text: As it is read.
        key: What it is sorted by.
        share: Of a cell with a bar, the part of it that is filled, in percent; None of others.
        parts: What the text adds up, shown where one points at it.
    """

    text: str
    key: str | float
    share: float | None = None
    parts: str = ""


def _row(site: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a weight."""
    texts = (site["name"], site["rule"], site["fisher_text"], site["note"])
    name, rule, fisher, note = (Cell(text, text) for text in texts)
    costs = [Cell(count_text(site[key]), site[key]) for key in ("step_work", "refresh_work")]
    shape = Cell(shape_text(site["shape"]), site["elements"])
    state = Cell(bytes_text(site["state_bytes"]), site["state_bytes"])
    return [name, shape, rule, fisher, state, *costs, _own(site), _added(site), note]


def _own(site: Mapping[str, Any]) -> Cell:
    """Return what a layer multiplies itself; below all others where that is not known."""
    work = site["own_work"]
    if work is None:
        return Cell("unknown", -1)
    least = "at least " if site["is_at_most"] else ""
    return Cell(least + count_text(round(work)) if work else "0: a table", work)


def _added(site: Mapping[str, Any]) -> Cell:
    """Return what is added to that, with a bar of the step's work that this is."""
    ratio = site["added_ratio"]
    if ratio is None:
        return Cell("unknown" if site["own_work"] is None else "nothing to compare", -1)
    most = "at most " if site["is_at_most"] else ""
    parts = ", ".join(
        f"{name} {count_text(round(site[f'added_by_{name}']))}"
        for name in ("root", "observation", "refresh")
    )
    return Cell(f"{most}{100 * ratio:.3g} %", ratio, 100 * ratio / (1 + ratio), parts)


def _graphs(plan: Plan, records: PassRecords) -> list[dict[str, Any]]:
    """Return each distinct rewriting once, with the modules that have it."""
    texts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        texts[record.module].append(record.before)
        texts[record.module].append(record.after)
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, of_module in texts.items():
        alike[of_module[0], of_module[-1]].append(module)
    weights = {
        module.module_name: [qualified(module.module_name, p.weight_name) for _, p in module.sites]
        for module in plan.modules
    }
    return [
        {
            "modules": [name or "the model itself" for name in modules],
            "weights": [weight for name in modules for weight in weights[name]],
            "before": before,
            "after": after,
            "lines": difference_report(before, after).splitlines(),
        }
        for (before, after), modules in alike.items()
    ]


def _spectra(layers: Mapping[str, FisherLayer]) -> list[tuple[str, Curve]]:
    """Return the eigenvalues of the metric of each layer that was observed, of its first group."""
    found = []
    for name, layer in layers.items():
        is_there = not layer.factor.is_meta and layer.rows_seen > 0
        if is_there and layer.size <= LARGEST_SPECTRUM:
            found.append((name, spectrum(layer.metric(), layer.damping)))
    return found


def _curves(history: Sequence[tuple[int, Mapping[str, float]]]) -> list[tuple[str, Curve]]:
    named = [(metric, f"total/{metric}") for metric in CURVES]
    return [
        (metric, curve([(step, numbers[key]) for step, numbers in history if key in numbers]))
        for metric, key in named
        if any(key in numbers for _, numbers in history)
    ]


def _visible(value: Any) -> Any:
    """Escape control characters of what is put into a page, a line at a time."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(shown, value.split("\n")))


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("sngd_compile.inspection", "")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    return environment.get_template(name)
