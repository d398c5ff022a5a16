"""A cache folder that two processes share never serves the formula of an older version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, torch
sys.path.insert(0, {tests!r})
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
import sngd_compile.backend.natural_gradient as natural
import sngd_compile.fisher.reparameterise as reparameterise
from backend.compiled import SETTING, compiled, mlp, sample, train
import sngd_compile as sngd
from torch._dynamo.utils import counters

factor = {factor}
if factor != 1:  # another version of the library, whose gradients are twice as long
    plain = natural._times_inverse
    def twice(*arguments):
        weight, bias = plain(*arguments)
        return factor * weight, factor * bias
    natural._times_inverse = twice
model = mlp(5, 3)
net = compiled(model, "inductor") if {backend} else None
if net is None:
    net = torch.compile(sngd.reconstruct(model, SETTING), fullgraph=True)
train(net, lambda step: [sample((5,), step)], steps=2, lr=0.05 / factor)
hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
plain = model if {backend} else sngd.fold(net)._orig_mod
print(json.dumps([hits, [float(p.sum()) for p in plain.parameters()]]))
"""


def run(folder: Path, backend: bool, factor: int) -> tuple[int, list[float]]:
    """Train in a process of its own; return cache hits and sums of the weights."""
    program = PROGRAM.format(tests=str(ROOT / "tests"), backend=backend, factor=factor)
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        "TORCHINDUCTOR_VEC_ISA_OK": "1",  # or it compiles, into the empty folder, to find out
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits, sums = json.loads(done.stdout.splitlines()[-1])
    return hits, sums


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(True, id="backend", marks=pytest.mark.nightly),
        pytest.param(False, id="reconstruct", marks=pytest.mark.nightly),
    ],
)
def test_a_second_process_computes_the_same(tmp_path, backend):
    _, first = run(tmp_path, backend, 1)
    hits, second = run(tmp_path, backend, 1)
    assert hits > 0
    assert second == pytest.approx(first, rel=1e-12)


@pytest.mark.slow
def test_a_changed_formula_is_not_served_from_the_cache(tmp_path):
    _, first = run(tmp_path, True, 1)
    _, second = run(tmp_path, True, 2)  # with half the learning rate: the same path
    assert second == pytest.approx(first, rel=1e-12)
