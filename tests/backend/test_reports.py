"""Nothing silent: who gets a natural gradient, who does not and why; states can be saved."""

import io
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sngd_compile as sngd
from backend.compiled import apart, compiled, mlp, pair, sample, train
from sngd_compile import ModelError, SngdWarning

pytestmark = pytest.mark.usefixtures("float64", "fresh")


class Halves(nn.Module):
    """One layer runs in a frame, the other where Dynamo is told not to look."""

    def __init__(self):
        super().__init__()
        self.seen, self.hidden = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 5]`."""
        return self.unseen(torch.tanh(self.seen(x)))

    @torch._dynamo.disable
    def unseen(self, x: Tensor) -> Tensor:
        """Run in eager."""
        return self.hidden(x)


class Odd(nn.Module):
    """A weight that enters a function no rule knows."""

    def __init__(self):
        super().__init__()
        self.layer, self.odd = nn.Linear(5, 3), nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Classify `[N, 5]`."""
        return self.layer(x) @ torch.linalg.matrix_exp(self.odd)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Halves, ["2 parameters", "hidden.weight, hidden.bias: no compiled frame"]),
        (
            Odd,
            [
                "1 parameters",
                "odd: another weight is computed from it by linalg_matrix_e",
                "test_reports.py:",
            ],
        ),
    ],
)
def test_plain_gradients_are_named_once(network, said):
    net = compiled(network())
    with pytest.warns(SngdWarning) as caught:
        train(net, lambda step: [sample((5,), step)], steps=3)
    assert len(caught) == 1
    assert all(text in str(caught[0].message) for text in said)
    printed = str(sngd.explain(net))
    left = [skip.name for skip in sngd.explain(net).skips]
    assert all(text.partition(":")[2] in printed for text in said[1:2])
    assert left == (["hidden.weight", "hidden.bias"] if network is Halves else ["odd"])


def test_a_model_of_which_dynamo_skips_all_is_named():
    model = mlp()
    model.forward = torch._dynamo.disable(model.forward)
    net = compiled(model)
    with pytest.warns(SngdWarning, match="4 parameters.*0.weight, .*2.bias: no compiled frame"):
        train(net, lambda step: [sample((5,), step)], steps=2)
    assert [site.name for site in sngd.explain(net).sites] == []


def test_explain_tells_rule_factor_and_bias():
    net = compiled(mlp())
    assert "no compiled frame" in str(sngd.explain(net))
    train(net, lambda step: [sample((5,), step)], steps=1)
    explained = sngd.explain(net)
    assert [site.parameter_names for site in explained.sites] == [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
    ]
    assert {site.rule for site in explained.sites} == {"linear"}
    assert explained.skips == []


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_run_goes_on_from_a_file(compile_first):
    model, net = pair(mlp())
    train(compiled(model), lambda step: [sample((5,), step)], steps=5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "sngd": sngd.state_dict(model)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = mlp()
    compiled_model = compiled(resumed, "aot_eager")
    resumed.load_state_dict(saved["model"])
    sngd.load_state_dict(compiled_model if compile_first else resumed, saved["sngd"])
    train(compiled_model, lambda step: [sample((5,), step)], steps=5, first=5)
    train(net, lambda step: [sample((5,), step)], steps=10)
    assert apart(resumed, net) < 1e-10


def test_a_state_of_another_model_is_refused():
    model = mlp()
    train(compiled(model), lambda step: [sample((5,), step)], steps=1)
    state = sngd.state_dict(model)
    with pytest.raises(ModelError, match=r"no parameter '2.weight'"):
        sngd.load_state_dict(nn.Sequential(nn.Linear(5, 6)), state)
    with pytest.raises(ModelError, match="shape"):
        sngd.load_state_dict(mlp(5, 7, 3), state)
    with pytest.raises(ModelError, match="reconstructed"):
        sngd.state_dict(sngd.reconstruct(model))


def test_other_options_for_the_same_parameter_are_named():
    model = nn.Sequential(nn.Linear(5, 3))
    train(compiled(model), lambda step: [sample((5,), step)], steps=1)
    other = torch.compile(model, backend="sngd", options={"inner_backend": "eager"})
    with pytest.warns(SngdWarning, match=r"0.weight: compiled a second time with other options"):
        other(sample((5,), 0)[0])


def test_a_term_of_the_loss_outside_a_frame_is_plain():
    model = nn.Sequential(nn.Linear(5, 3))
    net = compiled(model)
    train(net, lambda step: [sample((5,), step)], steps=2)
    model.zero_grad()
    F.mse_loss(model[0].weight, torch.zeros(3, 5), reduction="sum").backward()
    assert torch.equal(model[0].weight.grad, 2 * model[0].weight)


def test_debug_logs_show_what_each_pass_did(caplog):
    with caplog.at_level(logging.DEBUG, "sngd_compile"):
        compiled(mlp())(sample((5,), 0)[0])
    messages = [r.getMessage() for r in caplog.records if r.name == "sngd_compile"]
    assert [text.splitlines()[0] for text in messages if text.startswith("pass ")] == [
        "pass precondition_",
        "pass observe_",
    ]
    assert any("+ natural" in text and " = natural(" in text for text in messages)
    assert any("0.weight" in text and "linear" in text for text in messages)
