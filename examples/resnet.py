"""ResNet-18 (He et al., 2016), written out."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a way round them."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.way_round = nn.Sequential()
        if stride != 1 or channels != wider:
            projection = nn.Conv2d(channels, wider, 1, stride, bias=False)
            self.way_round = nn.Sequential(projection, nn.BatchNorm2d(wider))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add both and rectify: `[N, channels, H, W]` to `[N, wider, H / stride, W / stride]`."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.way_round(inputs))


def resnet18(classes: int, width: int = 64) -> nn.Module:
    """Four stages of two blocks, each twice as wide as the one before; 64 is the usual width."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage in range(4):
        wider = width * 2**stage
        layers += [Block(channels, wider, 1 if stage == 0 else 2), Block(wider, wider, 1)]
        channels = wider
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
