"""The command line: `python -m sngd_compile fold CHECKPOINT FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from sngd_compile.errors import SngdError
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
    except SngdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _fold(checkpoint: Path, file: Path) -> None:
    folded = fold_checkpoint(checkpoint)
    if file.suffix == ".safetensors":
        import_module("safetensors.torch").save_file(folded, file)
    else:
        torch.save(folded, file)
    print(f"{file}: {len(folded)} entries")


if __name__ == "__main__":
    sys.exit(main())
