"""Speech, and images with text."""

from typing import Any

import torch
import transformers as hf

from zoo.case import ZooCase, tokens

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
WHISPER = {
    "vocab_size": 101,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 16,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def clip() -> torch.nn.Module:
    """CLIP with two small towers."""
    text = TOWER | {"vocab_size": 101, "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return hf.CLIPModel(config)


def speech() -> dict[str, Any]:
    """Transcribe spectrograms."""
    return {"input_features": torch.randn(2, 8, 40), "labels": tokens(2, 7)}


def pairs() -> dict[str, Any]:
    """Match texts with images."""
    images = torch.randn(3, 3, 16, 16)
    return {"input_ids": tokens(3, 9), "pixel_values": images, "return_loss": True}


MULTIMODAL = [
    ZooCase(
        "Whisper",
        lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER)),
        speech,
    ),
    ZooCase("CLIP", clip, pairs),
]
