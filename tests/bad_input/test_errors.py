"""Wrong arguments and wrong inputs: a typed error that says what and where, or the plain one."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sngd_compile as sngd
from api import batch, mlp, trained
from sngd_compile import (
    AlreadyReconstructedError,
    Config,
    ConfigError,
    ModelError,
    SngdError,
    SngdWarning,
)

NOT_MODELS = [None, 3, "model", torch.zeros(2), nn.Linear, [nn.Linear(2, 2)], mlp().state_dict()]


@pytest.mark.parametrize("wrong", NOT_MODELS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "call",
    [sngd.reconstruct, sngd.explain, sngd.fold, sngd.fold_, sngd.refresh_],
    ids=lambda call: call.__name__,
)
def test_only_modules_are_models(call, wrong):
    with pytest.raises(ModelError, match=f"expected a torch.nn.Module, got {type(wrong).__name__}"):
        call(wrong)


@pytest.mark.parametrize("wrong", NOT_MODELS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", [sngd.graph, sngd.fisher_layers], ids=lambda call: call.__name__)
def test_only_modules_are_looked_into(call, wrong):
    with pytest.raises(ModelError, match=r"expected a torch.nn.Module"):
        call(wrong)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_is_not_reconstructed_twice(inplace):
    net = trained()
    with pytest.raises(AlreadyReconstructedError, match="0 is reconstructed already; fold first"):
        sngd.reconstruct(net, inplace=inplace)
    with pytest.raises(AlreadyReconstructedError, match=r"1\.0 is reconstructed already"):
        sngd.reconstruct(nn.Sequential(nn.Linear(5, 5), net))
    with pytest.raises(AlreadyReconstructedError, match="the model itself"):
        sngd.reconstruct(net[0])
    assert len(sngd.explain(sngd.reconstruct(sngd.fold(net))).sites) == 2


@pytest.mark.parametrize("config", [{}, "paper", Config, {"refresh_every": 3}, 5])
def test_only_a_config_configures(config):
    with pytest.raises(ConfigError, match="expected a Config"):
        sngd.reconstruct(mlp(), config)
    with pytest.raises(ConfigError, match="expected a Config"):
        sngd.explain(mlp(), config)


def test_the_errors_have_one_base():
    errors = [getattr(sngd, name) for name in sngd.__all__ if name.endswith("Error")]
    assert len(errors) >= 6
    assert all(issubclass(error, SngdError) for error in errors)
    assert issubclass(SngdWarning, UserWarning)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ModelError, TypeError)


WRONG_INPUTS = {
    "width": (nn.Linear(5, 3), batch(width=4)),
    "integers": (nn.Linear(5, 3), torch.ones(7, 5, dtype=torch.int64)),
    "booleans": (nn.Linear(5, 3), torch.ones(7, 5, dtype=torch.bool)),
    "dtype": (nn.Linear(5, 3), batch().double()),
    "bfloat16": (nn.Linear(5, 3), batch().bfloat16()),
    "scalar": (nn.Linear(5, 3), torch.tensor(1.0)),
    "list": (nn.Linear(5, 3), [[1.0] * 5]),
    "None": (nn.Linear(5, 3), None),
    "channels": (nn.Conv2d(3, 2, 3), torch.zeros(2, 4, 7, 7)),
    "dimensions": (nn.Conv2d(3, 2, 3), torch.zeros(2, 2, 3, 7, 7)),
    "small image": (nn.Conv2d(3, 2, 3), torch.zeros(2, 3, 2, 2)),
    "integer image": (nn.Conv1d(3, 2, 1), torch.zeros(2, 3, 2, dtype=torch.int32)),
    "groups": (nn.Conv1d(4, 4, 1, groups=2), torch.zeros(2, 3, 5)),
}


@pytest.mark.parametrize("kind", WRONG_INPUTS)
@pytest.mark.parametrize("mode", [True, False])
def test_wrong_inputs_raise_what_the_plain_layer_raises(kind, mode):
    model, x = WRONG_INPUTS[kind]
    net = sngd.reconstruct(model).train(mode)
    with pytest.raises(Exception) as expected:  # noqa: PT011
        model(x)
    with pytest.raises(type(expected.value)) as raised:
        net(x)
    assert type(raised.value) is type(expected.value)
    assert sngd.fisher_layers(net)["weight"].rows_seen == 0


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 1, 3, 5), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("outputs", [2, 40])
def test_linear_inputs_of_any_dimension(shape, outputs):
    model = nn.Linear(5, outputs)
    net = sngd.reconstruct(model)
    x = torch.randn(shape)
    torch.testing.assert_close(net(x), model(x))
    assert net.weight_fisher.rows_seen == x.numel() // 5


def test_inputs_that_are_not_contiguous():
    model = nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2))
    net = trained(model)
    plain = sngd.fold(net)
    x = batch(size=14).t().contiguous().t()[::2]
    torch.testing.assert_close(net(x), plain(x))
    expanded = batch(size=1).expand(6, 5)
    torch.testing.assert_close(net(expanded), plain(expanded))


def test_integer_weights_of_a_site_cannot_be_assigned():
    net = trained()
    with pytest.raises(ModelError, match="fold first, then reshape"):
        net[0].weight = nn.Parameter(torch.zeros(4, 6))
    with pytest.raises(ModelError, match="fold first"):
        net[0].bias = None
    with pytest.raises(TypeError, match="cannot assign"):
        net[0].weight = torch.zeros(4, 5)
    with pytest.raises(ModelError, match="fold first"):
        del net[0].weight
    assert net(batch()).shape == (7, 3)


def test_a_model_that_cannot_be_copied_says_what_to_do():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ModelError, match=r"Sequential cannot be copied.*inplace=True"):
        sngd.reconstruct(model)
    x = torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(sngd.reconstruct(model, inplace=True)(x), expected)
