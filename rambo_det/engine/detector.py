"""A trained detector that is given images one by one."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from torch import nn

from ..data.shapes import register_shapes
from ..errors import InputError
from ..evaluation.pictures import class_metadata
from ..modeling.config_checks import resolve_rpn
from .checkpointer import load_whole_model
from .keys import LAZY, YAML, names
from .saved import SavedModel
from .setup import merge, pick_device
from .user_code import import_user_code, new_config
from .values import check_model


class Detector(DefaultPredictor):
    """Detectron2's predictor for a yaml config or a LazyConfig, which names the classes too.

    Args:
        saved: config and weights, of this plugin or of Detectron2's own models.
        opts: ``KEY VALUE`` pairs that change a yaml config, ``KEY=VALUE`` a LazyConfig.
        classes: names of the classes; by default those that the training noted down or those of the
            config's data sets, if Detectron2 knows them.

    Attributes:
        metadata: of the classes.
        train_sets, datasets: names of the data sets that the config trains and evaluates on.
        mapper: makes an input of the model from a record of a data set.

    Raises InputError if the model is no detector, needs proposals, or the weights are of another.
    """

    def __init__(
        self, saved: SavedModel, opts: Sequence[str] = (), classes: Sequence[str] | None = None
    ) -> None:
        register_shapes()  # whose classes a run of the quickstart has
        import_user_code(saved.data.imports)
        if saved.is_lazy:
            cfg = self._from_lazy(saved.config, opts)
        else:
            cfg = new_config()
            merge(cfg, saved.config, list(opts))
            pick_device(cfg, YAML)
            check_model(cfg)
            resolve_rpn(cfg)
            cfg.MODEL.WEIGHTS = ""  # the checkpoint is loaded below, which has to fit
            self._is_gray = cfg.INPUT.FORMAT == "L"  # which the stock predictor does not know
            stock = cfg.clone()
            stock.INPUT.FORMAT = "BGR" if self._is_gray else cfg.INPUT.FORMAT
            super().__init__(stock)
            self.mapper = DatasetMapper(cfg, is_train=False)
        if needs_proposals(self.model):
            key = "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals"
            raise InputError(f"{saved.config}: needs proposals ({key}), and an image has none")
        load_whole_model(self.model, saved.weights, saved.config)
        self.model.eval()
        keys = LAZY if saved.is_lazy else YAML
        self.train_sets, self.datasets = names(cfg, keys.train), names(cfg, keys.test)
        number = getattr(getattr(self.model, "roi_heads", self.model), "num_classes", None)
        self.metadata = _metadata(saved, classes, [*self.train_sets, *self.datasets], number)

    def _from_lazy(self, file: str, opts: Sequence[str]) -> Any:
        cfg = LazyConfig.load(file)
        cfg = LazyConfig.apply_overrides(cfg, list(opts)) if opts else cfg
        self.cfg = get_cfg()  # of which the predictor reads the device alone
        self.cfg.MODEL.DEVICE = cfg.train.device
        pick_device(self.cfg, YAML)
        self.model = instantiate(cfg.model).to(self.cfg.MODEL.DEVICE)
        self.mapper = instantiate(cfg.dataloader.test.mapper)
        self.aug = instantiate(cfg.dataloader.test.mapper.augmentations[0])
        image_format = cfg.dataloader.test.mapper.image_format
        self._is_gray = image_format == "L"
        self.input_format = "BGR" if self._is_gray else image_format
        return cfg

    def __call__(self, image: np.ndarray) -> Instances:
        """The detections in an image, ``(H, W, 3)`` uint8 BGR as OpenCV reads it: on the CPU, boxes
        in px of it, the highest score first."""
        if self._is_gray:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
        output = super().__call__(image)
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
        there = list(metadata.get("thing_classes") or ())
        if there == noted if noted else len(there) == number:
            return metadata
    return class_metadata(noted or [f"class {k}" for k in range(number or 0)])
