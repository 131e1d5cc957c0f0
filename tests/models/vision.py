"""Images: a residual network with BatchNorm and SGD, a vision transformer, a diffusion U-Net."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench.training import Workload

CLASSES, SIDE = 10, 16


class Images(Dataset):
    """64 images of noise, each with a class."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        return torch.randn(3, SIDE, SIDE, generator=draw), index % CLASSES


class Residual(nn.Module):
    """Two convolutions, each with BatchNorm, beside a shortcut (He et al. 2016)."""

    def __init__(self, width, wider):
        super().__init__()
        stride = 1 if width == wider else 2
        self.conv1 = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, wider, 1, 2, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, hidden):
        inner = functional.relu(self.bn1(self.conv1(hidden)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(hidden))


class ResNet(nn.Module):
    """ResNet-18's shape at an eighth of its width; its last layer is called `fc`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        widths = (8, 8, 8, 16, 16, 32, 32, 64, 64)
        self.layers = nn.ModuleList(map(Residual, widths, widths[1:]))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, images):
        hidden = functional.relu(self.stem(images))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.fc(hidden.mean((2, 3)))


def resnet(batch=16, rate=0.1, momentum=0.9):
    return Workload(
        model=ResNet,
        dataset=Images,
        loss=functional.cross_entropy,
        global_batch=batch,
        blocks=lambda model: list(model.layers),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=momentum),
    )
