"""A network with a layer for every verdict that an engine can have."""

import torch
from torch import Tensor, nn

import bevquant as bq
from bevquant.nn import MatMul


class Zoo(nn.Module):
    """Convolutions with and without a quantized reader, products, all bits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.residual = nn.Conv2d(8, 8, 3, padding=1)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.w2 = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 3, 1)
        self.tokens = TokenZoo()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.stem(image).relu()).relu()
        x = nn.functional.gelu(self.pointwise(x + self.residual(x)))
        x = torch.max_pool2d(self.up(x).relu(), 2)
        x = self.w2(self.down(x).clamp(0, 6))
        return self.tokens(x), self.last(x)


class TokenZoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(8, 8, 1)
        self.up1d = nn.ConvTranspose1d(8, 8, 2, 2)
        self.linear = nn.Linear(8, 8)
        self.scores = MatMul()
        self.w16 = nn.Linear(8, 8)
        self.a16 = nn.Linear(8, 8)
        self.w4 = nn.Linear(8, 8, bias=False)
        self.a4 = nn.Linear(8, 8)
        self.kept = nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up1d(self.conv1d(x.flatten(2)).relu()).transpose(1, 2)
        x = self.linear(x)
        x = self.scores(x, x.mT).softmax(-1) @ x
        x = self.a4(self.w4(self.a16(self.w16(x))))
        return self.out(self.kept(x))


def policy(rules: dict[str, bq.Precision | None]) -> bq.BitPolicy:
    """Return a policy whose names are those of layers, wherever they are."""
    return bq.BitPolicy({"*": bq.W8A8, **{f"*{name}": bits for name, bits in rules.items()}})


BITS = {
    "w16": bq.Precision(16, 8),
    "a16": bq.Precision(8, 16),
    "w4": bq.W4A8,
    "w2": bq.W2A8,
    "a4": bq.Precision(8, 4),
    "kept": None,
}


def zoo(rules: dict[str, bq.Precision | None], scheme: bq.Scheme) -> tuple[Zoo, Tensor]:
    """Return the network, quantized and calibrated, and an image."""
    torch.manual_seed(0)
    model, image = Zoo().eval(), torch.randn(2, 3, 8, 8)
    bq.quantize(model, policy(rules), scheme=scheme)
    bq.calibrate(model, [image])
    return model, image
