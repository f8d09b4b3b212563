"""DefaultTrainer that can be killed and followed, with the evaluators that a data set calls for."""

import logging
import os
import weakref
from functools import partial
from typing import Any
from unittest import mock

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader

# What build_detection_train_loader makes of a config: the only way to its parts.
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, defaults, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils.events import EventWriter
from torch import nn

from ..data.mapper import NamingMapper
from ..evaluation.voc import VOCDetectionEvaluator, has_voc_annotations
from .checkpointer import AtomicCheckpointer, load_whole_model
from .files import drop_unfinished_line
from .hooks import SeededSteps, StoppedEarly, training_hooks
from .keys import YAML
from .loader import ResumableLoader, train_loader
from .seeds import ORDER, run_seed, seeded


class RamboTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer; evaluates with COCO's metrics, VOC data with VOC's AP50 too.

    A run that was killed, at whatever moment, and is resumed is the run that was not: what it draws
    and the order of its data follow from ``cfg.SEED`` and the iteration. A run whose SEED is below
    0 draws one: to go on with it, give the seed that it drew, as ``rambo-train --resume`` does; a
    warning says if another is given. ``evaluations`` is the hook that keeps the best evaluation.
    """

    keys = YAML

    def __init__(self, cfg: CfgNode) -> None:
        ddp = create_ddp_model
        if not cfg.MODEL.DEVICE.startswith("cuda"):
            # DefaultTrainer gives DistributedDataParallel the number of a GPU, which that refuses.
            ddp = partial(create_ddp_model, device_ids=None)
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
        with seeded(seed, ORDER):  # some samplers draw a seed of their own
            parts = _train_loader_from_config(cfg)
        return train_loader(parts.pop("dataset"), seed=seed, **parts)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=cls.test_mapper(cfg))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """As the stock method; on augmented images too where ``TEST.AUG.ENABLED`` says so."""
        if cfg.TEST.AUG.ENABLED:
            model = GeneralizedRCNNWithTTA(cfg, model)
        return super().test(cfg, model, evaluators)

    @staticmethod
    def test_mapper(cfg: CfgNode) -> Any:
        """What makes an input of the model from a record of a data set, without augmentation."""
        return NamingMapper(DatasetMapper(cfg, is_train=False))

    def build_hooks(self) -> list[HookBase | None]:
        cfg, loader = self.cfg, self.data_loader
        # A subclass may read its data through a loader of its own.
        seed = loader.seed if isinstance(loader, ResumableLoader) else run_seed(cfg.SEED)
        self.checkpointer = AtomicCheckpointer(
            self.model, cfg.OUTPUT_DIR, seed=seed, trainer=weakref.proxy(self)
        )
        stock = super().build_hooks()
        writing = [hook for hook in stock if isinstance(hook, hooks.PeriodicWriter)]
        writers = [writer for hook in writing for writer in hook._writers]
        # In place of the stock ones: a checkpoint is made by all processes together.
        replaced = (hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter)
        stock = [hook for hook in stock if not isinstance(hook, replaced)]
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        ours = training_hooks(cfg, YAML, self.checkpointer, self.evaluate, writers, period=period)
        self.evaluations = ours[1]
        return [SeededSteps(seed, loader), *stock, *ours]

    def evaluate(self) -> Any:
        """Metrics of the model as it is now on ``DATASETS.TEST``, in the main process.

        A collective.
        """
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def train(self) -> Any:
        """As the stock method; ends early if ``RAMBO_TRAIN.PATIENCE`` says so."""
        try:
            return super().train()
        except StoppedEarly as stopped:
            logging.getLogger(__name__).info("%s", stopped)
            return None

    def fit(self, resume: bool) -> dict[str, Any]:
        """Loads, trains, and returns the metrics at the end; {} but in the main process."""
        self.resume_or_load(resume=resume)
        self.train()
        results = getattr(self, "_last_eval_results", None)
        return dict(self.test(self.cfg, self.model) if results is None else results)

    @classmethod
    def evaluate_checkpoint(cls, cfg: CfgNode, file: str, config: str) -> dict[str, Any]:
        """Metrics of a checkpoint; InputError if it is not of the model of ``config``, a name."""
        model = cls.build_model(cfg)
        load_whole_model(model, file, config)
        return dict(cls.test(cfg, model))

    def state_dict(self) -> dict[str, Any]:
        # v0.6 saves nothing of its inner trainer: momentum and the GradScaler's scale are lost.
        return {"_trainer": self._trainer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "state_dict" not in vars(DefaultTrainer) and "_trainer" in state_dict:
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
