"""A trained detector that takes one image at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from ..data.register import registered_classes
from ..data.shapes import register_shapes
from ..errors import InputError
from .checkpointer import load_whole_model
from .keys import LAZY, YAML, dataset_names
from .lazy import LazyRun, read_lazy_config
from .saved_model import SavedModel
from .setup import check_model, read_config
from .user_code import import_user_code


class Detector:
    """A model with its weights, from a yaml config or a LazyConfig, and its class names.

    Args:
        saved: config and weights of a model of this plugin or of Detectron2.
        opts: changes of the config: ``KEY VALUE`` pairs for yaml, ``KEY=VALUE`` for a LazyConfig.
        classes: class names; by default those that the training saved, or those of the config's
            datasets if Detectron2 knows them.

    Attributes:
        model: the model, in evaluation mode.
        metadata: Detectron2's metadata of the classes.
        train_sets, datasets: names of the datasets that the config trains and evaluates on.
        mapper: converts a record of a dataset to an input of the model.

    Raises InputError if the model needs proposals or the weights belong to another model.
    """

    def __init__(
        self, saved: SavedModel, opts: Sequence[str] = (), classes: Sequence[str] | None = None
    ) -> None:
        register_shapes()  # the quickstart's models have the classes of these datasets
        import_user_code(saved.data.imports)
        if saved.is_lazy:
            keys, cfg = LAZY, read_lazy_config(saved.config, opts)
            self.model = LazyRun.build_model(cfg)
            self.mapper: Any = LazyRun.test_mapper(cfg)
            if not hasattr(self.mapper, "image_format"):
                problem = f"dataloader.test.mapper is a {type(self.mapper).__name__}"
                raise InputError(f"{problem}: derive it from detectron2.data.DatasetMapper")
        else:
            keys, cfg = YAML, read_config(saved.config, opts)
            check_model(cfg)
            self.model = build_model(cfg)
            self.mapper = DatasetMapper(cfg, is_train=False)
        if getattr(self.model, "proposal_generator", self.model) is None:
            key = "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals"
            need = f"the model needs precomputed proposals ({key})"
            raise InputError(f"{saved.config}: {need}, which this tool cannot supply")
        load_whole_model(self.model, saved.weights, saved.config)
        self.model.eval()
        self.train_sets = dataset_names(cfg, keys.train_sets)
        self.datasets = dataset_names(cfg, keys.test_sets)
        number = getattr(getattr(self.model, "roi_heads", self.model), "num_classes", None)
        self.metadata = _metadata(saved, classes, [*self.train_sets, *self.datasets], number)
        self._category_ids = category_ids(self.metadata)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Returns the detections in an image, ``(H, W, 3)`` uint8 BGR: on the CPU, with boxes in
        px of the image, the highest score first. Raises InputError if the model is no detector."""
        rgb = Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
        augmented = AugInput(convert_PIL_to_numpy(rgb, self.mapper.image_format))
        self.mapper.augmentations(augmented)
        pixels = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        (output,) = self.model([{"image": pixels, "height": height, "width": width}])
        if "instances" not in output:
            raise InputError(f"the model is not a detector: its outputs are {', '.join(output)}")
        instances = output["instances"].to("cpu")
        return instances[instances.scores.argsort(descending=True)]

    def category_id(self, index: int) -> int:
        """Returns a class's category id in COCO's terms: the dataset's own, else ``index + 1``."""
        return self._category_ids.get(index, index + 1)


def category_ids(metadata: Metadata) -> dict[int, int]:
    """Returns class index -> category id in the annotations of a dataset; {} if it has no ids."""
    indices = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    return {index: category_id for category_id, index in indices.items()}


def _metadata(
    saved: SavedModel, classes: Sequence[str] | None, datasets: Sequence[str], number: int | None
) -> Metadata:
    if classes is not None:
        if number not in (None, len(classes)):
            raise InputError(f"--classes names {len(classes)} classes, the model has {number}")
        return Metadata(thing_classes=list(classes))
    saved_classes = saved.data.classes
    for name in datasets:
        names = registered_classes(name)
        if names == saved_classes if saved_classes else len(names) == number:
            return MetadataCatalog.get(name)
    return Metadata(
        thing_classes=saved_classes or [f"class {k}" for k in range(number or 0)],
        has_names=bool(saved_classes) or not number,
    )
