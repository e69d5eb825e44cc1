"""ResNet against what is known of the published one, and deformable convolution against loops."""

import torch
import torch.nn.functional as F

from bevquant.models.deform import DeformConv2d
from bevquant.models.resnet import ResNet, ResNetConfig


def test_resnet50_is_the_published_network() -> None:
    config = ResNetConfig(depth=50, strides=(1, 2, 2, 2), out_indices=(0, 1, 2, 3))
    with torch.device("meta"):
        model = ResNet(config)
        maps = model(torch.empty(1, 3, 64, 96))
    # 25,557,032 parameters of the classifier's network less 2048 x 1000 + 1000 of its last layer.
    assert sum(p.numel() for p in model.parameters()) == 25_557_032 - 2_049_000
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, 16, 24),
        (512, 8, 12),
        (1024, 4, 6),
        (2048, 2, 3),
    ]
    assert config.out_channels == (256, 512, 1024, 2048)
    assert "layer4.2.conv3.weight" in model.state_dict()


def test_resnet18_adds_its_input() -> None:
    config = ResNetConfig(
        depth=18, in_channels=4, base_channels=8, strides=(1, 2), out_indices=(1,), pooled=False
    )
    torch.manual_seed(0)
    model = ResNet(config).eval()
    x = torch.randn(1, 4, 8, 8)
    y = F.relu(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2):
        for block in stage:
            inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(y)))))
            y = F.relu(inner + (block.downsample(y) if block.downsample is not None else y))
    torch.testing.assert_close(model(x), [y])


def test_deformable_convolution_reads_where_it_is_told() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(4, groups=2)
    x = torch.randn(1, 4, 5, 6)
    plain = F.conv2d(x, layer.conv.weight, padding=1, groups=2)
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)

    torch.nn.init.normal_(layer.conv_offset.bias)
    offset = layer.conv_offset.bias.detach().view(9, 2)
    expected = torch.zeros(1, 4, 5, 6)
    for v in range(5):
        for u in range(6):
            taps = torch.stack(
                [
                    sample(
                        x[0], v + tap // 3 - 1 + offset[tap, 0], u + tap % 3 - 1 + offset[tap, 1]
                    )
                    for tap in range(9)
                ],
                1,
            ).view(4, 3, 3)
            for channel in range(4):
                group = channel // 2 * 2
                kernel = layer.conv.weight[channel]
                expected[0, channel, v, u] = (kernel * taps[group : group + 2]).sum()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def sample(image: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return what lies at row v and column u of [C, H, W], between pixels and beyond the edge."""
    found = torch.zeros(len(image))
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            weight = max(0, 1 - abs(v - row)) * max(0, 1 - abs(u - column))
            found += weight * image[:, row, column]
    return found
