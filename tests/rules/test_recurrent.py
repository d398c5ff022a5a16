"""LSTM, GRU, RNN and their cells obey the laws, and do what the plain layers do."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.utils.rnn import pack_padded_sequence

import sngd_compile as sngd
from laws import Case, every_law, factor_is_the_jacobians_moment
from laws.recurrence import run
from laws.subject import configuration
from laws.suite import close

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
LENGTHS = (4, 3, 3, 1)


class Outputs(nn.Module):
    """The outputs of a recurrent layer, of sequences in one of several forms."""

    def __init__(self, kind: type[nn.RNNBase], form: str = "", **options: object):
        super().__init__()
        self.layer, self.form = kind(2, 3, **options), form
        places = self.layer.num_layers * (1 + self.layer.bidirectional)
        wide = self.layer.proj_size or 3
        self.states = (torch.randn(places, 4, wide), torch.randn(places, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Run `x` `[T, N, K]`."""
        states = self.states if isinstance(self.layer, nn.LSTM) else self.states[0]
        if self.form == "packed":
            return self.layer(pack_padded_sequence(x, torch.tensor(LENGTHS)))[0].data
        if self.form == "packed states":
            return self.layer(pack_padded_sequence(x, torch.tensor(LENGTHS)), states)[0].data
        if self.form == "unbatched":
            return self.layer(x[:, 0])[0]
        if self.form == "states":
            return self.layer(x, states)[0]
        return self.layer(x)[0]


def rows_of(name: str, model: Outputs, x: Tensor) -> Tensor:
    """Find the rows of a weight by going through every sequence alone."""
    return written_out(model, x)[0][name]


def written_out(model: Outputs, x: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run the layer written out on the sequences of `x`."""
    x = x.detach()
    if model.form == "unbatched":
        sequences = [x[:, 0]]
    elif "packed" in model.form:
        sequences = [x[:length, n] for n, length in enumerate(LENGTHS)]
    else:
        sequences = list(x.unbind(0 if model.layer.batch_first else 1))
    return run(model.layer, sequences, model.states if "states" in model.form else None)


def case(weight: str, kind: type[nn.RNNBase], form: str = "", **options: object) -> Case:
    """Describe one weight of a layer."""
    words = " ".join(f"{name}={value}" for name, value in options.items())
    has_bias = options.get("bias", True) and "_hr_" not in weight
    return Case(
        name=f"{kind.__name__} {form} {words} {weight}",
        module=partial(Outputs, kind, form, **options),
        shape=(4, 4, 2),
        rows=partial(rows_of, weight),
        weight=f"layer.{weight}",
        bias=f"layer.{weight.replace('weight', 'bias')}" if has_bias else None,
    )


both = {"num_layers": 2, "bidirectional": True}
CASES = [
    case("weight_ih_l0", nn.LSTM),
    case("weight_hh_l0", nn.LSTM),
    case("weight_hh_l0", nn.GRU),
    case("weight_hh_l0", nn.RNN, nonlinearity="relu"),
    case("weight_ih_l0", nn.RNN, bias=False),
    case("weight_ih_l1_reverse", nn.LSTM, **both),
    case("weight_hh_l1_reverse", nn.LSTM, **both, batch_first=True),
    case("weight_hh_l0_reverse", nn.GRU, **both),
    case("weight_hh_l1", nn.RNN, **both, bias=False),
    case("weight_hh_l0", nn.LSTM, "packed"),
    case("weight_hh_l1_reverse", nn.LSTM, "packed states", **both),
    case("weight_ih_l1", nn.GRU, "packed", **both),
    case("weight_hh_l1_reverse", nn.GRU, "packed states", **both),
    case("weight_hh_l0", nn.LSTM, "unbatched"),
    case("weight_hh_l0", nn.RNN, "unbatched", bidirectional=True),
    case("weight_hh_l0_reverse", nn.LSTM, "states", bidirectional=True),
    case("weight_hh_l1", nn.GRU, "states", num_layers=2),
    case("weight_hh_l1", nn.LSTM, "states", proj_size=2, **both),
    case("weight_hr_l1_reverse", nn.LSTM, "packed states", proj_size=2, **both),
    case("weight_hr_l0", nn.LSTM, proj_size=2, bias=False),
]


@every_law(CASES, without=[factor_is_the_jacobians_moment])
def test_recurrent(laws):
    laws.check()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layer_written_out_is_the_layer(case):
    model, x = case.build(), case.input()
    outputs = written_out(model, x)[1]
    if "packed" in model.form:
        expected = torch.cat([torch.stack([o[t] for o in outputs if t < len(o)]) for t in range(4)])
    elif model.form == "unbatched":
        expected = outputs[0]
    else:
        expected = torch.stack(outputs, 0 if model.layer.batch_first else 1)
    close(model(x), expected)


class Unrolled(nn.Module):
    """A cell, step by step."""

    def __init__(self, kind: type[nn.RNNCellBase], **options: object):
        super().__init__()
        self.cell = kind(2, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Run `x` `[T, N, K]`."""
        state, made = None, []
        for now in x:
            state = self.cell(now, state)
            made.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(made)


def cell_rows(name: str, model: Unrolled, x: Tensor) -> Tensor:
    """Find the rows of a cell's weight."""
    if name == "weight_ih":
        return x.reshape(-1, 2)
    with torch.no_grad():
        made = model(x)
    return torch.cat([torch.zeros(1, *made.shape[1:]), made[:-1]]).reshape(-1, 3)


def cell_case(weight: str, kind: type[nn.RNNCellBase], **options: object) -> Case:
    """Describe one weight of a cell."""
    has_bias = options.get("bias", True)
    return Case(
        name=f"{kind.__name__} {options} {weight}",
        module=partial(Unrolled, kind, **options),
        shape=(4, 3, 2),
        rows=partial(cell_rows, weight),
        weight=f"cell.{weight}",
        bias=f"cell.{weight.replace('weight', 'bias')}" if has_bias else None,
    )


CELLS = [
    cell_case("weight_ih", nn.LSTMCell),
    cell_case("weight_hh", nn.LSTMCell),
    cell_case("weight_hh", nn.GRUCell),
    cell_case("weight_hh", nn.GRUCell, bias=False),
    cell_case("weight_hh", nn.RNNCell),
    cell_case("weight_hh", nn.RNNCell, nonlinearity="relu"),
]


@every_law(CELLS, without=[factor_is_the_jacobians_moment])
def test_cells(laws):
    laws.check()


@pytest.mark.parametrize("part", ["ih", "hh"])
def test_the_factor_is_that_of_the_jacobian_of_the_gates(part):
    """Law 6, with the states that met the weight held: gates are linear in it."""
    model, x = Outputs(nn.LSTM, "states"), torch.randn(4, 4, 2)
    net = sngd.reconstruct(model, configuration("cholesky"))
    net(x)
    factor = sngd.fisher_layers(sngd.refresh_(net))[f"layer.weight_{part}_l0"].factor
    layer, (rows, _) = model.layer, written_out(model, x)
    names = [f"{kind}_{part}_l0" for kind in ("weight", "bias")]
    parameters = [layer.get_parameter(name).detach() for name in names]

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        return (rows[f"weight_{part}_l0"] @ weight.T + bias)[:, 5]

    jacobians = jacrev(gate, argnums=(0, 1))(*parameters)
    jacobian = torch.cat([jacobians[0][:, 5], jacobians[1][:, 5:6]], 1)
    close(factor, jacobian.T @ jacobian / len(jacobian))
