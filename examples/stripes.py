"""A task that a small network learns in seconds: which way do the stripes run?"""

import math

import torch
from torch import Tensor, nn

DIRECTIONS = 4


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images [count, 1, 32, 32] of stripes, and their directions [count]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(DIRECTIONS, (count,), generator=generator)
    angles = (labels * math.pi / DIRECTIONS).view(-1, 1, 1)
    phases = 6.3 * torch.rand(count, 1, 1, generator=generator)
    waves = 0.6 + 0.6 * torch.rand(count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.sin(waves * (x * angles.cos() + y * angles.sin()) + phases)
    noise = torch.randn(count, 32, 32, generator=generator)
    return (images + 0.9 * noise).unsqueeze(1), labels


def train(model: nn.Module, steps: int, seed: int = 0) -> None:
    """Train with Adam on fresh images in every step."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        images, labels = stripes(32, seed + 1 + step)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose direction was found."""
    return (logits.argmax(1) == labels).float().mean().item()
