"""Vision models of `transformers`, built from small configurations."""

from typing import Any

import torch
import transformers as hf

from zoo.case import ZooCase

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def images(size: int) -> dict[str, Any]:
    """Classify images."""
    return {"pixel_values": torch.randn(3, 3, size, size), "labels": torch.randint(3, (3,))}


def small() -> dict[str, Any]:
    """Classify images of 16 x 16."""
    return images(16)


def large() -> dict[str, Any]:
    """Classify images of 32 x 32."""
    return images(32)


def resnet() -> torch.nn.Module:
    """A ResNet of bottleneck blocks."""
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=3, layer_type="basic"
    )
    return hf.ResNetForImageClassification(config)


def vit() -> torch.nn.Module:
    """A vision transformer on four patches."""
    config = hf.ViTConfig(**ENCODER, image_size=16, patch_size=8, num_labels=3)
    return hf.ViTForImageClassification(config)


def convnext() -> torch.nn.Module:
    """A ConvNeXt with layer scale and depthwise convolutions."""
    config = hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=3)
    return hf.ConvNextForImageClassification(config)


VISION = [
    ZooCase("ResNet", resnet, large),
    ZooCase("ViT", vit, small),
    ZooCase("ConvNeXt", convnext, large),
]
