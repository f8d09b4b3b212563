"""A DefaultTrainer that can resume exactly and chooses the evaluators that a dataset needs."""

import logging
import os
import weakref
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from typing import Any
from unittest import mock

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, defaults, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn

from ..config import check_has_rambo
from ..data.mapper import ErrorReportingMapper
from ..evaluation.voc import VOCDetectionEvaluator, has_voc_annotations
from .checkpointer import AtomicCheckpointer
from .hooks import EarlyStop, SeedHook, training_hooks
from .keys import YAML
from .loader import ResumableLoader, train_loader
from .seeds import ORDER, run_seed, seeded
from .setup import check_best_metric


class RamboTrainer(DefaultTrainer):
    """DefaultTrainer with exact resume; computes COCO's metrics, and VOC's AP50 for VOC data.

    A run that is killed at any moment and resumed equals an uninterrupted run: random numbers and
    the order of the data depend only on ``cfg.SEED`` and the iteration. A run with SEED below 0
    draws a seed. To resume that run, set SEED to the drawn seed, as ``rambo-train --resume`` does.
    Another seed logs a warning. ``evaluations`` is the hook that keeps the best evaluation.
    """

    keys = YAML

    def __init__(self, cfg: CfgNode) -> None:
        check_has_rambo(cfg)
        # A subclass may have an evaluator whose metrics are known only after an evaluation.
        evaluator = getattr_static(self, "build_evaluator")
        own = evaluator is not vars(RamboTrainer)["build_evaluator"]
        check_best_metric(cfg, YAML, cfg.DATASETS.TEST, own)
        # Without device_ids, Detectron2 passes a GPU's number, which DDP refuses on a CPU.
        arguments = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        ddp = partial(create_ddp_model, **arguments)
        with mock.patch.object(defaults, "create_ddp_model", ddp):
            super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model: nn.Module = super().build_model(cfg)
        if cfg.RAMBO_TRAIN.CLS_WEIGHT != 1:
            model.register_forward_hook(partial(_weigh, cfg.RAMBO_TRAIN.CLS_WEIGHT))
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        seed = run_seed(cfg.SEED)
        with seeded(seed, ORDER):  # some samplers draw a seed themselves
            mapper = cls.train_mapper(cfg)
            arguments = build_detection_train_loader.from_config(cfg, mapper=mapper)
        return train_loader(seed=seed, **arguments)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = ErrorReportingMapper(cls.test_mapper(cfg))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """Evaluates as the stock method; with test-time augmentation if ``TEST.AUG.ENABLED``."""
        if cfg.TEST.AUG.ENABLED:
            model = GeneralizedRCNNWithTTA(cfg, model)
        return super().test(cfg, model, evaluators)

    @staticmethod
    def train_mapper(cfg: CfgNode) -> Any:
        """Returns the training mapper, which makes an augmented model input from a record."""
        return DatasetMapper(cfg)

    @staticmethod
    def test_mapper(cfg: CfgNode) -> Any:
        """Returns the test mapper, which makes an unaugmented model input from a record."""
        return DatasetMapper(cfg, is_train=False)

    def build_hooks(self) -> list[HookBase | None]:
        cfg, loader = self.cfg, self.data_loader
        # A subclass may use another loader.
        seed = loader.seed if isinstance(loader, ResumableLoader) else run_seed(cfg.SEED)
        self.checkpointer = AtomicCheckpointer(
            self.model, cfg.OUTPUT_DIR, seed=seed, trainer=weakref.proxy(self)
        )
        stock = super().build_hooks()
        writers = [w for h in stock if isinstance(h, hooks.PeriodicWriter) for w in h._writers]
        # Our hooks replace these stock hooks: every process must take part in a checkpoint.
        replaced = (hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter)
        stock = [hook for hook in stock if not isinstance(hook, replaced)]
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        ours = training_hooks(cfg, YAML, self.checkpointer, self.evaluate, writers, period=period)
        self.evaluations = ours[1]
        return [SeedHook(seed, loader), *stock, *ours]

    def evaluate(self) -> Any:
        """Evaluates on ``DATASETS.TEST``, in every process; returns metrics in the main process."""
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> Any:
        """Trains as the stock method; stops early according to ``RAMBO_TRAIN.PATIENCE``."""
        with suppress(EarlyStop):
            return super().train()

    def fit(self, resume: bool) -> dict[str, Any]:
        """Loads weights, trains, and returns the final metrics; {} except in the main process."""
        self.resume_or_load(resume=resume)
        self.train()
        results = getattr(self, "_last_eval_results", None)
        return dict(self.test(self.cfg, self.model) if results is None else results)

    def state_dict(self) -> dict[str, Any]:
        # v0.6 does not save its inner trainer: momentum and GradScaler's scale would be lost.
        return {"_trainer": self._trainer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "state_dict" not in vars(DefaultTrainer) and "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        coco = COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)
        evaluators: list[DatasetEvaluator] = [coco]
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if kind not in ("coco", "pascal_voc"):
            text = "%s has the evaluator_type %s, but only COCO's metrics are computed"
            logging.getLogger(__name__).warning(text, dataset_name, kind)
        if has_voc_annotations(dataset_name):
            evaluators.append(VOCDetectionEvaluator(dataset_name))
        return DatasetEvaluators(evaluators)


def _weigh(weight: float, model: nn.Module, inputs: Any, outputs: Any) -> Any:
    if not model.training:
        return outputs
    return {k: v * weight if k.startswith("loss_cls") else v for k, v in outputs.items()}
