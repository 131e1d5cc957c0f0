"""Images: a residual network with BatchNorm and SGD, a vision transformer, a diffusion U-Net."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from stepbench import Workload
from tests.models.gradients import adamw

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


class VisionTransformer(nn.Module):
    """Patches of 4 by 4, a class token, torch's own encoder layers (Dosovitskiy et al. 2021)."""

    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 1 + (SIDE // 4) ** 2, width) / 50)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        first = self.first.expand(len(images), -1, -1)
        hidden = torch.cat([first, patches], 1) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden)[:, 0])


def _of_images(model, **options):
    return Workload(
        **{
            "model": model,
            "dataset": Images,
            "loss": functional.cross_entropy,
            "blocks": lambda model: list(model.blocks),
            "optimizer": adamw,
            "global_batch": 8,
        }
        | options
    )


def vision_transformer():
    return _of_images(VisionTransformer)


class AtTime(nn.Module):
    """A convolution with GroupNorm that is told the time."""

    def __init__(self, width, wider):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, width), nn.Conv2d(width, wider, 3, padding=1)
        self.time = nn.Linear(16, wider)

    def forward(self, hidden, time):
        return self.conv(functional.silu(self.norm(hidden))) + self.time(time)[..., None, None]


class UNet(nn.Module):
    """Down, through and up again with a skip (Ho et al. 2020); draws time and noise itself."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks = nn.ModuleList([AtTime(8, 16), AtTime(16, 16), AtTime(24, 8)])
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)

    def forward(self, images):
        noise, time = torch.randn_like(images), torch.rand(len(images), device=images.device)
        share = torch.cos(time * torch.pi / 2)[:, None, None, None]
        waves = time[:, None] * 2.0 ** torch.arange(8, device=images.device)
        times = torch.cat([waves.sin(), waves.cos()], 1)
        high = self.enter(share * images + (1 - share**2).sqrt() * noise)
        down, through, up = self.blocks
        low = through(functional.avg_pool2d(down(high, times), 2), times)
        again = up(torch.cat([self.up(low), high], 1), times)
        return functional.mse_loss(self.leave(again), noise)


def diffusion():
    return _of_images(UNet, call=lambda model, images: model(images), loss=None)


class Bytes(Images):
    """As a decoder gives them: 0 to 255."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image * 64 + 128).clamp(0, 255).byte(), label


class OfBytes(VisionTransformer):
    """Scales its input by itself."""

    def forward(self, images):
        return super().forward(images.float() / 127.5 - 1)


def quantized_inputs():
    return _of_images(OfBytes, dataset=Bytes)
