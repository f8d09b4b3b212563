"""The paths of the package: its cache folder and its config files."""

import os
import tempfile
from pathlib import Path

from .errors import InputError


def cache_dir() -> Path:
    """Returns the cache folder, $RAMBO_DET_CACHE or ~/.cache/rambo_det; does not create it.

    Without a home directory, as in some containers, the folder is in the temporary directory.
    Raises InputError if another user owns that folder: compiled code is loaded from it.
    """
    folder = Path(os.environ.get("RAMBO_DET_CACHE") or "~/.cache/rambo_det")
    try:
        return folder.expanduser().absolute()
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"rambo_det-{os.getuid()}").absolute()
        if folder.exists() and folder.stat().st_uid != os.getuid():
            raise InputError(
                f"{folder} is another user's: name a folder of yours with RAMBO_DET_CACHE"
            ) from None
        return folder


def find_config(name: str, option: str = "--config") -> str:
    """Returns the path of a config file: ``name`` itself, or the shipped file ``configs/name``.

    Raises InputError, which names the command line option, if neither exists.
    """
    package = Path(__file__).parent
    shipped = Path("configs", name.removeprefix("configs/"))
    for file in (Path(name), package / shipped, package.parent / shipped):
        if file.is_file():
            return str(file)
    raise InputError(f"{option} {name}: no such file")
