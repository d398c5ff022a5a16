"""Programs that several processes run together."""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"

# Each program has a process of its own, forked from one that has done nothing but import.
fresh = multiprocessing.get_context("forkserver")
fresh.set_forkserver_preload(
    ["sngd_compile", "torch.distributed.checkpoint", "torch.distributed.pipelining"]
)


def be(program: str, arguments: list[str], output: Path) -> None:
    """Run a program as if it had been started, with what it prints and says in two files."""
    for descriptor, name in ((1, "printed"), (2, "said")):
        with output.with_suffix(f".{name}").open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = [program, *arguments]
    # Only who runs an example finds them: libraries have modules of the same names.
    sys.path[:0] = [str(HERE.parent), *([str(EXAMPLES)] if program == "killed.py" else [])]
    runpy.run_path(str(HERE / program), run_name="__main__")


def run(program: str, kind: str, size: int, folder: Path, seconds: int = 300) -> tuple[list, str]:
    """Run all processes; return what each printed, and what they said beside it."""
    meeting = folder / f"{kind}{size}"
    outputs = [folder / f"{kind}{size} {rank}" for rank in range(size)]
    running = [
        fresh.Process(target=be, args=(program, [kind, str(rank), str(size), str(meeting)], output))
        for rank, output in enumerate(outputs)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(seconds)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()  # who still waits for one that failed
    errors = "".join(output.with_suffix(".said").read_text() for output in outputs)
    assert codes == [0] * size, errors
    printed = [output.with_suffix(".printed").read_text() for output in outputs]
    return [json.loads(text.splitlines()[-1]) for text in printed], errors
