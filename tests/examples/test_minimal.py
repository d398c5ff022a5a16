"""The smallest example runs as a script and learns."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal.py"


def test_minimal_example_prints_a_good_accuracy():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"not trained on: ([\d.]+)%", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 85
