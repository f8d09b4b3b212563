"""Training and evaluation of a model that a LazyConfig describes."""

from __future__ import annotations

import logging
import os
import pydoc
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import inference_on_dataset

from ..config import add_rambo_config
from ..data.mapper import NamingMapper
from ..errors import InputError
from .best import LAZY_KEYS, BestModel, StoppedEarly
from .checkpointer import AtomicCheckpointer, earlier_seed, last_checkpoint, load_whole_model
from .files import drop_unfinished_line
from .loader import train_loader
from .memories import CollectMemories
from .progress import ProgressBar
from .scalars import WriteEvaluations
from .seeds import ORDER, run_seed, seeded
from .steps import SeededSteps

_STOCK_LOADERS = (build_detection_train_loader, train_loader)


def settle_seed(cfg: Any, resume: bool) -> int:
    """Puts the run's seed, >= 0, into ``cfg.train.seed``; that of an earlier run comes first.

    To be called before Detectron2's ``default_setup``, which seeds what the model is made with and
    writes the config down.

    Raises:
        InputError: ``resume``, and the last checkpoint cannot be read.
    """
    earlier = None
    if comm.is_main_process():
        earlier = earlier_seed(cfg.train.output_dir, resume)
    cfg.train.seed = run_seed(cfg.train.get("seed", -1), earlier)
    return int(cfg.train.seed)


def own_keys() -> dict[str, Any]:
    """The keys of ``train`` that Detectron2's LazyConfigs do not have, and their defaults."""
    cfg = CfgNode({"MODEL": CfgNode()})
    add_rambo_config(cfg)
    node = cfg.RAMBO_TRAIN
    # A seed Detectron2 does know.
    return {
        "seed": -1, "keep_best": node.KEEP_BEST, "best_metric": node.BEST_METRIC,
        "patience": node.PATIENCE,
    }  # fmt: skip


class LazyRun:
    """A run of Detectron2's trainers on what a LazyConfig instantiates.

    Args:
        cfg: with ``model``, ``dataloader.{train,test,evaluator}``, ``optimizer``,
            ``lr_multiplier`` and ``train``, as in Detectron2's ``configs/common``; what is missing
            of :func:`own_keys` is set.

    Attributes:
        checkpoint: the file that holds the weights, once trained or evaluated.
        trainer: Detectron2's trainer, once trained.
        best: the hook that keeps the best evaluation; None where none is kept.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        for key, value in own_keys().items():
            cfg.train.setdefault(key, value)
        self._model = instantiate(cfg.model).to(cfg.train.device)
        self.checkpoint = ""
        self.best: BestModel | None = None

    def evaluate(self, model: Any = None) -> dict[str, Any]:
        """Metrics of the model on the test set, by the names of its evaluator."""
        data = self._cfg.dataloader
        evaluator = instantiate(data.evaluator)
        loader = {key: data.test[key] for key in data.test}
        if "mapper" in loader:  # a loader of the user's own may have none
            loader["mapper"] = NamingMapper(instantiate(loader["mapper"]))
        results = inference_on_dataset(model or self._model, instantiate(loader), evaluator)
        return dict(results or {})

    def evaluate_checkpoint(self, file: str = "") -> dict[str, Any]:
        """:meth:`evaluate` with the weights in ``file``, by default the run's last checkpoint."""
        folder = self._cfg.train.output_dir
        checkpoint = file or last_checkpoint(folder)
        if not checkpoint:
            raise InputError(
                f"--eval-only: no checkpoint in train.output_dir {folder}: "
                "name one with train.init_checkpoint=FILE"
            )
        self.checkpoint = str(checkpoint)
        load_whole_model(self._model, self.checkpoint, "the config")
        return self.evaluate()

    def train(self, resume: bool) -> dict[str, Any]:
        """Trains up to ``train.max_iter``; returns the metrics at the end.

        What is drawn and the order of the data follow from the seed, ``train.seed`` (absent or
        below 0: any), and the iteration: a run that was killed and is resumed is the one that was
        not. Only of a loader other than ``build_detection_train_loader`` the data start anew. It
        ends early if ``train.patience`` says so.

        Raises:
            InputError: ``resume``, and the last checkpoint cannot be read.
        """
        cfg, train = self._cfg, self._cfg.train
        main = comm.is_main_process()
        seed = settle_seed(cfg, resume)
        cfg.optimizer.params.model = self._model
        optimizer = instantiate(cfg.optimizer)
        loader = self._loader(seed)
        ddp = train.ddp if train.device.startswith("cuda") else {**train.ddp, "device_ids": None}
        model = create_ddp_model(self._model, **ddp)
        trainer = (AMPTrainer if train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
        self.trainer = trainer
        checkpointer = AtomicCheckpointer(model, train.output_dir, seed=seed, trainer=trainer)
        results: list[
            dict[str, Any]
        ] = []  # of every evaluation; empty dicts but in the main process

        def evaluate() -> dict[str, Any]:
            results.append(self.evaluate(model))
            progress.evaluated(results[-1])
            scalars.evaluated()
            if self.best is not None:
                self.best.evaluated(results[-1])
            return results[-1]

        if train.eval_period > 0 and (train.keep_best or train.patience):
            self.best = BestModel(
                train.best_metric, train.keep_best, train.patience, train.eval_period,
                checkpointer, evaluate, LAZY_KEYS,
            )  # fmt: skip

        progress = ProgressBar()
        writers = []
        if main:
            drop_unfinished_line(os.path.join(train.output_dir, "metrics.json"))
            writers = default_writers(train.output_dir, train.max_iter)
        scalars = WriteEvaluations(writers)
        trainer.register_hooks(
            [
                SeededSteps(seed, loader),
                CollectMemories(train.checkpointer.period, checkpointer),
                hooks.IterationTimer(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer) if main else None,
                hooks.EvalHook(train.eval_period, evaluate),
                hooks.PeriodicWriter(writers, period=train.log_period) if main else None,
                progress,
                scalars,
                self.best,
            ]
        )
        checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
        start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
        try:
            trainer.train(start, train.max_iter)
        except StoppedEarly as stopped:
            logging.getLogger(__name__).info("%s", stopped)
        self.checkpoint = os.path.join(train.output_dir, "model_final.pth")
        return results[-1] if results else self.evaluate(model)

    def _loader(self, seed: int) -> Any:
        """The training batches; those of Detectron2's own loader can be gone on with."""
        node = self._cfg.dataloader.train
        target = node.get("_target_")
        if (pydoc.locate(target) if isinstance(target, str) else target) in _STOCK_LOADERS:
            node.update(_target_=train_loader, seed=seed)
        else:
            logging.getLogger(__name__).warning(
                "dataloader.train is not build_detection_train_loader: --resume will start it anew"
            )
        with seeded(seed, ORDER):  # some samplers draw a seed of their own
            return instantiate(node)
