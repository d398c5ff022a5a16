"""The page of `make reproduce`, made of what is stored of each experiment."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from paper.experiments import EXPERIMENTS, Experiment
from paper.reproduce_summary import Content, mean_and_spread, starred, summary, verdicts
from steps.step_report import table_lines

INTRODUCTION = """\
# The paper's experiments

The paper is [arXiv 2412.07441](https://arxiv.org/abs/2412.07441). `make reproduce` runs its
experiments, `make reproduce ARGS="--only mlp-a"` one of them.

## Summary

SNGD beside the best of its peers in each column: who has the best mean there, chosen afterwards, so
it may be another peer in every column. Of steps and seconds a number below 1 is in favour of SNGD.
Means over the seeds; in brackets the least and the largest, of ratios those of single seeds. Better
and worse are so on every seed, else it is a tie. A star marks who ran at the edge of the rates it
tried: a further one might be better.
"""

PROTOCOL = """\
**When to use it.** SNGD pays for the steps that it saves in every one of them: `ms a step` in the
tables below. The more rows a weight meets in a batch, the less that is beside the step itself: a
recurrent weight meets one at each position of a text, a weight of an MLP one for each example. The
column of seconds says what is left; look for a network like yours, at your batch size. Where both
columns are above 1, take the peer that they name. Where that is K-FAC, `Config(fisher="kronecker")`
is that method, with a learning rate of its own ([tuning](../../docs/tuning.md#which-local-fisher)).
A lower training loss is not a better test result: that column is by itself.

**Protocol.** All contenders of an experiment take the same number of steps, on the same batches,
from the same weights, in turns on one thread. Each tried as many learning rates as its section says
on seed 0 over half the steps, and ran at the one with the lowest training loss on fresh seeds. The
goal is the training loss that the first contender reaches on every seed. Seconds are processor time
without batches and measurements; the load of the machine, in processes that want to run, is that
before and after. SGD has momentum 0.9 unless its name says otherwise. SNGD without a preset has the
defaults and Nesterov's momentum of 0.9; the paper's preset is `Config.paper()` with one Fisher for
each unit of a hidden layer, plain SGD and an L2 of 1e-3 on weights, not on biases, which SGD
without momentum has too.

Equal steps favour methods with dear steps: [benchmarks.md](../../docs/benchmarks.md) compares at
equal time.

**The paper's figures** come from a summary of it, a single source, and are of its own networks,
data and training length. Each section says what is different here: our figure neither confirms nor
refutes the one beside it. What can be compared is the order of the methods, and the gaps between
them.
"""

IMAGENET = """\
## imagenet

Not run here: the data set may not be passed on, and one core is not enough. `examples/imagenet.py`
trains a ResNet-18 on a local folder of images, one folder for each class:

    .venv/bin/python examples/imagenet.py path/to/imagenet

The paper reports a top-1 accuracy of 73.41 % for SNGD, 70.23 % for SGD and 63.79 % for Adam.
"""


def header(experiment: Experiment, content: Content) -> list[str]:
    """The names of the columns."""
    goal = f"{content['goals'][1]:.3g}"
    units = [f"{unit} to {goal}" for unit in ("steps", "seconds")]
    columns = ["", "rate", "ms a step", *units, "training loss in the end", content["judged"]]
    return [*columns, "in the paper"] if experiment.reported else columns


def cells(experiment: Experiment, content: Content, outcome: Content) -> list[str]:
    """One contender's row."""
    runs, form = outcome["runs"], ".1%" if content["judged"] == "test accuracy" else ".3g"
    told = [experiment.reported.get(outcome["contender"], "")] if experiment.reported else []
    failures = [run["failure"] for run in runs if run["failure"]]
    if outcome["failure"] or failures:
        why = outcome["failure"] or f"{failures[0]} on {len(failures)} of {len(runs)} seeds"
        return [outcome["contender"], *[""] * 5, why, *told]
    return [
        outcome["contender"],
        starred(f"{outcome['rate']:g}", outcome),
        mean_and_spread([1e3 * run["seconds"] / run["steps"] for run in runs], ".2f"),
        *(at_goal([run["goals"][1] for run in runs], *each) for each in UNITS.items()),
        mean_and_spread([run["points"][-1][2] for run in runs], ".3g"),
        mean_and_spread([run["score"] for run in runs], form),
        *told,
    ]


UNITS = {"steps": ".0f", "seconds": ".2f"}


def at_goal(places: Sequence[Mapping[str, float] | None], unit: str, form: str) -> str:
    """Steps or seconds to the goal."""
    there = [place[unit] for place in places if place]
    if len(there) < len(places):
        return f"reached by {len(there)} of {len(places)}" if there else "not reached"
    return mean_and_spread(there, form)


def table(experiment: Experiment, content: Content) -> Table:
    """One experiment for the terminal."""
    names = header(experiment, content)
    shown = Table(*names, title=f"{experiment.name}: {content['title']}, {content['data']}")
    for outcome in content["contenders"]:
        name, *values = cells(experiment, content, outcome)
        shown.add_row(name, *(value.replace(" (", "\n(") for value in values))
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def section(experiment: Experiment, content: Content) -> str:
    """One experiment for the page: what was run, the table, the plot, what is different."""
    conditions = {**content["conditions"], "load": "{} to {}".format(*content["load"])}
    size = (
        f"{content['title']} on {content['data']}, batch {content['batch_size']}, "
        f"{content['limit']:g} steps, {content['seeds']} seeds, {content['rates']} rates."
    )
    rows = [cells(experiment, content, outcome) for outcome in content["contenders"]]
    lines = [f"## {experiment.name}", "", size, "", *verdicts(content), ""]
    lines += table_lines(header(experiment, content), rows)
    picture = f"![Training loss over steps and seconds](reproduce/{experiment.name}.png)"
    lines += ["", picture, "", *(f"- {text}" for text in experiment.differs), ""]
    lines += ["Machine: " + ", ".join(f"{key} {value}" for key, value in conditions.items()), ""]
    return "\n".join(lines)


def page(folder: Path) -> str:
    """The page from what is stored; an experiment that has not been run says how to run it."""
    paths = {experiment.name: folder / f"{experiment.name}.json" for experiment in EXPERIMENTS}
    stored = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    parts = [INTRODUCTION, summary(stored), PROTOCOL]
    for experiment in EXPERIMENTS:
        if experiment.name in stored:
            parts.append(section(experiment, stored[experiment.name]))
        else:
            command = f'make reproduce ARGS="--only {experiment.name}"'
            parts.append(f"## {experiment.name}\n\nNot run yet: `{command}`.\n")
    return "\n".join([*parts, IMAGENET])
