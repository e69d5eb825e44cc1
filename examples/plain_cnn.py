"""A plain CNN: trained, quantized to mixed precision, exported, run by two engines.

    python examples/plain_cnn.py [FOLDER]

takes a few seconds on one core.
"""

import sys
from pathlib import Path

import torch
from stripes import DIRECTIONS, accuracy, stripes, train
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy import open_engine


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a convolution that halves the image, with normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class PlainCNN(nn.Module):
    """Four convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16)
        self.body = nn.Sequential(block(16, 32), block(32, 64), block(64, 64))
        self.head = nn.Linear(64, DIRECTIONS)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images [B, 1, 32, 32]."""
        logits: Tensor = self.head(self.body(self.stem(images)).mean((2, 3)))
        return logits


def main(out: Path) -> dict[str, float]:
    """Go the whole road; return the accuracy at each of its stations."""
    torch.manual_seed(0)
    model = PlainCNN()
    train(model, steps=120)
    images, labels = stripes(256, seed=10_000)
    found = {}
    with torch.no_grad():
        found["float"] = accuracy(model(images), labels)

        batches = list(images[:128].split(32))  # no labels
        bq.fold_batchnorm(model, batches[0])
        bq.quantize(model, bq.BitPolicy({"*": bq.W8A8, "body.*": bq.W4A8}))
        bq.calibrate(model, batches)
        bq.reconstruct(model, batches)
        found["simulated"] = accuracy(model(images), labels)

    file = out / "plain_cnn.onnx"
    size = bq.export(model, [images], file, recipe={"weights": "8 bits, 4 in the body"})
    print(f"{file}: {size.total:,} bytes, of which {size.weights:,} are weights")
    for verdict in bq.lint(file, "onnxruntime"):
        print(f"  on ONNX Runtime {verdict.layer}: {verdict.reason or 'integers'}")

    for engine in ("openvino", "onnxruntime"):
        network = open_engine(file, engine)
        (logits,) = network([images.numpy()])
        found[engine] = accuracy(torch.from_numpy(logits), labels)
        print(f"{engine}: {len(network.integer_layers)} of {len(network.precisions)} in integers")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples")
    for station, share in main(folder).items():
        print(f"{station:12} {share:.1%}")
