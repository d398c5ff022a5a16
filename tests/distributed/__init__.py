"""Programs that several processes run together."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def run(program: str, kind: str, size: int, folder: Path, seconds: int = 300) -> tuple[list, str]:
    """Run all processes; return what each printed, and what they said beside it."""
    # Only who runs an example finds them: libraries have modules of the same names.
    paths = [HERE.parent, *([EXAMPLES] if program == "killed.py" else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(map(str, paths))}
    commands = [
        [sys.executable, HERE / program, kind, str(rank), str(size), folder / f"{kind}{size}"]
        for rank in range(size)
    ]
    running = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=seconds) for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        assert process.returncode == 0, errors
    errors = "".join(said for _, said in printed)
    return [json.loads(output.splitlines()[-1]) for output, _ in printed], errors
