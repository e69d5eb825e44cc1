from torch import nn

from bevquant.nn import MatMul
from bevquant.quant.genes import thesis_genes
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import W8A8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_proj, self.out_proj = nn.Linear(4, 4), nn.Linear(4, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.line = nn.Conv1d(4, 4, 1)
        self.out_proj = nn.Linear(4, 4)
        self.product = MatMul()
        self.decoder = nn.ModuleDict({"attn": Attention()})


def test_genes_are_conv2d_linear_and_matmul_outside_of_attention_in_order_of_definition() -> None:
    model = Net()
    genes = ["conv", "out_proj", "product"]
    assert thesis_genes(model) == genes
    quantize(model, W8A8)
    assert thesis_genes(model) == genes
