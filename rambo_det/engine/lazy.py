"""Training and evaluation of a model that a LazyConfig describes."""

from __future__ import annotations

import os
from typing import Any

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import inference_on_dataset

from ..errors import InputError


class LazyRun:
    """A run of Detectron2's trainers on what a LazyConfig instantiates.

    Args:
        cfg: with ``model``, ``dataloader.{train,test,evaluator}``, ``optimizer``,
            ``lr_multiplier`` and ``train``, as in Detectron2's ``configs/common``.

    Attributes:
        checkpoint: the file that holds the weights, once trained or evaluated.
        trainer: Detectron2's trainer, once trained.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._model = instantiate(cfg.model).to(cfg.train.device)
        self.checkpoint = ""

    def evaluate(self, model: Any = None) -> dict[str, Any]:
        """Metrics of the model on the test set, by the names of its evaluator."""
        data = self._cfg.dataloader
        evaluator = instantiate(data.evaluator)
        results = inference_on_dataset(model or self._model, instantiate(data.test), evaluator)
        return dict(results or {})

    def evaluate_checkpoint(self, file: str = "") -> dict[str, Any]:
        """:meth:`evaluate` with the weights in ``file``, by default the run's last checkpoint."""
        folder = self._cfg.train.output_dir
        checkpointer = DetectionCheckpointer(self._model, folder)
        if not file and not checkpointer.has_checkpoint():
            raise InputError(
                f"--eval-only: no checkpoint in train.output_dir {folder}: "
                "name one with train.init_checkpoint=FILE"
            )
        self.checkpoint = file or checkpointer.get_checkpoint_file()
        checkpointer.load(self.checkpoint)
        return self.evaluate()

    def train(self, resume: bool) -> dict[str, Any]:
        """Trains up to ``train.max_iter``; returns the metrics at the end."""
        cfg, train = self._cfg, self._cfg.train
        cfg.optimizer.params.model = self._model
        optimizer = instantiate(cfg.optimizer)
        loader = instantiate(cfg.dataloader.train)
        model = create_ddp_model(self._model, **train.ddp)
        trainer = (AMPTrainer if train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
        self.trainer = trainer
        checkpointer = DetectionCheckpointer(model, train.output_dir, trainer=trainer)
        results: dict[str, Any] = {}

        def evaluate() -> dict[str, Any]:
            results.clear()
            results.update(self.evaluate(model))
            return results

        main = comm.is_main_process()
        writers = default_writers(train.output_dir, train.max_iter) if main else []
        trainer.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer) if main else None,
                hooks.EvalHook(train.eval_period, evaluate),
                hooks.PeriodicWriter(writers, period=train.log_period) if main else None,
            ]
        )
        checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
        start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
        trainer.train(start, train.max_iter)
        self.checkpoint = os.path.join(train.output_dir, "model_final.pth")
        return results or evaluate()
