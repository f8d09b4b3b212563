"""Where the package keeps what it makes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder RAMBO_DET_CACHE, by default ~/.cache/rambo_det; not created here."""
    folder = os.environ.get("RAMBO_DET_CACHE") or Path.home() / ".cache" / "rambo_det"
    return Path(folder).expanduser().absolute()
