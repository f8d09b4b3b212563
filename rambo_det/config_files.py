"""Where the config files of this package lie: installed beside it, or in its source tree."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError


def find_config(name: str) -> str:
    """Path of a config file: ``name`` itself, or ``configs/…`` as shipped with the package.

    Raises:
        InputError: there is no such file.
    """
    if Path(name).is_file():
        return name
    package = Path(__file__).parent
    relative = name.removeprefix("configs/")
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / relative).is_file():
            return str(folder / relative)
    raise InputError(f"--config {name}: no such file")
