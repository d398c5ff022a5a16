"""Pictures in folders, one folder for each class, as ImageNet is laid out; decoded by Pillow."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from data import DataError

ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, between 0 and 1."""


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Pictures `[3, side, side]` of mean 0 and variance 1, about, and their classes.

    Args:
        folder: It holds a folder for each class; classes are numbered in the order of their names.
        side: Of the square that is cut out, in pixels.
        training: Whether to cut a random part of 8 to 100 % and mirror every second one, as is
            usual with ImageNet; otherwise the middle is cut, after the shorter side was scaled to
            `side * 8 / 7`.

    Raises:
        DataError: There is no class, or a class has no picture.
    """

    def __init__(self, folder: Path, side: int, training: bool) -> None:
        """List the files; none is opened."""
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected one with a folder for each class")
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.side, self.training = side, training
        self.files: list[tuple[Path, int]] = []
        for number, name in enumerate(self.classes):
            found = [p for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in ENDINGS]
            if not found:
                raise DataError(f"{folder / name}: no picture here ({', '.join(sorted(ENDINGS))})")
            self.files += [(path, number) for path in found]
        if not self.files:
            raise DataError(f"{folder}: no folder of a class in it")

    def __len__(self) -> int:
        """Pictures of all classes."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode one picture.

        Raises:
            DataError: The file is damaged, or no picture.
        """
        path, number = self.files[index]
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path}: not a picture that can be read ({error})") from error
        box = random_box(*picture.size) if self.training else middle(*picture.size)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        size = (self.side, self.side)
        cut = picture.resize(size, Image.Resampling.BILINEAR, box=edges, reducing_gap=2.0)
        if self.training and torch.rand(()) < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        return (pixels - mean) / deviation, number


def random_box(width: int, height: int) -> Box:
    """A random part of 8 to 100 % of the area, its sides at most as 3 to 4 or 4 to 3."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(0.08, 1))
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(torch.randint(width - wide + 1, ()))
            return Box(left, int(torch.randint(height - high + 1, ())), wide, high)
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def middle(width: int, height: int) -> Box:
    """The square in the middle that has 7/8 of the shorter side."""
    side = max(1, min(width, height) * 7 // 8)
    return Box((width - side) // 2, (height - side) // 2, side, side)
