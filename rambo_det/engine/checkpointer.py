"""A checkpointer that writes complete files or none, and lets a run resume bit for bit."""

import textwrap
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import InputError
from ..losses import ScoreMemory
from .files import AtomicPathManager
from .keys import LAZY, YAML

_WEIGHTS = f"{YAML.weights} (LazyConfig: {LAZY.weights})"
BEST_NAME = "model_best"
#: File of the weights as trained; it exists only if model_final.pth has calibrated weights.
RAW_FILE = "model_raw.pth"
#: Files beside the last calibrated checkpoint of a folder: thresholds and reliability diagram.
CALIBRATION_FILES = ("thresholds.json", "reliability.png")


class AtomicCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer whose files get their final names only once they are complete.

    The checkpoints also hold what an exact resume needs but the stock class does not save: the
    seed, every process's ScoreMemory, and every process's running mean by which RetinaNet and FCOS
    divide their losses. Therefore every process must call :meth:`save`.

    Args:
        model, save_dir, **checkpointables: as in DetectionCheckpointer.
        seed: seed of the run, saved in every checkpoint; None: no seed is saved.
    """

    def __init__(
        self, model: Any, save_dir: str = "", *, seed: int | None = None, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.path_manager = AtomicPathManager(self.path_manager)
        self._seed = seed

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves a checkpoint; every process must call this method, the main process writes."""
        for module in self.model.modules():
            if isinstance(module, ScoreMemory):
                module.all_gather_for_checkpoint()
        means = comm.all_gather(vars(self.model).get("loss_normalizer"))
        if means[0] is not None:
            kwargs["loss_normalizers"] = means
        if self._seed is not None:
            kwargs["seed"] = self._seed
        super().save(name, **kwargs)
        if name == "model_final" and self.save_to_disk:
            Path(self.save_dir, RAW_FILE).unlink(missing_ok=True)
            beside = [Path(self.save_dir, file) for file in CALIBRATION_FILES]
            # Delete the thresholds of the replaced weights, but not those of another checkpoint.
            if beside[0].is_file() and '"weights": "model_final.pth"' in beside[0].read_text():
                for file in beside:
                    file.unlink(missing_ok=True)

    def get_checkpoint_file(self) -> str:
        """Returns the last checkpoint; the raw weights instead of a calibrated final checkpoint."""
        file: str = super().get_checkpoint_file()
        raw = Path(self.save_dir, RAW_FILE)
        return str(raw) if Path(file).name == "model_final.pth" and raw.is_file() else file

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        # --resume must not continue from the checkpoint of the best evaluation.
        if last_filename_basename != f"{BEST_NAME}.pth":
            super().tag_last_checkpoint(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Loads a checkpoint; InputError if only some processes find it, or it cannot be read."""
        has_checkpoint = comm.all_gather(self.has_checkpoint())
        if resume and len(set(has_checkpoint)) > 1:
            remedy = "the folder must be shared by all machines of the run"
            raise InputError(f"only some processes find a checkpoint in {self.save_dir}: {remedy}")
        checkpoint: dict[str, Any] = super().resume_or_load(path, resume=resume)
        if not resume or not all(has_checkpoint):
            if resume:
                text = "--resume: no checkpoint in %s yet: starting from the beginning"
                self.logger.warning(text, self.save_dir)
            return checkpoint
        means = checkpoint.get("loss_normalizers") or [None]
        mean = means[comm.get_rank() if len(means) == comm.get_world_size() else 0]
        if mean is not None:
            self.model.loss_normalizer = mean
        seed = checkpoint.get("seed")
        if None not in (seed, self._seed) and seed != self._seed:
            text = "The run in %s began with SEED %d, this one with %d: its results will differ"
            self.logger.warning(text, self.save_dir, seed, self._seed)
        return checkpoint

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load(path, *args, **kwargs)
        except (OSError, AssertionError) as error:  # a failed download, or no such file
            remedy = f"set {_WEIGHTS} to an existing file, or to '' for random weights"
            raise InputError(f"{path} cannot be loaded: {error}: {remedy}") from error

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        number = len(self.model.state_dict())
        if len(incompatible.missing_keys) + len(incompatible.incorrect_shapes) >= number:
            mismatch = "no weight in this checkpoint matches the model (name and shape)"
            raise InputError(f"{_WEIGHTS}: {mismatch}: use another checkpoint")
        super()._log_incompatible_keys(incompatible)

    def _load_file(self, filename: str) -> Any:
        try:
            return super()._load_file(filename)
        except Exception as error:  # the readers of the file formats have no common error type
            raise unreadable_checkpoint(filename, error) from error


def load_whole_model(model: Any, weights: str, config: str, exactly: bool = False) -> None:
    """Loads a checkpoint that must have all weights of the model; messages name its ``config``.

    Raises InputError if the file cannot be read, or if a weight is missing or has another shape;
    with ``exactly`` also if the checkpoint has further weights.
    """

    def check(incompatible: Any) -> None:
        mismatch = f"{weights} does not fit the model of {config}"
        for name, *shapes in incompatible.incorrect_shapes:
            saved, expected = map(tuple, shapes)
            hint = ": is NUM_CLASSES that of the checkpoint?" if "cls_score" in name else ""
            difference = f"{name} has shape {saved} in the checkpoint but {expected} in the model"
            raise InputError(f"{mismatch}: {difference}{hint}")
        if missing := incompatible.missing_keys:
            raise InputError(f"{mismatch}: {len(missing)} weights are missing, first: {missing[0]}")
        if exactly and (further := incompatible.unexpected_keys):
            raise InputError(f"{mismatch}: it has {len(further)} more weights, first: {further[0]}")
        log(incompatible)

    checkpointer = AtomicCheckpointer(model)
    log, checkpointer._log_incompatible_keys = checkpointer._log_incompatible_keys, check
    checkpointer.load(weights)


def load_checkpoint(file: Any) -> dict[str, Any]:
    """Reads a checkpoint of a run; its tensors stay on the disk until they are used."""
    # The run itself wrote this file, and a user's hooks may have put any object into it.
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def unreadable_checkpoint(file: Any, error: Exception) -> InputError:
    """Returns the InputError for a file that cannot be read as a checkpoint."""
    why = textwrap.shorten(str(error), 100)
    return InputError(f"{file} cannot be read as a checkpoint: {type(error).__name__}: {why}")
