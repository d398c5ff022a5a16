"""Real architectures, small, with inputs and labels: what a reconstruction must not change."""

from zoo.case import ZooCase
from zoo.language import LANGUAGE
from zoo.multimodal import MULTIMODAL
from zoo.plain import PLAIN
from zoo.vision import VISION

ZOO: list[ZooCase] = [*LANGUAGE, *VISION, *MULTIMODAL, *PLAIN]

__all__ = ["ZOO", "ZooCase"]
