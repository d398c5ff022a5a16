"""Peft both ways: adapters that are reconstructed, and adapters on a reconstructed network."""

import copy
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

import sngd_compile as sngd
from api import EVERY_STEP, FISHERS, apart, batch, mlp, sgd, train
from integrations.language import gap, gpt, trainer_of
from sngd_compile.integrations.transformers import SngdCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("float64"),
    # Peft asks transformers by names that it has renamed.
    pytest.mark.filterwarnings("ignore:`.*` is deprecated and will be removed in v6:FutureWarning"),
]

CONFIG = EVERY_STEP.replace(refresh_every=3, early_refreshes=(2,))


def base() -> nn.Sequential:
    """Return the same model each time."""
    torch.manual_seed(0)
    return nn.Sequential(*mlp(), nn.Tanh(), nn.Linear(3, 2))


def with_lora(model: nn.Module, **options: Any) -> PeftModel:
    """Return a model with adapters at two layers, which no longer begin at zero."""
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": ["0", "2"], "modules_to_save": ["4"], **options}
    made = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return made


def trained(net: nn.Module, steps: int = 5) -> nn.Module:
    """Train what is not frozen."""
    train(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.05), steps=steps)
    return net


def test_adapters_descend_naturally():
    net = trained(sngd.reconstruct(with_lora(base()), CONFIG))
    wanted = [name for name, p in net.named_parameters() if p.requires_grad and "weight" in name]
    layers = sngd.fisher_layers(net)
    assert sorted(layers) == sorted(wanted)
    assert len([name for name in layers if "lora_" in name]) == 4
    assert sngd.verify(net, batch()).ok


# Where peft itself asks for a state, it takes Fisher layers for parts of adapters, and keeps them.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. .* LoRA tensor")
@pytest.mark.parametrize("fisher", ["shared", "kronecker"])
@pytest.mark.parametrize("way", ["saved", "handed", "given"])
def test_files_of_adapters_are_for_plain_models_and_training_goes_on(tmp_path, way, fisher):
    config = FISHERS[fisher]
    net = sngd.reconstruct(with_lora(base()), config)
    optimizer = train(net, sgd(net))
    plain = with_lora(base())
    resumed = sngd.reconstruct(with_lora(base()), config)
    if way == "given":
        state = copy.deepcopy(get_peft_model_state_dict(net))
        for model in (plain, resumed):
            set_peft_model_state_dict(model, state)
    else:
        handed = {"state_dict": net.state_dict()} if way == "handed" else {}
        net.save_pretrained(tmp_path, **handed)
        plain = PeftModel.from_pretrained(base(), tmp_path)
        resumed.load_adapter(tmp_path, "default", is_trainable=True)
    assert apart(plain, net) < 1e-12
    assert apart(resumed, net) < 1e-12
    if way != "handed":  # such a state has the keys of its own network, and peft takes no others
        again = sgd(resumed)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for one, its in ((net, optimizer), (resumed, again)):
            train(one, its, first=9)
        assert apart(resumed, net) < 1e-9


def test_merging_gives_the_ordinary_model():
    net = trained(sngd.reconstruct(with_lora(base()), CONFIG))
    merged = sngd.fold(net).merge_and_unload()
    assert apart(merged, net) < 1e-12
    assert apart(copy.deepcopy(net).merge_and_unload(), net) < 1e-12
    with net.disable_adapter():
        before = apart(net, base())
    assert before < 1e-12


def test_adapters_on_a_reconstructed_network_descend_plainly_and_are_said_to(tmp_path):
    network = trained(sngd.reconstruct(base(), CONFIG))
    plain, original = sngd.fold(network), sngd.fold(network)
    net, other = (with_lora(model, modules_to_save=None) for model in (network, plain))
    assert apart(net, other) < 1e-12
    trained(net)
    trained(other)
    assert apart(net, other) < 1e-12
    reasons = {skip.name: skip.reason for skip in sngd.explain(net).skips}
    added = [reason for name, reason in reasons.items() if "lora_" in name]
    assert len(added) == 4
    assert all("added after reconstruct" in reason for reason in added)
    net.save_pretrained(tmp_path)
    assert apart(PeftModel.from_pretrained(original, tmp_path), net) < 1e-12
    again = sngd.reconstruct(sngd.fold(net), CONFIG)  # what the reason says
    assert len([name for name in sngd.fisher_layers(again) if "lora_" in name]) == 4


def test_the_trainer_of_transformers_resumes_adapters(tmp_path):
    def run(checkpoint: str | None = None) -> nn.Module:
        torch.manual_seed(0)
        names = ["c_attn", "c_fc"]
        lora = LoraConfig(r=2, target_modules=names, fan_in_fan_out=True, task_type="CAUSAL_LM")
        net = sngd.reconstruct(get_peft_model(gpt(), lora), CONFIG)
        trainer = trainer_of(net, tmp_path, save_strategy="steps", save_steps=3, weight_decay=0.0)
        trainer.add_callback(SngdCallback(trainer))
        trainer.train(resume_from_checkpoint=checkpoint)
        return net

    whole = run()
    assert gap(whole, run(str(tmp_path / "checkpoint-3"))) < 1e-12
    plain = PeftModel.from_pretrained(gpt(), tmp_path / "sngd/folded")
    assert gap(whole, plain) < 1e-12


def test_what_an_override_left_is_told_apart_from_what_was_added():
    net = sngd.reconstruct(base(), CONFIG, overrides={"0.*": None})
    with_lora(net, target_modules=["2"], modules_to_save=None)
    net.requires_grad_(True)
    reasons = {skip.name: skip.reason for skip in sngd.explain(net).skips}
    assert reasons["0.weight"] == "left out by an override"
    assert "added after" in reasons["2.lora_A.default.weight"]


def test_vectors_that_scale_other_weights_outputs_are_left_with_a_reason():
    model = get_peft_model(base(), IA3Config(target_modules=["0", "2"], feedforward_modules=["2"]))
    net = sngd.reconstruct(model, CONFIG)
    reasons = {skip.name: skip.reason for skip in sngd.explain(net).skips}
    vectors = [reason for name, reason in reasons.items() if "ia3_" in name]
    assert len(vectors) == 2
    assert all("trains by plain gradient descent" in reason for reason in vectors)
    assert apart(trained(net), trained(model)) < 1e-12
