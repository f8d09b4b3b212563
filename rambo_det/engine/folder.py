"""The folder of a run: reads what a training left there, and checks whether a run may start."""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import yaml
from detectron2.data import MetadataCatalog

from ..data.files import make_folder, printable
from ..data.source import PART_SUFFIXES
from ..errors import InputError
from .checkpointer import load_checkpoint, unreadable_checkpoint
from .keys import LAZY, YAML, Keys, dataset_names, get_key, set_key
from .run_data import has_only_own_data, read_data
from .seeds import run_seed
from .user_data import check_same_classes

logger = logging.getLogger(__name__)

#: Folders inside that of a run: for --eval-only, and for the evaluation of the calibrated scores.
EVALUATED_FOLDER, CALIBRATED_FOLDER = "evaluated", "calibrated"
#: Config keys that may not change when a run is resumed; the shapes of the weights do not show it.
_MODEL_KEYS = (
    "MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME", "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.RAMBO.SCORE", "MODEL.BACKBONE.FREEZE_AT",
)  # fmt: skip


def set_last_checkpoint(cfg: Any, keys: Keys, args: argparse.Namespace) -> None:
    """For --eval-only without weights: sets the weights to those of the run's last checkpoint.

    Weights of '' are none: a repeated command may have them for its training. Raises InputError if
    the run's folder has no checkpoint.
    """
    folder, is_given = get_key(cfg, keys.folder), keys.is_set(keys.weights, args.opts)
    if not args.eval_only or not folder or (is_given and get_key(cfg, keys.weights)):
        return
    file = last_checkpoint(folder)
    if file is None:
        option = f"{keys.weights}{keys.separator}FILE"
        raise InputError(f"--eval-only: no checkpoint in {keys.folder} {folder}: add {option}")
    set_key(cfg, keys.weights, str(file))


def prepare_run(cfg: Any, keys: Keys, args: argparse.Namespace) -> Path:
    """Sets the seed of a run in its config; creates the folder of a training.

    Every process must call this function. Raises InputError if something is missing, if the folder
    holds a run that would be overwritten, or if the run to resume has another model or classes.
    """
    if not get_key(cfg, keys.folder):
        raise InputError(f"{keys.folder} is empty: set an output folder")
    folder, weights = Path(get_key(cfg, keys.folder)), get_key(cfg, keys.weights)
    if args.eval_only:
        _check_classes("--eval-only", Path(weights).parent, dataset_names(cfg, keys.test_sets))
        _warn_of_trained_images(Path(weights).parent, dataset_names(cfg, keys.test_sets))
    elif args.resume:
        _check_classes("--resume", folder, dataset_names(cfg, keys.train_sets)[:1])
        _warn_of_trained_images(folder, dataset_names(cfg, keys.test_sets))
        _check_model(folder, cfg, keys)
    if weights and not args.resume:
        check_weights(keys.weights, weights)
    main = comm.is_main_process()
    # A resumed run keeps its seed unless the command line gives another seed.
    is_given = keys.is_set(keys.seed, args.opts)
    earlier = saved_seed(folder) if args.resume and main else None
    set_key(cfg, keys.seed, run_seed(get_key(cfg, keys.seed), None if is_given else earlier))
    if main and not args.eval_only:
        prepare_folder(folder, args.resume, args.fresh, keys)
        config = folder / "config.yaml"
        problem = f"the run would overwrite {config}, which is"
        if not args.resume and config.is_file() and config.samefile(args.config_file):
            raise InputError(f"{problem} the file of --config: use another {keys.folder}")
        # The first key of Detectron2's files is there even if a kill left half a file.
        of_a_run = ("CUDNN_BENCHMARK", YAML.folder, LAZY.folder)
        is_foreign = all(saved_config_value(folder, key) is None for key in of_a_run)
        if config.is_file() and is_foreign and not (folder / "last_checkpoint").is_file():
            raise InputError(f"{problem} no config of a run: use another {keys.folder}")
    comm.synchronize()
    return folder


def check_weights(option: str, weights: str) -> None:
    """Raises InputError, naming the option, unless ``weights`` is a URL or an existing file."""
    if "://" not in weights and not os.path.isfile(weights):
        raise InputError(f"{option} {weights}: no such file")


def _check_classes(option: str, folder: Path, data: Sequence[str]) -> None:
    for name in data:
        check_same_classes(option, name, f"the run in {folder}", read_data(folder).classes)


def _warn_of_trained_images(folder: Path, test: Sequence[str]) -> None:
    """Warns of images that --split sets aside now, but did not when the run in the folder began."""
    parts = read_data(folder).parts
    for metadata in map(MetadataCatalog.get, test):
        trained = set(parts.get(f"{metadata.get('part_of')}{PART_SUFFIXES[0]}", ()))
        if trained:
            images = json.loads(Path(metadata.json_file).read_text("utf-8"))["images"]
            both = [image["file_name"] for image in images if image["file_name"] in trained]
            if both:
                logger.warning(
                    "%s: the run in %s was trained on %d of %d images, for example %s: the AP on "
                    "these images is too optimistic. Were images added, or was --split changed?",
                    metadata.name, folder, len(both), len(images), printable(both[0]),
                )  # fmt: skip


def _check_model(folder: Path, cfg: Any, keys: Keys) -> None:
    """Raises InputError unless a yaml config has the same model as the run in the folder."""
    for key in _MODEL_KEYS if keys is YAML else ():
        saved, value = saved_config_value(folder, key), get_key(cfg, key)
        if saved is not None and saved != str(value):
            raise InputError(f"--resume: {key} is {value!r}, but {saved!r} in the run in {folder}")
    saved = saved_config_value(folder, keys.rate)
    with suppress(ValueError, KeyError):  # a LazyConfig may refer to another key, or lack this one
        if saved is not None and float(saved) != (rate := get_key(cfg, keys.rate)):
            logger.warning("%s %g is ignored: the resumed run keeps %s", keys.rate, rate, saved)


def prepare_folder(folder: Path, resume: bool, fresh: bool, keys: Keys) -> None:
    """Creates the folder of a run, and makes sure that no other run is overwritten.

    With ``fresh`` an earlier run is renamed. Raises InputError, naming the key of the folder, if
    the folder holds a run and no flag is set, if it has a data.json of something else, or if it
    cannot be written.
    """
    make_folder(folder, keys.folder)
    files = [folder / name for name in ("last_checkpoint", "metrics.json", "model_final.pth")]
    folder_option = f"{keys.folder}{keys.separator}FOLDER"
    # A run that ended before its first iteration leaves data.json and an empty metrics.json.
    if resume or not any(file.is_file() and file.stat().st_size for file in files):
        if not has_only_own_data(folder):
            problem = f"{keys.folder} {folder} has a data.json of something else"
            raise InputError(f"{problem}, which the run would overwrite: use {folder_option}")
        return
    if not fresh:
        remedies = f"--resume continues it, --fresh renames it, or use {folder_option}"
        raise InputError(f"{keys.folder} {folder} holds another run: {remedies}")
    if Path.cwd().is_relative_to(folder.resolve()):
        place = f"{keys.folder} {folder}, your current directory"
        raise InputError(f"--fresh cannot rename {place}: change directory, or use {folder_option}")
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    logger.info("The earlier run in %s is now in %s", folder, aside)


def last_checkpoint(folder: str | Path) -> Path | None:
    """Returns the checkpoint that the folder's file ``last_checkpoint`` names; None without it.

    Raises InputError if that checkpoint does not exist.
    """
    pointer = Path(folder, "last_checkpoint")
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    file = Path(folder, name)
    if not name:
        raise InputError(f"{pointer} is empty: {_remedy(folder)}")
    if not file.is_file():
        raise InputError(f"{pointer} names {file}, which does not exist: {_remedy(folder)}")
    return file


def saved_seed(folder: str | Path) -> int | None:
    """Returns the seed of the run's last checkpoint, else that of its config; None without both.

    Raises InputError if the checkpoint cannot be read.
    """
    file = last_checkpoint(folder)
    try:
        seed = None if file is None else load_checkpoint(file).get("seed")
    except Exception as error:  # torch's readers have no common error type
        raise InputError(f"{unreadable_checkpoint(file, error)}: {_remedy(folder)}") from error
    if seed is None:
        seed = saved_config_value(folder, YAML.seed) or saved_config_value(folder, LAZY.seed)
    return int(seed) if str(seed).isdecimal() else None


def _remedy(folder: str | Path) -> str:
    others = ", ".join(sorted(file.name for file in Path(folder).glob("model_*.pth"))) or "none"
    write = f"write the name of another checkpoint ({others}) into {folder}/last_checkpoint"
    return f"{write}, or start a new run with --fresh"


def saved_config_value(folder: str | Path, key: str) -> Any:
    """Returns the value of a dotted key in the config.yaml of the run in the folder, as text.

    Returns None if file or key is missing. Values stay text, as a LazyConfig may contain objects.
    """
    try:
        text = Path(folder, "config.yaml").read_text()
        return get_key(yaml.load(text, yaml.BaseLoader), key)
    # A killed run may leave half a file; ValueError: half a character.
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
