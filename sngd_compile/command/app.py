"""The commands, each of them one verb of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from sngd_compile.command.bench import step_times
from sngd_compile.command.doctor import findings, text_of
from sngd_compile.command.targets import Target, batch, scalar_loss
from sngd_compile.errors import ModelError, SngdError, first_line, shown
from sngd_compile.explain import explain as explain_
from sngd_compile.explain import graph as graph_
from sngd_compile.explain import passes as passes_
from sngd_compile.fold_checkpoint import fold_checkpoint, save_tensors
from sngd_compile.reconstruct import reconstruct
from sngd_compile.verify import verify as verify_

app = typer.Typer(
    name="sngd-compile",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Natural gradient descent by rewriting the network. A command that takes MODULE:NAME "
    "imports that code and runs it.",
)

Factory = Annotated[
    str | None, typer.Argument(help="what makes the model: MODULE:NAME or FILE.py:NAME")
]
Transformers = Annotated[str | None, typer.Option(help="a model class of transformers instead")]
Setting = Annotated[list[str] | None, typer.Option("--config", help="its key=value, repeatedly")]
Json = Annotated[bool, typer.Option("--json", help="print data instead of a table")]
Inputs = Annotated[str | None, typer.Option(help="what makes one batch: MODULE:NAME")]
Loss = Annotated[str | None, typer.Option(help="from the output to a scalar: MODULE:NAME")]


class Order(StrEnum):
    """What the weights of a table are sorted by."""

    ORDER = "order"
    STATE = "state"
    STEP = "step"
    REFRESH = "refresh"


class Form(StrEnum):
    """How graphs are written."""

    TEXT = "text"
    DIFF = "diff"
    PYTHON = "python"
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="show tracebacks of errors")] = False,
) -> None:
    """Take what holds for all commands; `main` has looked for it."""


@app.command()
def explain(
    factory: Factory = None,
    transformers: Transformers = None,
    config: Setting = None,
    by: Annotated[Order, typer.Option(help="what weights are sorted by")] = Order.ORDER,
    as_json: Json = False,
) -> None:
    """Say what would happen to every parameter: its rule and cost, or why it is left."""
    found = explain_(Target(factory, transformers, config or ()).model(on_meta=True))
    if as_json:
        print(found.to_json(indent=2))
    elif sys.stdout.isatty():
        Console().print(found.table(by.value))
    else:
        print(found.text(by.value))


@app.command()
def graph(
    factory: Factory = None,
    transformers: Transformers = None,
    config: Setting = None,
    module: Annotated[str | None, typer.Option(help="name of one module")] = None,
    form: Annotated[Form, typer.Option("--format", help="how it is written")] = Form.TEXT,
) -> None:
    """Show the graphs of the reconstructed network."""
    model = Target(factory, transformers, config or ()).model(on_meta=True)
    graphs = graph_(reconstruct(model, inplace=True), module)
    forms = {
        Form.TEXT: graphs.__str__,
        Form.DIFF: graphs.difference,
        Form.PYTHON: graphs.python,
        Form.MERMAID: graphs.mermaid,
        Form.DOT: graphs.dot,
        Form.SVG: graphs.svg,
    }
    print(forms[form]())


@app.command()
def passes(
    factory: Factory = None,
    transformers: Transformers = None,
    config: Setting = None,
    as_json: Json = False,
) -> None:
    """List the passes: how many modules each changes, nodes before and after, time."""
    records = passes_(Target(factory, transformers, config or ()).model(on_meta=True))
    print(json.dumps([asdict(record) for record in records], indent=2) if as_json else records)


@app.command()
def report(
    factory: Factory = None,
    transformers: Transformers = None,
    config: Setting = None,
    out: Annotated[Path, typer.Option(help="the page that is written")] = Path("report.html"),
) -> None:
    """Write the report as a page of one file."""
    _in_folder(out)
    model = Target(factory, transformers, config or ()).model(on_meta=True)
    print(explain_(model).to_html(out))


@app.command()
def verify(
    factory: Factory = None,
    inputs: Inputs = None,
    loss: Loss = None,
    transformers: Transformers = None,
    config: Setting = None,
    as_json: Json = False,
) -> None:
    """Check the laws of the library on a model and a batch; exit code 1 where one fails."""
    model = Target(factory, transformers, config or ()).model()
    args, kwargs = batch(inputs, model)
    found = verify_(model, *args, loss=scalar_loss(loss), **kwargs)
    print(json.dumps([asdict(c) for c in found.checks], indent=2) if as_json else found)
    raise typer.Exit(found.exit_code)


@app.command()
def fold(
    checkpoint: Annotated[Path, typer.Argument(help="a file, or a distributed one's folder")],
    file: Annotated[Path, typer.Argument(help="what to write: a .safetensors file or another")],
    as_json: Json = False,
) -> None:
    """Write a training checkpoint with ordinary weights."""
    _in_folder(file)
    folded = fold_checkpoint(checkpoint)
    if file.suffix == ".safetensors":
        save_tensors(folded, file)
    else:
        torch.save(folded, file)
    said: Any = {"file": str(file), "entries": len(folded)}
    print(json.dumps(said) if as_json else f"{file}: {len(folded)} entries")


@app.command()
def bench(
    factory: Factory = None,
    inputs: Inputs = None,
    loss: Loss = None,
    transformers: Transformers = None,
    config: Setting = None,
    steps: Annotated[int, typer.Option(min=1, help="of each of the two")] = 200,
    as_json: Json = False,
) -> None:
    """Time a step of SGD on the model and on its reconstructed network."""
    model = Target(factory, transformers, config or ()).model()
    times = step_times(model, batch(inputs, model), scalar_loss(loss), steps)
    if as_json:
        print(json.dumps(times))
        return
    print(f"plain          {1e3 * times['plain']:.3g} ms a step")
    print(f"reconstructed  {1e3 * times['reconstructed']:.3g} ms a step")
    print(f"mean ratio     {times['mean_ratio']:.3g}, observed steps and refreshes included")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, which kernels would run, and what is missing."""
    found = findings()
    print(json.dumps(found, indent=2) if as_json else text_of(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 1 where it failed, 2 where it was called wrongly."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="sngd-compile")
    except SystemExit as end:
        # Code of the user's may end with a text, or with nothing for success.
        if isinstance(end.code, str):
            print(f"error: {shown(end.code)}", file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        if given[:1] == ["--debug"]:
            raise
        print(f"error: {_line_of(error)}", file=sys.stderr)
        return 1
    return 0


def _line_of(error: Exception) -> str:
    if isinstance(error, SngdError):
        return str(error)  # it says what to do
    # Code of the user's may raise anything.
    return f"{shown(first_line(error))} (sngd-compile --debug ... shows where)"


def _in_folder(file: Path) -> None:
    if not file.parent.is_dir():
        raise ModelError(f"{file.parent} does not exist: make the folder first")
