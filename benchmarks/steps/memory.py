"""Memory of the local Fisher layers: what `explain` prints against what the buffers take."""

from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import sngd_compile as sngd
from workloads import WORKLOADS


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one Fisher layer, and of the weight and bias that it belongs to."""

    name: str
    explained: int
    measured: int
    parameters: int


def fisher_memory(network: nn.Module) -> list[LayerMemory]:
    """The memory of every Fisher layer of a reconstructed network."""
    layers, sizes = sngd.fisher_layers(network), dict(network.named_parameters())
    return [
        LayerMemory(
            site.name,
            site.state_bytes,
            sum(buffer.nbytes for buffer in layers[site.name].buffers()),
            sum(sizes[name].nbytes for name in site.parameter_names),
        )
        for site in sngd.explain(network).sites
    ]


def memory_table(title: str, layers: list[LayerMemory]) -> Table:
    """One Fisher layer a row."""
    table = Table("weight", "explain, bytes", "buffers, bytes", "over the parameters", title=title)
    for layer in layers:
        ratio = f"{layer.measured / layer.parameters:.1f}"
        table.add_row(layer.name, f"{layer.explained:,}", f"{layer.measured:,}", ratio)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def main() -> None:
    """Print the memory of the Fisher layers; fail where explain is wrong."""
    right = True
    for workload in WORKLOADS:
        layers = fisher_memory(sngd.reconstruct(workload.model()))
        Console().print(memory_table(workload.name, layers))
        right = right and all(layer.explained == layer.measured for layer in layers)
    raise typer.Exit(0 if right else 1)


if __name__ == "__main__":
    typer.run(main)
