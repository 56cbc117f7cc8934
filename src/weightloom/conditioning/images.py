"""A support set to one vector a class, in label order: the mean and spread of learned image features.

The encoder is a small convolutional network trained beforehand as a prototypical network on training
tasks; it is cheap enough to run wherever a generator runs. Knows nothing of generators.

Shapes: B images, C classes, S examples a class, F features.
Source: prototypical networks, Snell et al. (arXiv 1703.05175), equations 1 and 2.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.errors import InputError, SpecError


class SupportEncoder(nn.Module):
    """Images (B, channels, height, width) to features (B, F); support sets to (C, 2F).

    Example:
        >>> encoder = SupportEncoder(features=32).eval()
        >>> encoder.describe(torch.zeros(5, 4, 3, 16, 16)).shape  # 5 classes, 4 examples each
        torch.Size([5, 64])
    """

    def __init__(self, *, channels: int = 3, features: int = 128, width: int = 48) -> None:
        """
        Raises:
            SpecError: a size that is no whole number above 0, or a width that is no multiple of 8.
        """
        super().__init__()
        if not all(type(size) is int and size > 0 for size in (channels, features, width)) or width % 8:
            raise SpecError(
                "an encoder of images needs whole numbers of channels and features, and a width that is a "
                f"multiple of 8, not {channels!r}, {features!r} and {width!r}"
            )
        self.channels, self.features, self.width = channels, features, width
        sizes = [channels, width, width, 2 * width, 2 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in sizes[1:])
        self.out = nn.Linear(2 * width * 4, features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, F) features; any height and width of at least 8."""
        x = images
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if number in (0, 1, 2):
                x = F.max_pool2d(x, 2)
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)  # (B, 2*width, 2, 2) -> (B, 8*width)
        return self.out(x)

    def describe(self, support: Tensor) -> Tensor:
        """(C, 2F): mean and standard deviation of every class's features; support (C, S, ch, h, w).

        Leading batch dimensions are kept: (..., C, S, ch, h, w) to (..., C, 2F).

        Raises:
            InputError: the images have another number of channels, or there are none.
        """
        if support.dim() < 5 or support.shape[-4] < 1:
            raise InputError(
                f"a support set is (classes, examples, channels, height, width), not {tuple(support.shape)}"
            )
        if support.shape[-3] != self.channels:
            raise InputError(
                f"the support set has {support.shape[-3]} channels, the encoder reads {self.channels}"
            )
        lead, count = support.shape[:-4], support.shape[-4]
        features = self(support.reshape(-1, *support.shape[-3:])).reshape(*lead, count, self.features)
        return torch.cat([features.mean(-2), features.std(-2, correction=0)], dim=-1)


def prototype_loss(
    encoder: SupportEncoder, support: Tensor, queries: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of nearest-prototype classification.

    support (C, S, ch, h, w); queries (B, ch, h, w); labels (B,) in 0 ... C-1.
    """
    prototypes = encoder.describe(support)[..., : encoder.features]  # (C, F)
    features = encoder(queries)  # (B, F)
    distance = torch.cdist(features, prototypes).square() / encoder.features**0.5
    return F.cross_entropy(-distance, labels), (distance.argmin(-1) == labels).float().mean()
