"""SoftmaxRetinaNet: focal loss for the scores of a RamboRetinaNet, to compare the losses alone.

    rambo-compare --import examples/softmax_retinanet.py --config configs/retinanet_rambo.yaml \\
        --variant "focal_softmax=focal MODEL.META_ARCHITECTURE SoftmaxRetinaNet" \\
        --variant rambo=rambo
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from torch import Tensor

from rambo_det import RamboRetinaNet
from rambo_det.modeling.scores import add_background, log_odds


@META_ARCH_REGISTRY.register()
class SoftmaxRetinaNet(RamboRetinaNet):
    """A RetinaNet with focal loss that scores boxes by a softmax, as RamboRetinaNet does."""

    def losses(self, anchors: Any, pred_logits: list[Tensor], *inputs: Any) -> dict[str, Tensor]:
        """Returns the stock losses of the probabilities of the softmax."""
        logits = [log_odds(add_background(x.flatten(0, 1))).reshape(x.shape) for x in pred_logits]
        losses: dict[str, Tensor] = RetinaNet.losses(self, anchors, logits, *inputs)
        return losses

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "score": "log_odds"}  # with any MODEL.RAMBO.SCORE
