"""The plan of a comparison: a run for every loss, dataset and seed, with all configs checked."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.register import registered_classes
from ..engine.arguments import parse_args, registered_names
from ..engine.folder import check_weights
from ..engine.keys import YAML
from ..engine.setup import build_config, flat_config, merged_config
from ..errors import InputError
from .specs import DataSpec, Variant, loss_opts

#: Config keys that do not identify a run: they set its folder and the hardware it uses.
_NO_SETTINGS = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")


@dataclass(frozen=True, eq=False)  # hashed by identity, as a dict key
class Run:
    """One training of a loss variant on a dataset with a seed."""

    data: str
    variant: str
    seed: int
    folder: Path  # its OUTPUT_DIR
    command: tuple[str, ...]  # without --resume
    settings: dict[str, Any]  # config key -> value, and data digests; together they identify a run

    @property
    def name(self) -> str:
        """The name of the run in messages."""
        return f"{self.data}, {self.variant}, seed {self.seed}"

    @property
    def iterations(self) -> int:
        """The number of training iterations."""
        return int(self.settings["SOLVER.MAX_ITER"])


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison."""

    variants: dict[str, Variant]  # by name; the first is the reference
    test_sets: dict[str, str]  # data name -> name of its test set in Detectron2's catalogs
    runs: list[Run]  # in execution order: everything with one seed, then the next seed
    num_test_images_in_train: dict[str, int]  # data name -> images in both; variants: the maximum


def make_plan(
    data: Sequence[DataSpec],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    opts: Sequence[str],
    out: Path,
) -> Plan:
    """Registers the datasets and checks the config of every run.

    ``opts`` are KEY VALUE … of all runs. A dataset's keys override them; a variant's override both.
    Raises InputError if a config, a key or the data are wrong.
    """
    plan = Plan({variant.name: variant for variant in variants}, {}, [], {})
    names = [item.name for item in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two datasets have the name {twice[0]}: rename one")
    cells: list[tuple[str, str, list[str], dict[str, Any]]] = []
    for item in data:
        common = [*item.arguments, "RAMBO_TRAIN.CALIBRATE", "train", *opts, *item.opts]
        classes: list[str] | None = None
        name = ""
        overlaps: dict[tuple[str, ...], int] = {}  # DATASETS.TRAIN -> its images in the test set
        for variant in variants:
            argv = [*common, *_variant_opts(common, variant)]
            args = parse_args(argv)
            for key, option in (("SEED", "--seeds"), ("OUTPUT_DIR", "--out")):
                if key in args.opts[::2]:
                    raise InputError(f"{key} is set per run: use {option} instead")
            cfg = build_config(args, classes)
            if cfg.MODEL.WEIGHTS:
                check_weights(YAML.weights, cfg.MODEL.WEIGHTS)
            if len(cfg.DATASETS.TEST) != 1:
                raise InputError(f"DATASETS.TEST must name one dataset, got {cfg.DATASETS.TEST}")
            if not name:  # first variant: the others share its datasets and classes
                name = item.name or cfg.DATASETS.TEST[0]
                plan.test_sets[name] = cfg.DATASETS.TEST[0]
                classes = next(map(registered_classes, registered_names(args)), None)
            elif cfg.DATASETS.TEST[0] != plan.test_sets[name]:
                raise InputError(
                    f"{variant.name}: DATASETS.TEST is {cfg.DATASETS.TEST[0]}, but the other "
                    f"variants use {plan.test_sets[name]}: all must be tested on the same data"
                )
            if cfg.SOLVER.REFERENCE_WORLD_SIZE:
                raise InputError("SOLVER.REFERENCE_WORLD_SIZE must be 0: it changes MAX_ITER")
            if (fit := cfg.RAMBO_TRAIN.CALIBRATE) in cfg.DATASETS.TEST:
                rule = "a test on images that the calibration was fitted to is worthless"
                raise InputError(f"RAMBO_TRAIN.CALIBRATE {fit}: {rule}: use train or other images")
            if (train := tuple(cfg.DATASETS.TRAIN)) not in overlaps:
                overlaps[train] = _num_test_images_in_train(cfg)
            cells.append((name, variant.name, argv, _settings(cfg)))
        plan.num_test_images_in_train[name] = max(overlaps.values())
    for seed in seeds:
        for name, variant_name, argv, settings in cells:
            folder = out / "runs" / name / variant_name / f"seed{seed}"
            command = (sys.executable, "-m", "rambo_det.cli.train", *argv,
                       "SEED", str(seed), "OUTPUT_DIR", str(folder))  # fmt: skip
            settings = {**settings, "SEED": seed}
            plan.runs.append(Run(name, variant_name, seed, folder, command, settings))
    return plan


def _variant_opts(argv: list[str], variant: Variant) -> list[str]:
    """Returns a variant's KEY VALUE list: its loss's keys, unless set by the user, then its own."""
    args = parse_args(argv)
    opts: list[str] = []
    for key, value in loss_opts(merged_config(args), variant.loss).items():
        if key.endswith((".NAME", ".META_ARCHITECTURE")) or key not in args.opts[::2]:
            opts += [key, value]
    return [*opts, *variant.opts]


def _settings(cfg: CfgNode) -> dict[str, Any]:
    settings = flat_settings(cfg)
    for key in _NO_SETTINGS:
        settings.pop(key)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        file = MetadataCatalog.get(name).get("json_file")
        if file and os.path.isfile(file):  # the file of the shapes may not exist yet
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            settings[f"data {name}"] = digest[:12]
    return settings


def flat_settings(cfg: CfgNode) -> dict[str, Any]:
    """Returns config key -> value, in the form of :attr:`Run.settings`."""
    # Goes through yaml, so that values equal those read back from a record: lists, not tuples.
    return flat_config(yaml.safe_load(cfg.dump()))


def _num_test_images_in_train(cfg: CfgNode) -> int:
    """Returns how many images of the test set are trained on too."""
    (test,) = cfg.DATASETS.TEST
    if test in cfg.DATASETS.TRAIN:
        return len(DatasetCatalog.get(test))
    return len(_images(test) & {file for name in cfg.DATASETS.TRAIN for file in _images(name)})


def _images(name: str) -> set[str]:
    """Returns the image files of a dataset; an empty set for shapes that are not drawn yet."""
    file = MetadataCatalog.get(name).get("json_file")
    if file and not os.path.isfile(file):
        return set()
    return {os.path.realpath(record["file_name"]) for record in DatasetCatalog.get(name)}
