"""Training and evaluation of a model that a LazyConfig describes."""

import argparse
import inspect
import os
import pydoc
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import detectron2.utils.comm as comm
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from omegaconf import OmegaConf
from torch import nn

from ..config import add_rambo_config
from ..data.mapper import ErrorReportingMapper
from ..data.shapes import register_shapes
from ..errors import InputError, one_line
from .checkpointer import AtomicCheckpointer
from .folder import set_last_checkpoint
from .hooks import EarlyStop, SeedHook, training_hooks
from .keys import LAZY, dataset_names, get_key, has_key, set_key
from .loader import train_loader
from .seeds import ORDER, run_seed, seeded
from .setup import check_amp, check_best_metric, check_num_classes, check_schedule, pick_device
from .user_code import import_user_code
from .user_data import check_calibration, check_masks_and_keypoints, register_data


def load_lazy_config(args: argparse.Namespace) -> Any:
    """Registers the datasets of the command line; returns the checked LazyConfig of the run.

    Raises InputError for any error in the config, its keys or the data.
    """
    register_shapes()  # the quickstart's configs name these datasets
    import_user_code(args.imports)
    needed = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
    cfg = read_lazy_config(args.config_file, args.opts, needed)
    set_last_checkpoint(cfg, LAZY, args)
    check_amp("train.amp.enabled=True", cfg.train.amp.enabled, LAZY.device, cfg.train.device)
    train, test = dataset_names(cfg, LAZY.train_sets), dataset_names(cfg, LAZY.test_sets)
    if len(test) > 1:
        raise InputError(f"{LAZY.test_sets} must be one dataset in a LazyConfig, not {test}")
    if test:  # COCOEvaluator takes a name, not a list
        set_key(cfg, LAZY.test_sets, test[0])
    classes, own_names = register_data(cfg, LAZY, args)
    heads = cfg.model.get("roi_heads", {})
    names = ("mask_head", "keypoint_head")
    needs = [f"model.roi_heads.{x} is set" if heads.get(x) is not None else "" for x in names]
    check_masks_and_keypoints(own_names, *needs)
    key = "model.roi_heads.num_classes" if heads else "model.num_classes"
    if classes is not None:
        set_key(cfg, key, len(classes))
    if not args.eval_only and has_key(cfg, key):  # a user's own model may have none
        check_num_classes(key, get_key(cfg, key), train)
    mapper = cfg.dataloader.train.get("mapper") or {}
    have_names = all(MetadataCatalog.get(name).get("keypoint_names") for name in train)
    if "keypoint_hflip_indices" in mapper and set(train) <= set(own_names) and have_names:
        # The config's own indices are those of COCO's person keypoints.
        mapper.keypoint_hflip_indices = create_keypoint_hflip_indices(train)
    if not args.eval_only:
        loader = cfg.dataloader.get("test")
        # A user's own test loader may name its dataset under another key.
        check_schedule(cfg, LAZY)
        own = _target(cfg.dataloader.get("evaluator")) is not COCOEvaluator
        check_best_metric(cfg, LAZY, [""] if loader and "dataset" not in loader else test, own)
        if cfg.train.calibrate != "off":
            LazyRun.test_mapper(cfg)
            check_calibration(cfg, LAZY)
    return cfg


def read_lazy_config(
    file: str, opts: Sequence[str] = (), needed: Sequence[str] = ("model", "dataloader", "train")
) -> Any:
    """Reads a LazyConfig and applies ``KEY=VALUE`` options; uses the CPU if there is no GPU.

    Raises InputError if the file fails to run or lacks a node in ``needed``, or a key is wrong.
    """
    try:
        with warnings.catch_warnings():
            # Detectron2's model zoo, which the configs use, imports pkg_resources.
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            try:
                cfg = LazyConfig.load(file)
            except Exception:
                # Detectron2 also writes a pickle if a run's config cannot be loaded from yaml.
                if not os.path.isfile(f"{file}.pkl"):
                    raise
                cfg = cloudpickle.loads(Path(f"{file}.pkl").read_bytes())
    except Exception as error:  # a LazyConfig is a program, which can raise any error
        steps = traceback.extract_tb(error.__traceback__)
        line = next((f", line {s.lineno}" for s in reversed(steps) if s.filename == file), "")
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"cannot load the LazyConfig {file}{line}: {why}") from error
    for node in needed:
        if node not in cfg:
            why = f"is not a LazyConfig of a training: it has no {node!r}"
            if "MODEL" in cfg:
                why = "is a yaml config, for tools/train_net.py"
            raise InputError(f"{file} {why}")
    _add_own_keys(cfg)
    for opt in opts:
        _override(cfg, opt)
    cfg.train.init_checkpoint = cfg.train.get("init_checkpoint") or ""  # None: random weights
    pick_device(cfg, LAZY, opts)
    return cfg


def _add_own_keys(cfg: Any) -> None:
    """Adds the keys of this package that ``train`` lacks, with their default values.

    A run without test data or evaluator has no evaluations, as in Detectron2.
    """
    defaults = CfgNode({"MODEL": CfgNode()})
    add_rambo_config(defaults)
    cfg.train.setdefault("seed", -1)
    for key in ("KEEP_BEST", "BEST_METRIC", "PATIENCE", "CALIBRATE"):
        cfg.train.setdefault(key.lower(), defaults.RAMBO_TRAIN[key])
    if not _has_evaluation(cfg):
        cfg.train.eval_period = 0
        cfg.dataloader.pop("evaluator", None)  # it may refer to the missing test data


def _has_evaluation(cfg: Any) -> bool:
    return None not in (cfg.dataloader.get("test"), cfg.dataloader.get("evaluator"))


def _override(cfg: Any, opt: str) -> None:
    key, equals, _ = opt.partition("=")
    if opt.startswith("--"):
        raise InputError(f"options come before the config keys: {opt}")
    if not equals:
        raise InputError(f"expected KEY=VALUE, got {opt!r}")
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    # A callable may accept arguments that the config does not list.
    if not OmegaConf.is_config(node) or not (
        key.startswith("model.")
        or leaf in node
        or (callable(target := _target(node)) and leaf in inspect.signature(target).parameters)
    ):
        raise InputError(f"unknown config key {key}")
    current = OmegaConf.select(cfg, key)
    try:
        LazyConfig.apply_overrides(cfg, [opt])
    except Exception as error:  # hydra's parser raises errors without a common type
        why = one_line(error)
        if "input" in why and "expecting" in why:  # it lists all words of its grammar
            why = "cannot be read: a list is KEY=[A,B]; a text with spaces needs quotes inside"
        raise InputError(f"{opt}: {why}") from error
    number = (int, float)
    if isinstance(current, number) and not isinstance(OmegaConf.select(cfg, key), number):
        raise InputError(f"{opt}: must be a number or a boolean, like the current value {current}")


def _target(node: Any) -> Any:
    """Returns the callable of a LazyConfig's node, whose config may have its name; else None."""
    target = node.get("_target_") if OmegaConf.is_dict(node) else None
    return pydoc.locate(target) if isinstance(target, str) else target


class LazyRun:
    """A run of Detectron2's trainers with the objects that a LazyConfig instantiates.

    ``cfg`` has ``model``, ``dataloader.{train,test,evaluator}``, ``optimizer``, ``lr_multiplier``
    and ``train``, as in Detectron2's ``configs/common``.

    Attributes:
        model: the model.
        trainer: Detectron2's trainer, set by :meth:`fit`.
        evaluations: the hook that evaluates and keeps the best evaluation, set by :meth:`fit`.
    """

    keys = LAZY

    def __init__(self, cfg: Any) -> None:
        _add_own_keys(cfg)
        self._cfg = cfg
        self.model = self.build_model(cfg)

    @staticmethod
    def build_model(cfg: Any) -> nn.Module:
        """Returns the model of a config, with new weights, on its device."""
        return instantiate(cfg.model).to(cfg.train.device)

    @classmethod
    def test(cls, cfg: Any, model: nn.Module) -> dict[str, Any]:
        """Returns the metrics of a model on the test dataset, by the evaluator's names."""
        data, names = cfg.dataloader, LAZY.test_sets
        is_empty = has_key(cfg, names) and not dataset_names(cfg, names)
        if is_empty or not _has_evaluation(cfg):
            return {}
        evaluator = instantiate(data.evaluator)
        loader = {key: data.test[key] for key in data.test}
        if loader.get("mapper") is not None:  # a user's own loader may have no mapper
            loader["mapper"] = ErrorReportingMapper(cls.test_mapper(cfg))
        return dict(inference_on_dataset(model, instantiate(loader), evaluator) or {})

    @staticmethod
    def test_mapper(cfg: Any) -> Any:
        """Returns the test mapper, without augmentation; raises InputError if there is none."""
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
        if mapper is None:
            raise InputError("dataloader.test.mapper is missing: it must prepare the test images")
        return instantiate(mapper)

    def fit(self, resume: bool) -> dict[str, Any]:
        """Trains up to ``train.max_iter``; returns the metrics at the end.

        Random numbers and the order of the data depend only on the seed ``train.seed`` (below 0: a
        random one) and the iteration. So a killed and resumed run equals an uninterrupted one. Only
        a loader other than ``build_detection_train_loader`` starts from the beginning.
        """
        cfg, train = self._cfg, self._cfg.train
        seed = run_seed(train.seed)
        cfg.optimizer.params.model = self.model
        optimizer = instantiate(cfg.optimizer)
        loader = self._loader(seed)
        ddp = train.ddp if train.device.startswith("cuda") else {**train.ddp, "device_ids": None}
        model = create_ddp_model(self.model, **ddp)
        trainer = (AMPTrainer if train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
        self.trainer = trainer
        checkpointer = AtomicCheckpointer(model, train.output_dir, seed=seed, trainer=trainer)
        writers = []
        if comm.is_main_process():
            writers = default_writers(train.output_dir, train.max_iter)
        evaluate = partial(self.test, cfg, model)
        periods = {"log_period": train.log_period, **train.checkpointer}
        ours = training_hooks(cfg, LAZY, checkpointer, evaluate, writers, **periods)
        self.evaluations = ours[1]
        schedule = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
        trainer.register_hooks([SeedHook(seed, loader), hooks.IterationTimer(), schedule, *ours])
        checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
        start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
        with suppress(EarlyStop):
            trainer.train(start, train.max_iter)
        results = self.evaluations.results
        return evaluate() if results is None else results

    def _loader(self, seed: int) -> Any:
        """Returns the training loader; a ResumableLoader in place of Detectron2's own loader."""
        node = self._cfg.dataloader.train
        if _target(node) in (build_detection_train_loader, train_loader):
            node.update(_target_=train_loader, seed=seed)
        with seeded(seed, ORDER):  # some samplers draw a seed themselves
            return instantiate(node)
