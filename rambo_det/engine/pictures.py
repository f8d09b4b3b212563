"""Pictures in TensorBoard: what a training is given, and what the detector makes of test images."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import detectron2.utils.comm as comm
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.structures import Instances

from ..evaluation.pictures import as_detections, draw_detections, grid
from .detector import needs_proposals


class Pictures(HookBase):
    """Puts image grids into the event storage, which Detectron2's TensorBoard writer writes.

    ``train/inputs``: images of a batch, augmented, with their boxes, at the first step of a process
    and at those after which there is an evaluation. ``DATA_SET/detections``: images spread over a
    test set, each twice, with its true boxes and with as many of its detections, the highest. A
    perfect ranking makes the two alike; no threshold is needed. A grid has ``RAMBO_TRAIN.IMAGES``
    images. Whoever evaluates calls :meth:`evaluated`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._number = cfg.RAMBO_TRAIN.IMAGES if comm.is_main_process() else 0
        self._handle: Any = None
        self._chosen: dict[str, list[dict[str, Any]]] = {}
        # Resizes as for a test, and yet tells the annotations.
        self._mapper = DatasetMapper(cfg, is_train=False)
        self._mapper.is_train = True

    def before_step(self) -> None:
        done, period = self.trainer.iter + 1, self._cfg.TEST.EVAL_PERIOD
        due = self.trainer.iter == self.trainer.start_iter or (period > 0 and done % period == 0)
        if due and self._number:
            self._handle = self.trainer.model.register_forward_pre_hook(self._put_inputs)

    def _put_inputs(self, _model: Any, args: tuple[list[dict[str, Any]]]) -> None:
        self._handle.remove()
        with self._never_in_the_way():
            metadata = MetadataCatalog.get(self._cfg.DATASETS.TRAIN[0])
            records = [record for record in args[0][: self._number] if "instances" in record]
            pictures = [
                self._draw(r["image"], as_detections(r["instances"]), metadata) for r in records
            ]
            self._put("train/inputs", pictures, 2)

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        """Within, an error ends the pictures of the run, and not the run."""
        try:
            yield
        except Exception:  # of whichever library draws
            self._number = 0
            logging.getLogger(__name__).exception("No more pictures in TensorBoard: drawing failed")

    def evaluated(self) -> None:
        """Draws what the model detects now."""
        model = getattr(self.trainer.model, "module", self.trainer.model)  # not DDP's
        if self._number and not needs_proposals(model):
            with self._never_in_the_way():
                for name in self._cfg.DATASETS.TEST:
                    self._put_detections(model, name)

    def _put_detections(self, model: Any, name: str) -> None:
        metadata = MetadataCatalog.get(name)
        if name not in self._chosen:
            records = DatasetCatalog.get(name)
            step = max(1, len(records) // self._number)
            self._chosen[name] = records[::step][: self._number]
        pictures = []
        for record in map(self._mapper, self._chosen[name]):
            image = record["image"]
            with inference_context(model), torch.no_grad():
                (output,) = model([{"image": image}])  # without a size: in px of its input
            if "instances" not in output or "instances" not in record:
                return  # neither a detector of objects nor a set of them
            truth, found = as_detections(record["instances"]), output["instances"].to("cpu")
            found = found[found.scores.argsort(descending=True)[: max(1, len(truth))]]
            pictures += [self._draw(image, boxes, metadata) for boxes in (truth, found)]
        self._put(f"{name}/detections", pictures, 4)

    def _draw(self, image: torch.Tensor, found: Instances, metadata: Metadata) -> np.ndarray:
        image = image.permute(1, 2, 0).clamp(0, 255)
        rgb = convert_image_to_rgb(image, self._cfg.INPUT.FORMAT)
        return draw_detections(np.ascontiguousarray(rgb, dtype=np.uint8), found, metadata)

    def _put(self, name: str, pictures: Sequence[np.ndarray], columns: int) -> None:
        if pictures:
            picture = grid(pictures, min(columns, len(pictures))).transpose(2, 0, 1)
            self.trainer.storage.put_image(name, picture)
