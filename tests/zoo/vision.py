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


def detr() -> torch.nn.Module:
    """A detection transformer on a frozen backbone."""
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    sides = ("encoder", "decoder")
    layers = {f"{side}_layers": 1 for side in sides} | {f"{side}_ffn_dim": 48 for side in sides}
    heads = {f"{side}_attention_heads": 2 for side in sides}
    config = hf.DetrConfig(
        backbone_config=backbone, d_model=32, num_queries=5, num_labels=3, **layers, **heads
    )
    return hf.DetrForObjectDetection(config)


def detect() -> dict[str, Any]:
    """Find one box in each image."""
    box = torch.tensor([[0.5, 0.4, 0.2, 0.3]])
    labels = [{"class_labels": torch.tensor([kind]), "boxes": box} for kind in (1, 2)]
    return {"pixel_values": torch.randn(2, 3, 32, 32), "labels": labels}


VISION = [
    ZooCase("ResNet", resnet, large),
    ZooCase("ViT", vit, small),
    ZooCase("ConvNeXt", convnext, large),
    ZooCase("DETR", detr, detect, dtype=torch.float32),  # its loss has no float64
]
