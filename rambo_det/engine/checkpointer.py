"""Checkpoints that are whole or not there, and that know the seed of their run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import InputError
from .files import AtomicFiles, remove_parts
from .memories import collect_memories


class _LossNormalizer:
    """What RetinaNet and FCOS divide their losses by: a running mean that no state dict has.

    Each process has one of its own.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._all: list[Any] = []

    def collect(self) -> None:
        self._all = comm.all_gather(vars(self._model).get("loss_normalizer"))

    def state_dict(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self._model).items() if k == "loss_normalizer"}
        if state and self._all and self._all[comm.get_rank()] == state["loss_normalizer"]:
            state["of_processes"] = self._all
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        of_processes = state.get("of_processes", [])
        if len(of_processes) == comm.get_world_size():
            self._model.loss_normalizer = of_processes[comm.get_rank()]
        elif "loss_normalizer" in state:
            self._model.loss_normalizer = state["loss_normalizer"]


class AtomicCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer whose files appear under their names only once they are whole.

    They also hold the two things that a run needs to go on as the same one and that the stock
    class does not save: its seed, and the running mean of RetinaNet's and FCOS's normaliser.

    Args:
        model, save_dir, **kwargs: as those of DetectionCheckpointer.
        seed: of the run, kept in every checkpoint; None: none.
    """

    def __init__(
        self, model: Any, save_dir: str = "", *, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = AtomicFiles(self.path_manager)
        self._loss_normalizer = _LossNormalizer(self.model)
        self.add_checkpointable("loss_normalizer", self._loss_normalizer)
        self._seed = seed
        self._tags = True

    def collect(self) -> None:
        """Has what each process holds for itself be part of what is saved next; a collective."""
        collect_memories(self.model)
        self._loss_normalizer.collect()

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """As the stock method; without ``tag`` ``--resume`` does not go on from this checkpoint."""
        extra = {} if self._seed is None else {"seed": self._seed}
        self._tags = tag
        try:
            super().save(name, **extra, **kwargs)
        finally:
            self._tags = True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if self._tags:
            super().tag_last_checkpoint(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the stock method.

        Raises:
            InputError: the file cannot be read, or not every process sees it.
        """
        if resume and len(set(comm.all_gather(self.has_checkpoint()))) > 1:
            raise InputError(
                f"not every process finds a checkpoint in {self.save_dir}: the folder must be "
                "shared by all machines of the run"
            )
        if self.save_dir and self.save_to_disk:
            remove_parts(self.save_dir)
        if resume and not self.has_checkpoint():
            self.logger.info("No checkpoint in %s yet: starting from the beginning", self.save_dir)
        checkpoint: dict[str, Any] = super().resume_or_load(path, resume=resume)
        seed = checkpoint.get("seed")
        if resume and self.has_checkpoint() and seed is not None and self._seed not in (None, seed):
            self.logger.warning(
                "The run in %s began with SEED %d, this one with %d: what it draws from here on is "
                "not what it would have drawn",
                self.save_dir, seed, self._seed,
            )  # fmt: skip
        return checkpoint

    def _load_file(self, filename: str) -> Any:
        try:
            return super()._load_file(filename)
        except Exception as error:  # the readers of the formats have no type in common
            raise _unreadable(filename, error) from error


class _WholeModel(AtomicCheckpointer):
    """Refuses a checkpoint of another model, of which Detectron2 would take what fits."""

    def __init__(self, model: Any, config: str) -> None:
        super().__init__(model)
        self._config = config

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        other = f"{self._path} is not of the model of {self._config}"
        for name, there, here in incompatible.incorrect_shapes:
            raise InputError(
                f"{other}: {name} has the shape {tuple(there)} there and {tuple(here)} here"
            )
        for name in incompatible.missing_keys:
            lacking = len(incompatible.missing_keys)
            raise InputError(f"{other}: it lacks {name}, of {lacking} weights")
        return incompatible


def load_whole_model(model: Any, weights: str, config: str) -> None:
    """Loads all weights of a model that is not trained any further.

    Args:
        model: takes them.
        weights: a file or an address.
        config: what describes the model, for the message.

    Raises:
        InputError: the file cannot be read, a weight is missing or has another shape.
    """
    _WholeModel(model, config).load(weights)


def _unreadable(file: Any, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read as a checkpoint: {' '.join(str(error).split())}")


def last_checkpoint(folder: str) -> Path | None:
    """The checkpoint that the folder's ``last_checkpoint`` names; None where that file is missing.

    Raises:
        InputError: that checkpoint does not exist.
    """
    pointer = Path(folder) / "last_checkpoint"
    if not pointer.is_file():
        return None
    file = Path(folder) / pointer.read_text().strip()
    if not file.is_file():
        raise InputError(f"{pointer} names {file}, which does not exist: {_remedy(folder)}")
    return file


def earlier_seed(folder: str, resume: bool) -> int | None:
    """The seed of the run in the folder, if that is gone on with; None if not, or if it has none.

    That of its last checkpoint or, before the first one, that of its config.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    if not resume:
        return None
    file = last_checkpoint(folder)
    if file is None:
        return config_seed(folder)
    try:
        seed = torch.load(file, map_location="cpu", mmap=True).get("seed")
    except Exception as error:  # torch's readers have no type of error in common
        raise InputError(f"{_unreadable(file, error)}: {_remedy(folder)}") from error
    return config_seed(folder) if seed is None else seed


def _remedy(folder: str) -> str:
    others = sorted(file.name for file in Path(folder).glob("model_*.pth"))
    listed = f" ({', '.join(others)})" if others else ""
    return (
        f"write the name of another checkpoint there{listed} into {folder}/last_checkpoint, "
        "or start anew with --fresh"
    )


def earlier_config(folder: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """The config.yaml of the run in the folder; empty if there is none, or half of one."""
    try:
        config = yaml.load((Path(folder) / "config.yaml").read_text(), loader)
    except (OSError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def config_seed(folder: str) -> int | None:
    """The seed in the folder's config.yaml; None if there is none."""
    # All as text: a LazyConfig may have objects in it.
    config = earlier_config(folder, yaml.BaseLoader)
    train = config.get("train")
    seed = config.get("SEED", train.get("seed") if isinstance(train, dict) else None)
    return int(seed) if isinstance(seed, str) and seed.isdigit() else None
