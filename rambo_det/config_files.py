"""Where the config files of this package lie: installed beside it, or in its source tree."""

from pathlib import Path

from .errors import InputError


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
