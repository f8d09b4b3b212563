"""DefaultTrainer with the evaluators that a data set calls for."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from ..evaluation.voc import VOCDetectionEvaluator, has_voc_annotations


class RamboTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer; evaluates with COCO's metrics, VOC data with VOC's AP50 too."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        evaluators: list[DatasetEvaluator] = [COCOEvaluator(dataset_name, output_dir=folder)]
        if has_voc_annotations(dataset_name):
            evaluators.append(VOCDetectionEvaluator(dataset_name))
        return DatasetEvaluators(evaluators)
