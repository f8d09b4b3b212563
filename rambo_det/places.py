"""Where the package keeps what it makes, and where its config files lie."""

import os
import tempfile
from pathlib import Path

from .errors import InputError


def cache_folder() -> Path:
    """The folder RAMBO_DET_CACHE, by default ~/.cache/rambo_det; not created here.

    Without a home, as a container's user of an arbitrary id, a folder among the temporary files.
    InputError if that is another user's: compiled code is loaded from it.
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
    """Path of a config file: ``name`` itself, or ``configs/…`` as shipped with the package.

    InputError, with the option of the command line, if there is no such file.
    """
    package = Path(__file__).parent
    shipped = Path("configs", name.removeprefix("configs/"))
    for file in (Path(name), package / shipped, package.parent / shipped):
        if file.is_file():
            return str(file)
    raise InputError(f"{option} {name}: no such file")
