"""A checkpoint that is folded without a network holds what the folded network holds."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, apart, batch, mlp, sgd, train, trained
from random_networks import LAYERS, WIDTH
from sngd_compile import ModelError
from sngd_compile.command.app import main
from sngd_compile.fisher.spec import FORMAT, FORMAT_ENTRY, LENGTH, TEXT
from sngd_compile.fold_checkpoint import save_tensors

pytestmark = pytest.mark.usefixtures("float64")

State = dict[str, Any]


def equal(state: State, net: nn.Module) -> None:
    expected = sngd.fold(net).state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        # Both round once, from float64.
        rtol = max(1e-12, torch.finfo(value.dtype).eps if value.is_floating_point() else 0)
        torch.testing.assert_close(state[key], value, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("config", FISHERS.values(), ids=FISHERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_state_of_the_folded_network(config, dtype):
    net = sngd.reconstruct(mlp().to(dtype), config)
    train(net, inputs=lambda step: batch(step).to(dtype))
    state = net.state_dict()
    kept = copy.deepcopy(state)
    equal(sngd.fold_checkpoint(state), net)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "tanh"])
def test_every_layer(name):
    torch.manual_seed(1)
    net = sngd.reconstruct(nn.Sequential(nn.Linear(WIDTH, WIDTH), LAYERS[name]()), EVERY_STEP)
    inputs = torch.randn(4, 3, WIDTH)
    train(net, inputs=lambda step: inputs * (1 + step / 9))
    equal(sngd.fold_checkpoint(net.state_dict()), net)


def test_a_bias_that_was_parted_and_a_network_that_never_trained():
    net = sngd.reconstruct(mlp(), EVERY_STEP)
    equal(sngd.fold_checkpoint(net.state_dict()), net)
    weights, biases = ([p for p in net.parameters() if p.dim() == dims] for dims in (2, 1))
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases}]
    train(net, torch.optim.SGD(groups, lr=0.03, momentum=0.9))
    assert net[0].weight_fisher.spec.is_bias_apart
    equal(sngd.fold_checkpoint(net.state_dict()), net)


def written(checkpoint: State, path: Any) -> Any:
    torch.save(checkpoint, path)
    return path


def in_folder(checkpoint: State, path: Any) -> Any:
    dcp.save(copy.deepcopy(checkpoint), checkpoint_id=path, no_dist=True)
    return path


def as_safetensors(checkpoint: State, path: Any) -> Any:
    safetensors = pytest.importorskip("safetensors.torch")
    path = path.with_suffix(".safetensors")
    safetensors.save_file(checkpoint["network"], path)
    return path


@pytest.mark.parametrize("write", [written, in_folder, as_safetensors])
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_every_format_of_files(write: Callable[[State, Any], Any], tmp_path):
    net = trained()
    optimizer = train(net)
    checkpoint = {"network": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    folded = sngd.fold_checkpoint(write(checkpoint, tmp_path / "checkpoint"))
    if "network" in folded:
        assert "optimizer" not in folded
        assert folded["epoch"] == 3
        folded = folded["network"]
    equal({key: folded[key] for key in sngd.fold(net).state_dict()}, net)
    assert len(folded) == 4


def test_states_at_any_depth_and_under_any_wrapper():
    net = trained()
    state = {f"module._orig_mod.{key}": value for key, value in net.state_dict().items()}
    given = {"lists": [{"a": state}, (net.state_dict(), sgd(net).state_dict())], "rate": 0.1}
    (first, (second,)) = sngd.fold_checkpoint(given)["lists"]
    equal(second, net)
    equal({key.removeprefix("module._orig_mod."): v for key, v in first["a"].items()}, net)
    assert sngd.fold_checkpoint({"rate": 0.1, "none": None}) == {"rate": 0.1, "none": None}


def test_ties_share_memory_and_folded_states_stay():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    net = trained(model)
    folded = sngd.fold_checkpoint(net.state_dict())
    equal(folded, net)
    assert folded["0.weight"].data_ptr() == folded["2.weight"].data_ptr()

    def save_pretrained() -> State:
        return net.state_dict()

    again = copy.deepcopy(model)
    again.load_state_dict(sngd.fold_checkpoint(save_pretrained()))
    assert apart(net, again) < 1e-10


def _write(entry: int, value: int) -> Callable[[Tensor], Any]:
    return lambda record: record.__setitem__(entry, value)


def _shorten(record: Tensor) -> None:
    record.resize_(2)


DAMAGE: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "newer": (f"format {FORMAT + 1}, of a newer", _write(FORMAT_ENTRY, FORMAT + 1)),
    "cut off": ("is damaged", _write(LENGTH, 20)),
    "overwritten": ("is damaged", _write(TEXT, 7)),
    "below zero": ("below 0", _write(0, -1)),
    "of two numbers": ("is no record", _shorten),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_refused_by_name(damage):
    state = trained().state_dict()
    reason, change_ = DAMAGE[damage]
    change_(state["2.weight_fisher._extra_state"])
    with pytest.raises(ModelError, match=rf"2\.weight: .*{reason}"):
        sngd.fold_checkpoint(state)


@pytest.mark.parametrize("damage", ["newer", "below zero", "of two numbers"])
def test_a_network_does_not_load_it_either(damage):
    net = trained()
    state, before = copy.deepcopy(net.state_dict()), copy.deepcopy(net)
    DAMAGE[damage][1](state["0.weight_fisher._extra_state"])
    with pytest.raises(ModelError, match=DAMAGE[damage][0]):
        net.load_state_dict(state)
    assert apart(net, before) == 0


@pytest.mark.parametrize("part", ["weight", "bias", "weight_fisher.root_buffers.inverse"])
def test_a_part_that_lacks_or_misfits_is_refused_by_name(part):
    state = dict(trained().state_dict())
    with pytest.raises(ModelError, match=r"2\.weight"):
        sngd.fold_checkpoint({**state, f"2.{part}": torch.ones(2, 9)})
    del state[f"2.{part}"]
    with pytest.raises(ModelError, match=rf"2\.weight: 2\.{part}.* is missing"):
        sngd.fold_checkpoint(state)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        sngd.fold_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ModelError, match="cannot be read"):
        sngd.fold_checkpoint(tmp_path / "text.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        sngd.fold_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="a list, no dictionary"):
        sngd.fold_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("name", ["folded.pt", "folded.safetensors"])
def test_the_command_line(tmp_path, capsys, name):
    net = trained()
    torch.save(net.state_dict(), tmp_path / "in.pt")
    assert main(["fold", str(tmp_path / "in.pt"), str(tmp_path / name)]) == 0
    assert "4 entries" in capsys.readouterr().out
    if name.endswith(".pt"):
        equal(torch.load(tmp_path / name), net)
    assert main(["fold", "none.pt", str(tmp_path / name)]) == 1
    assert capsys.readouterr().err == (
        "error: none.pt does not exist: give the file or the folder of a checkpoint\n"
    )


def test_entries_that_are_left_as_they_are_may_have_strides(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net = trained(nn.Sequential(nn.Flatten(), nn.Linear(5, 5)))
    folded = sngd.fold_checkpoint(net.state_dict())
    strided = {"image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_tensors(folded | strided, tmp_path / "out.safetensors")
    read = safetensors.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(read[key], value) for key, value in (folded | strided).items())
    with pytest.raises(ModelError, match=r"'epoch' of the checkpoint is none"):
        save_tensors(folded | {"epoch": 3}, tmp_path / "out.safetensors")


def test_ties_and_transposed_layouts_become_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), LAYERS["product"]())
    model[2].weight = model[0].weight
    model[3] = nn.Sequential(nn.Linear(5, WIDTH), model[3])
    net = trained(model)
    folded = sngd.fold_checkpoint(net.state_dict())
    assert all(value.is_contiguous() for value in folded.values())
    torch.save(net.state_dict(), tmp_path / "in.pt")
    assert main(["fold", str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 0
    read = safetensors.load_file(tmp_path / "out.safetensors")
    equal({key: read[key] for key in folded}, net)


def test_what_a_file_cannot_hold_is_an_error_of_one_line(tmp_path, capsys):
    torch.save({"network": trained().state_dict(), "epoch": 3}, tmp_path / "in.pt")
    assert main(["fold", str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 1
    assert "'network' of the checkpoint is none" in capsys.readouterr().err
    assert main(["fold", str(tmp_path / "in.pt"), str(tmp_path / "none" / "out.pt")]) == 1
    assert "none does not exist: make the folder" in capsys.readouterr().err


def test_it_is_a_command():
    command = [sys.executable, "-m", "sngd_compile", "fold", "--help"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "safetensors" in run.stdout
