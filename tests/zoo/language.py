"""Language models of `transformers`, built from small configurations."""

from typing import Any

import torch
import transformers as hf

from zoo.case import ZooCase, tokens

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 1}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 101, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
T5 = {"vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}


def causal() -> dict[str, Any]:
    """Predict the next token."""
    ids = tokens(2, 9)
    return {"input_ids": ids, "labels": ids}


def classify() -> dict[str, Any]:
    """Classify sequences."""
    return {"input_ids": tokens(2, 9), "labels": torch.randint(3, (2,))}


def translate() -> dict[str, Any]:
    """Map sequences to sequences."""
    return {"input_ids": tokens(2, 9), "labels": tokens(2, 7)}


LANGUAGE = [
    ZooCase(
        "GPT-2",
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)),
        causal,
    ),
    ZooCase("Llama", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), causal),
    ZooCase(
        "BERT",
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_labels=3)),
        classify,
    ),
    ZooCase(
        "T5",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
        translate,
    ),
    ZooCase(
        "Mamba",
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=501, hidden_size=64, num_hidden_layers=2, state_size=4)
        ),
        causal,
    ),
    ZooCase(
        "Mixtral",
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, **EXPERTS)),
        causal,
        dtype=torch.float32,  # the grouped product of the experts has no float64
    ),
]
