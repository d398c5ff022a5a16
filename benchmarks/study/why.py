"""What the inputs of each task's layers look like, and what became of its steps, beside the gain.

Each task trains with the defaults for as many steps of SNGD as the study gives SGD. In the second
half, every tenth step, the metrics of all layers are read before the step.

    make bench-why ARGS="--tasks mlp --tasks gpt"
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch.optim import SGD

import sngd_compile as sngd
from contenders import SNGD, limit_to_one_thread
from sngd_compile.explain import distinct_sites
from sngd_compile.fisher.weight_map import mapped
from sngd_compile.training.site import Site
from steps.step_report import table_lines
from study.convergence import RESULTS, wanted
from study.study_report import circumstances
from tasks import Task

EVERY = 10
HEADER = (
    "task",
    "effective rank over width",
    "condition",
    "gradients that reach out",
    "trust left",
    "alignment",
    "seconds over the best peer's, near",
    "far",
)
EXPLANATION = """\
# Why it pays where it does

`make bench-why`: the second half of a run of SNGD with the defaults, seed 0, read every {every}th
step. Means over layers, weighted by their elements, of medians over time. Effective rank is
`trace(G)^2 / trace(G^2)`, over the width D: 1 where inputs are white, little where a few directions
have it all. Condition is that of the metric. Gradients that reach out are the share of steps that a
trust region shortened; trust is what was left of it in the end. Alignment is the cosine between the
gradient and the natural one, 1 where the metric changes no direction. The last columns are of the
study: seconds to its two goals over those of the best of the others, medians.

"""

console = Console(width=120)


@dataclass(frozen=True)
class Seen:
    """What is seen of a task, in the order of `HEADER`."""

    rank: float
    condition: float
    reaching: float
    trust: float
    alignment: float

    def cells(self) -> list[str]:
        """For a table."""
        return [
            f"{self.rank:.3f}",
            f"{self.condition:.0f}",
            f"{self.reaching:.0%}",
            f"{self.trust:.2f}",
            f"{self.alignment:.2f}",
        ]


def alignment(site: Site) -> float:
    """The cosine between the gradient `g` of a weight and its bias, and the natural `g G^-1`."""
    primes = site.prime_gradients()
    pair = primes[0], primes[1] if len(primes) > 1 else None
    root, spec = site.fisher.root_buffers, site.fisher.spec
    plain, natural = (
        torch.cat([part.flatten() for part in mapped(way, root, spec, *pair) if part is not None])
        for way in ("from_prime", "fold")
    )
    return float(plain @ natural / (plain.norm() * natural.norm()))


def watch(task: Task, steps: int) -> Seen:
    """Train, and look at the second half."""
    net = sngd.reconstruct(task.model(0))
    optimizer = SGD(net.parameters(), lr=SNGD.rates[0], momentum=0.9, nesterov=True)
    sites = distinct_sites(net)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sites}
    batches, recipe = task.batches(task.load(), 0), task.recipe(0.0)
    for step in range(steps):
        optimizer.zero_grad()
        recipe.loss(net, *next(batches)).backward()
        if step >= steps // 2 and step % EVERY == 0:
            values = sngd.metrics(net)
            for name, site in sites.items():
                of_layer = found[name]
                of_layer["rank"].append(values[f"{name}/effective_rank"] / site.fisher.size)
                of_layer["condition"].append(values[f"{name}/condition"])
                of_layer["trust"].append(values[f"{name}/trust"])
                reaches = values[f"{name}/norm"] > values[f"{name}/bound"]
                of_layer["reaching"].append(float(reaches))
                of_layer["alignment"].append(alignment(site))
        optimizer.step()
    total = sum(site.weight.numel() for site in sites.values())

    def mean(key: str, of: Callable[[list[float]], float] = statistics.median) -> float:
        return sum(
            of(found[name][key]) * site.weight.numel() / total for name, site in sites.items()
        )

    return Seen(
        mean("rank"),
        mean("condition"),
        mean("reaching", statistics.mean),
        mean("trust", lambda values: values[-1]),
        mean("alignment"),
    )


def gains(task: Task, folder: Path) -> list[str]:
    """Seconds to the goals of the study over the best of the others; "-" where it is not known."""
    path = folder / f"convergence_{task.name}.json"
    if not path.exists():
        return ["-", "-"]
    medians: dict[str, list[float]] = {}
    for one in json.loads(path.read_text())["contenders"]:
        reached = [[goal and goal["seconds"] for goal in run["goals"]] for run in one["runs"]]
        medians[one["contender"]] = [
            statistics.median(second or math.inf for second in seconds)
            for seconds in zip(*reached, strict=True)
        ] or [math.inf, math.inf]
    own = medians.pop(SNGD.name)
    best = [min(of_one[index] for of_one in medians.values()) for index in (0, 1)]
    return [
        f"{mine / other:.2f}" if mine < math.inf else "-"
        for mine, other in zip(own, best, strict=True)
    ]


def main(
    tasks: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=40, help="Of each.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the study and of the result.")] = RESULTS,
) -> None:
    """Show what explains the gain on each task."""
    limit_to_one_thread()
    rows = []
    for task in wanted(tasks):
        seen = watch(task, steps or task.steps)
        rows.append([task.name, *seen.cells(), *gains(task, output)])
        console.print(*rows[-1], sep="  ")
    table = "\n".join(table_lines(HEADER, rows))
    page = EXPLANATION.format(every=EVERY) + circumstances() + "\n\n" + table + "\n"
    (output / "why.md").write_text(page)
    console.print(f"Results: {output / 'why.md'}")


if __name__ == "__main__":
    typer.run(main)
