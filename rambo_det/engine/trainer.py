"""DefaultTrainer that can be killed and followed, with the evaluators that a data set calls for."""

from __future__ import annotations

import logging
import os
import weakref
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader

# What build_detection_train_loader makes of a config: the only way to its parts in v0.5 and later.
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils.events import EventWriter
from torch import nn

from ..data.mapper import NamingMapper
from ..evaluation.voc import VOCDetectionEvaluator, has_voc_annotations
from .best import BestModel, StoppedEarly
from .checkpointer import AtomicCheckpointer
from .ddp import distributed_on
from .files import drop_unfinished_line
from .loader import ResumableLoader, train_loader
from .memories import CollectMemories
from .pictures import Pictures
from .progress import ProgressBar
from .scalars import WriteEvaluations
from .seeds import ORDER, run_seed, seeded
from .steps import SeededSteps

#: v0.5 saves nothing of its inner trainer: momentum and the GradScaler's scale are lost there.
_FORGETS_OPTIMIZER = "state_dict" not in vars(DefaultTrainer)


class RamboTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer; evaluates with COCO's metrics, VOC data with VOC's AP50 too.

    A run that was killed, at whatever moment, and is resumed is the run that was not: what it draws
    and the order of its data follow from ``cfg.SEED`` and the iteration. A SEED below 0 is any: to
    go on with such a run give the one that it drew, as ``rambo-train --resume`` does; with another
    a warning says which that was.
    """

    def __init__(self, cfg: CfgNode) -> None:
        with distributed_on(cfg.MODEL.DEVICE):
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
        with seeded(seed, ORDER):  # some samplers draw a seed of their own
            parts = _train_loader_from_config(cfg)
        return train_loader(parts.pop("dataset"), seed=seed, **parts)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = NamingMapper(DatasetMapper(cfg, is_train=False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    def build_hooks(self) -> list[HookBase | None]:
        loader = self.data_loader
        # A subclass may read its data through a loader of its own.
        seed = loader.seed if isinstance(loader, ResumableLoader) else run_seed(self.cfg.SEED)
        self.checkpointer = AtomicCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, seed=seed, trainer=weakref.proxy(self)
        )
        collect = CollectMemories(self.cfg.SOLVER.CHECKPOINT_PERIOD, self.checkpointer)
        first = [SeededSteps(seed, loader), collect]
        self.pictures, self.progress = Pictures(self.cfg), ProgressBar()
        node, period = self.cfg.RAMBO_TRAIN, self.cfg.TEST.EVAL_PERIOD
        self.best = None
        if period > 0 and (node.KEEP_BEST or node.PATIENCE):
            self.best = BestModel(
                node.BEST_METRIC, node.KEEP_BEST, node.PATIENCE, period,
                checkpointer=self.checkpointer, evaluate=self.evaluate,
            )  # fmt: skip
        stock = [
            hooks.EvalHook(period, self.evaluate) if isinstance(hook, hooks.EvalHook) else hook
            for hook in super().build_hooks()
        ]
        periodic = [hook for hook in stock if isinstance(hook, hooks.PeriodicWriter)]
        self.scalars = WriteEvaluations([w for hook in periodic for w in hook._writers])
        return [*first, self.pictures, *stock, self.progress, self.scalars, self.best]

    def evaluate(self) -> Any:
        """Metrics of the model as it is now on ``DATASETS.TEST``; whoever follows the run is told.

        A collective; the metrics are in the main process.
        """
        self._last_eval_results = self.test(self.cfg, self.model)
        self.pictures.evaluated()
        self.progress.evaluated(self._last_eval_results)
        self.scalars.evaluated()
        if self.best is not None:
            self.best.evaluated(self._last_eval_results)
        return self._last_eval_results

    def train(self) -> Any:
        """As the stock method; ends early if ``RAMBO_TRAIN.PATIENCE`` says so."""
        try:
            return super().train()
        except StoppedEarly as stopped:
            logging.getLogger(__name__).info("%s", stopped)
            return None

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        if _FORGETS_OPTIMIZER:
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if _FORGETS_OPTIMIZER and "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    def build_writers(self) -> list[EventWriter]:
        drop_unfinished_line(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
        return super().build_writers()

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        coco = COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)
        evaluators: list[DatasetEvaluator] = [coco]
        if has_voc_annotations(dataset_name):
            evaluators.append(VOCDetectionEvaluator(dataset_name))
        return DatasetEvaluators(evaluators)


def _weigh(weight: float, model: nn.Module, inputs: Any, outputs: Any) -> Any:
    if not model.training:
        return outputs
    return {k: v * weight if k.startswith("loss_cls") else v for k, v in outputs.items()}
