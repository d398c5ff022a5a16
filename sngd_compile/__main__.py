"""The command line: `python -m sngd_compile fold CHECKPOINT FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from sngd_compile.errors import ModelError, SngdError
from sngd_compile.fold_checkpoint import fold_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 1 where it could not do what was asked."""
    parser = argparse.ArgumentParser(prog="sngd_compile", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fold = commands.add_parser("fold", help="write a training checkpoint with ordinary weights")
    fold.add_argument("checkpoint", type=Path, help="a file, or the folder of a distributed one")
    fold.add_argument("file", type=Path, help="what to write, a .safetensors file or another")
    given = parser.parse_args(arguments)
    try:
        _fold(given.checkpoint, given.file)
    except (SngdError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _fold(checkpoint: Path, file: Path) -> None:
    if not file.parent.is_dir():
        raise ModelError(f"{file.parent} does not exist: make the folder first")
    folded = fold_checkpoint(checkpoint)
    if file.suffix == ".safetensors":
        others = [key for key, value in folded.items() if not isinstance(value, torch.Tensor)]
        if others:
            raise ModelError(
                f"{file} would hold tensors alone, and {others[0]!r} of the checkpoint is none: "
                "write another kind of file, or fold the part that holds the network"
            )
        # Copies: the format takes no tensors that share memory, as tied ones do.
        tensors = {key: value.clone() for key, value in folded.items()}
        import_module("safetensors.torch").save_file(tensors, file)
    else:
        torch.save(folded, file)
    print(f"{file}: {len(folded)} entries")


if __name__ == "__main__":
    sys.exit(main())
