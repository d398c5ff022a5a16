"""Two processes on half of each batch walk the path of one process on all of it."""

import pytest
import torch

from distributed import run
from sngd_compile.training.sharding import PARTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights, rows and metrics of one process on whole batches."""
    ((expected,), _) = run("worker.py", "eager", 1, tmp_path_factory.mktemp("alone"))
    return expected


EXACT = [
    "eager",
    "compiled",
    "around",
    "backend",
    pytest.param("backend_around_own", marks=pytest.mark.nightly),
    "sharded",
    "sharded_layers",
    pytest.param("sharded_compiled", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("kind", EXACT)
def test_halves_of_a_batch_add_up(kind, alone, tmp_path):
    assert_same_walk(kind, alone, tmp_path)


@pytest.mark.parametrize("kind", ["kronecker", "sharded_kronecker"])
def test_gradients_of_outputs_add_up(kind, tmp_path):
    ((expected,), _) = run("worker.py", "kronecker", 1, tmp_path)
    assert_same_walk(kind, expected, tmp_path)


def assert_same_walk(kind, alone, folder):
    """Compare the weights of two processes with those of one."""
    expected, rows, numbers = alone
    found, errors = run("worker.py", kind, 2, folder)
    for weights, seen, measured in found:
        assert seen == rows
        assert measured == pytest.approx(numbers, rel=1e-9, abs=1e-12)
        for one, other in zip(weights, expected, strict=True):
            pair = [torch.tensor(values, dtype=torch.float64) for values in (one, other)]
            torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    assert "SngdWarning" not in errors


@pytest.mark.parametrize("kind", ["backend_around", "sharded_backend"])
def test_plain_gradients_are_warned_of_by_name(kind, tmp_path):
    found, errors = run("worker.py", kind, 2, tmp_path)
    assert [seen for _, seen, _ in found] == [[], []]
    assert "SngdWarning: 4 parameters compiled with backend='sngd' receive plain" in errors


ALREADY = (
    "0.weight is sharded already: fully_shard(reconstruct(model)). A weight that "
    "parallelize_module has cut, as tensor parallel does, cannot be reconstructed"
)


def test_what_cannot_be_sharded_is_refused(tmp_path):
    ((messages,), _) = run("refusals.py", "", 1, tmp_path)
    assert messages == {
        "reconstruct": ALREADY,
        "fold": (
            "0.weight is sharded: gather get_model_state_dict(net, options=StateDictOptions("
            "full_state_dict=True)) of torch.distributed.checkpoint.state_dict, load it into "
            "reconstruct(model) in one process, and fold that"
        ),
        "read": (
            "0.weight: .bias is read while its parts lie in several processes. A forward pass may "
            "read it; .bias_prime is the sharded w'"
        ),
        "colwise": f"0.weight: parallelize_module would cut this weight. {PARTS}",
        "rowwise": f"2.weight: parallelize_module would cut this weight. {PARTS}",
        "by hand": (
            "Linear.weight: its parts are (Replicate(),) on a mesh of 1 dimensions, as tensor "
            f"parallel gives them. {PARTS}"
        ),
        "cut before": ALREADY,
        "compiled stage": (
            "a compiled weight (6, 5) with fisher='kronecker': the schedule of this pipeline "
            "divides gradients by 2 afterwards, and gradients at outputs would count as if it did "
            "not. Nothing has been observed. Give the schedule scale_grads=False and divide the "
            "loss, or compile no stage"
        ),
        "stage": "nothing was refused",
    }
