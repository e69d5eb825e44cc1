"""A vision transformer whose attention is written in functions, not modules.

    python examples/vit.py [FOLDER]

One block calls ``scaled_dot_product_attention``, the other writes ``@`` and softmax; with a
batch to see them, ``quantize`` makes layers of these products too. Takes under a minute on
one core.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from stripes import DIRECTIONS, accuracy, stripes, train
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy import open_engine

WIDTH, HEADS, PATCH = 48, 3, 4


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, L, C] to tokens."""
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norms[1](x))
        return y


class ViT(nn.Module):
    """Patches, positions, two blocks, a linear head on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (32 // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(Block(fused=True), Block(fused=False))
        self.head = nn.Linear(WIDTH, DIRECTIONS)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images [B, 1, 32, 32]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def main(out: Path) -> dict[str, float]:
    """Go the whole road; return the accuracy at each of its stations."""
    torch.manual_seed(0)
    model = ViT()
    train(model, steps=150)
    images, labels = stripes(256, seed=10_000)
    found = {}
    with torch.no_grad():
        found["float"] = accuracy(model(images), labels)

        batches = list(images[:128].split(32))  # no labels
        bq.quantize(model, bq.W8A8, batch=batches[0])
        bq.calibrate(model, batches)
        found["simulated"] = accuracy(model(images), labels)
    for layer in bq.unquantized(model):
        print(f"  stays float: {layer.name} ({layer.kind}): {layer.reason}")

    for file in (out / "vit.onnx", out / "vit.json"):  # one file, and one for each child
        bq.export(model, [images], file)
        network = open_engine(file)
        (logits,) = network([images.numpy()])
        found[file.name] = accuracy(torch.from_numpy(logits), labels)
        print(f"{file}: {len(network.integer_layers)} of {len(network.precisions)} in integers")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples")
    for station, share in main(folder).items():
        print(f"{station:12} {share:.1%}")
