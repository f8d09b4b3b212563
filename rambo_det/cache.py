"""Where the package keeps what it makes."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder RAMBO_DET_CACHE, by default ~/.cache/rambo_det; not created here.

    Without a home, as a container's user of an arbitrary id, a folder among the temporary files.
    """
    folder = Path(os.environ.get("RAMBO_DET_CACHE") or "~/.cache/rambo_det")
    try:
        return folder.expanduser().absolute()
    except RuntimeError:
        return Path(tempfile.gettempdir(), f"rambo_det-{os.getuid()}").absolute()
