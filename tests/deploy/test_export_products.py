"""Attention that networks write themselves, exported as the layers it was quantized as."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import quant_modules
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.spec import W8A8


class Block(nn.Module):
    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.spelling == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.spelling == "@":
            y = (q @ k.mT / 8**0.5).softmax(-1) @ v
        else:
            y = torch.einsum("bhls,bhsd->bhld", torch.einsum("bhld,bhsd->bhls", q, k).sigmoid(), v)
        return x + self.out(y.transpose(1, 2).flatten(2))


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


class ViT(nn.Module):
    """Whose root, too, multiplies activations."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(Block("sdpa"), Block("@"), Block("einsum"), TorchBlock())
        self.keys = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.patches(image).flatten(2).transpose(1, 2))
        return self.head((x @ self.keys(x).mT).softmax(-1) @ x)


def test_a_vit_computes_what_was_simulated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = ViT().eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        unquantized = model(image).numpy()
        quantize(model, W8A8, batch=image)
        calibrate(model, [image])
        products = {layer.name for layer in quant_modules(model) if not layer.kind.channel_axis}
        assert len(products) == 10
        floating = {"blocks.0.sdpa_0.mix", "blocks.1.matmul_0", "blocks.2.einsum_1"}
        apply(model, BitPolicy({"*": W8A8, **dict.fromkeys(floating)}))
        expected = model(image).numpy()
    path = tmp_path / "vit.onnx"
    export_module(model, [image], path)
    for name in ("literal", "openvino"):
        engine = open_engine(path, name)
        assert {k for k, bits in engine.precisions.items() if bits == "float"} == floating
        (y,) = engine([image.numpy()])
        # Roundings of inner activations may fall the other way in an engine.
        atol = (1e-5 if name == "literal" else 0.03) * np.abs(expected).max()
        np.testing.assert_allclose(y, expected, atol=atol)
    assert np.abs(expected - unquantized).max() > 1e-3
