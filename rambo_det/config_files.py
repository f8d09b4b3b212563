"""Where the config files of this package lie: installed beside it, or in its source tree."""

from __future__ import annotations

from pathlib import Path

import yaml

from .errors import InputError


def find_config(name: str, option: str = "--config") -> str:
    """Path of a config file: ``name`` itself, or ``configs/…`` as shipped with the package.

    Args:
        name: what the user gave.
        option: of the command line, for the message.

    Raises:
        InputError: there is no such file, or it is a yaml file that cannot be one of a config.
    """
    package = Path(__file__).parent
    relative = name.removeprefix("configs/")
    for file in (Path(name), package / "configs" / relative, package.parent / "configs" / relative):
        if file.is_file():
            if file.suffix in (".yaml", ".yml"):
                _check_yaml(file, ())
            return str(file)
    raise InputError(f"{option} {name}: no such file")


def _check_yaml(file: Path, above: tuple[Path, ...]) -> None:
    """Raises InputError unless the file, and each that it builds on, holds keys with values.

    Args:
        file: path of an existing file.
        above: the files that name it as their base, directly or not.
    """
    try:
        # Parsed alone: what its tags stand for is Detectron2's to say.
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not yaml: {' '.join(str(error).split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{file} is not a config: it has no keys with values, such as MODEL: ...")
    for key, value in node.value:
        if key.value != "_BASE_":
            continue
        for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if "://" in item.value:
                continue
            base = file.parent / Path(item.value).expanduser()
            if not base.is_file():
                raise InputError(f"{file}: _BASE_ {item.value}: there is no file {base}")
            if base.resolve() in (path.resolve() for path in (file, *above)):
                raise InputError(f"{file}: _BASE_ {item.value}: the file builds on itself")
            _check_yaml(base, (file, *above))
