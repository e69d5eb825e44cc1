"""BEVFusion (Liu et al., ICRA 2023) as mmdetection3d builds it."""

from bevquant.data.frame import Batch, Boxes
from bevquant.models.bevfusion.config import BEVFusionConfig
from bevquant.models.bevfusion.decode import decode
from bevquant.models.bevfusion.encoder import BEVEncoder, NetworkInput
from bevquant.models.bevfusion.transfusion import HeadOutput, TransFusionHead


class BEVFusion(BEVEncoder):
    """Camera-LiDAR detector.

    :meth:`network` holds all layers; it is what gets quantized and exported.
    """

    config: BEVFusionConfig

    def __init__(self, config: BEVFusionConfig) -> None:
        super().__init__(config)
        self.bbox_head = TransFusionHead(sum(config.pts_neck.channels), config.bbox_head)

    def forward(self, batch: Batch) -> HeadOutput:
        """Run both halves."""
        return self.network(self.prepare(batch))

    def prepare(self, batch: Batch) -> NetworkInput:
        """Do everything that depends on where the points and cameras are."""
        return self.prepare_sensors(batch)

    def network(self, inputs: NetworkInput) -> HeadOutput:
        """Run the layers."""
        output: HeadOutput = self.bbox_head(self.refined(self.fused(inputs)))
        return output

    def decode(self, output: HeadOutput) -> list[Boxes]:
        """Turn raw predictions into boxes, one :class:`Boxes` per frame."""
        return decode(self.config.bbox_head, output)
