"""The paths of the package: its cache folder and its config files."""

import os
import tempfile
from pathlib import Path

from .errors import InputError


def cache_dir() -> Path:
    """Returns the cache folder, $RAMBO_DET_CACHE or ~/.cache/rambo_det, which may not exist yet.

    Without a home directory, as in some containers, creates a folder in the temporary directory.
    Raises InputError if another user owns that folder: compiled code is loaded from it.
    """
    folder = Path(os.environ.get("RAMBO_DET_CACHE") or "~/.cache/rambo_det")
    try:
        return folder.expanduser().absolute()
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"rambo_det-{os.getuid()}").absolute()
        # Creates the folder before the check, so that no other user can create it afterwards.
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise InputError(
                f"{folder} belongs to another user: set the environment variable RAMBO_DET_CACHE "
                "to a folder of your own"
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
