"""A trained detector that is given images one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ..config import add_rambo_config
from ..errors import InputError
from ..evaluation.pictures import class_metadata
from ..modeling.config_checks import resolve_rpn
from .checkpointer import load_whole_model
from .saved import SavedModel
from .setup import merge, pick_device
from .values import check_model


class Detector:
    """Resizes an image as for a test, and detects.

    Args:
        saved: config and weights, of this plugin or of Detectron2's own models.
        opts: ``KEY VALUE`` pairs that change a yaml config, ``KEY=VALUE`` a LazyConfig.
        classes: names of the classes; by default those that the training noted down or those of the
            config's data sets, if Detectron2 knows them.

    Attributes:
        metadata: of the classes.
        datasets: names of the data sets that the config evaluates on.

    Raises:
        InputError: the config is not one of a detector, the model needs proposals, or the weights
            are of another model.
    """

    def __init__(
        self, saved: SavedModel, opts: Sequence[str] = (), classes: Sequence[str] | None = None
    ) -> None:
        lazy = saved.is_lazy
        cfg = _lazy_config(saved.config, opts) if lazy else _yaml_config(saved.config, opts)
        parts = _lazy_parts(cfg) if lazy else _yaml_parts(cfg)
        self._model, augmentations, self._channels, train, self.datasets = parts
        if needs_proposals(self._model):
            raise InputError(
                f"{saved.config}: the model detects in proposals that are made beforehand "
                "(MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals), and an image has none"
            )
        self._augment = T.AugmentationList(augmentations)
        load_whole_model(self._model, saved.weights, saved.config)
        self._model.eval()
        self.metadata = _metadata(saved, classes, [*train, *self.datasets], _num_classes(cfg))

    def __call__(self, image: np.ndarray) -> Instances:
        """The detections, on the CPU, boxes in px of the image, the highest score first.

        Args:
            image: ``(H, W, 3)`` uint8, BGR as OpenCV reads it.
        """
        height, width = image.shape[:2]
        given = T.AugInput(image[:, :, ::-1] if self._channels == "RGB" else image)
        self._augment(given)
        tensor = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        with torch.no_grad():
            (output,) = self._model([{"image": tensor, "height": height, "width": width}])
        if "instances" not in output:
            raise InputError("the model detects no objects: it gives " + ", ".join(output))
        found = output["instances"].to("cpu")
        return found[found.scores.argsort(descending=True)]

    def category_id(self, index: int) -> int:
        """The category id of a class in COCO's terms: the data set's own, else counted from 1."""
        own = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        return {k: number for number, k in own.items()}.get(index, index + 1)


def needs_proposals(model: nn.Module) -> bool:
    """Whether the model makes none itself, and cannot detect in an image alone."""
    return getattr(model, "proposal_generator", model) is None


def _yaml_config(file: str, opts: Sequence[str]) -> CfgNode:
    cfg = get_cfg()
    add_rambo_config(cfg)
    merge(cfg, file, list(opts))
    pick_device(cfg)
    check_model(cfg)
    resolve_rpn(cfg)
    return cfg


def _yaml_parts(cfg: CfgNode) -> tuple[Any, ...]:
    augmentations = build_augmentation(cfg, is_train=False)
    datasets = cfg.DATASETS
    return build_model(cfg), augmentations, cfg.INPUT.FORMAT, datasets.TRAIN, datasets.TEST


def _lazy_config(file: str, opts: Sequence[str]) -> Any:
    cfg = LazyConfig.load(file)
    return LazyConfig.apply_overrides(cfg, list(opts)) if opts else cfg


def _lazy_parts(cfg: Any) -> tuple[Any, ...]:
    names = []
    for split in ("train", "test"):
        name = cfg.dataloader[split].dataset.names
        names.append([name] if isinstance(name, str) else list(name))
    device = cfg.train.device if torch.cuda.is_available() else "cpu"
    mapper = cfg.dataloader.test.mapper
    augmentations = [instantiate(x) for x in mapper.augmentations]
    return instantiate(cfg.model).to(device), augmentations, mapper.image_format, *names


def _num_classes(cfg: Any) -> int | None:
    """How many classes the config says that there are; None where it does not."""
    if isinstance(cfg, CfgNode):
        dense = "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
        return int((cfg.MODEL.RETINANET if dense else cfg.MODEL.ROI_HEADS).NUM_CLASSES)
    node = cfg.model.roi_heads if "roi_heads" in cfg.model else cfg.model
    return node.get("num_classes")


def _metadata(
    saved: SavedModel, classes: Sequence[str] | None, datasets: Sequence[str], number: int | None
) -> Metadata:
    if classes is not None:
        if number not in (None, len(classes)):
            raise InputError(f"--classes names {len(classes)} classes, the model has {number}")
        return class_metadata(classes)
    noted = saved.data.classes
    for name in datasets:
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else Metadata()
        names = list(metadata.get("thing_classes") or ())
        if names == noted if noted else len(names) == number:
            return metadata
    return class_metadata(noted or [f"class {k}" for k in range(number or 0)])
