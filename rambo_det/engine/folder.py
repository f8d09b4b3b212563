"""The folder of a run: what an earlier process left there, and whether a new one may go there."""

from pathlib import Path
from typing import Any

import torch
import yaml

from ..data.files import make_folder
from ..errors import InputError
from .checkpointer import unreadable


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint that the folder's ``last_checkpoint`` names; None where that file is missing.

    Raises InputError if that checkpoint does not exist.
    """
    pointer = Path(folder, "last_checkpoint")
    if not pointer.is_file():
        return None
    file = Path(folder, pointer.read_text().strip())
    if not file.is_file():
        raise InputError(f"{pointer} names {file}, which does not exist: {_remedy(folder)}")
    return file


def earlier_seed(folder: str | Path) -> int | None:
    """The seed of the run's last checkpoint or, before the first, of its config; None if neither.

    Raises InputError if the checkpoint cannot be read.
    """
    seed: Any = None
    file = last_checkpoint(folder)
    if file is not None:
        try:
            seed = torch.load(file, map_location="cpu", mmap=True).get("seed")
        except Exception as error:  # torch's readers have no type of error in common
            raise InputError(f"{unreadable(file, error)}: {_remedy(folder)}") from error
    if seed is None:
        seed = earlier_value(folder, "SEED") or earlier_value(folder, "train.seed")
    return int(seed) if str(seed).isdigit() else None


def _remedy(folder: str | Path) -> str:
    others = ", ".join(sorted(file.name for file in Path(folder).glob("model_*.pth"))) or "none"
    return (
        f"write the name of another checkpoint there ({others}) into {folder}/last_checkpoint, "
        "or start anew with --fresh"
    )


def earlier_value(folder: str | Path, key: str) -> Any:
    """What the config.yaml of the run in the folder has under a key with dots, as text.

    None if there is none. As text: a LazyConfig may have objects in it.
    """
    try:
        found = yaml.load(Path(folder, "config.yaml").read_text(), yaml.BaseLoader)
    except (OSError, yaml.YAMLError):
        return None
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def prepare_folder(folder: Path, resume: bool, fresh: bool, remedy: str) -> Path | None:
    """Makes the folder of a run, and sure that it overwrites no other one.

    Returns where an earlier run was moved to, if ``fresh`` asked for that and there was one. Raises
    InputError if the folder holds a run and there is neither flag, or if it cannot be written;
    ``remedy`` is how the command line names another folder.
    """
    make_folder(folder, "OUTPUT_DIR")
    files = [folder / name for name in ("last_checkpoint", "metrics.json")]
    # A run that ended before its first iteration leaves an empty one.
    if resume or not any(file.is_file() and file.stat().st_size for file in files):
        return None
    if not fresh:
        raise InputError(
            f"OUTPUT_DIR {folder} holds another run: --resume goes on with it, --fresh sets it "
            f"aside, or name another folder with {remedy}"
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside
