"""The data sets of a comparison as a user names them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config_files import find_config
from ..errors import InputError
from .losses import split_spec

_FORM = (
    '"NAME=voc:ROOT:TRAIN:VAL", "NAME=coco:TRAIN.json:IMAGES:VAL.json:IMAGES" or '
    '"NAME=CONFIG.yaml", each with KEY VALUE ... behind it if need be'
)


@dataclass(frozen=True)
class Data:
    """One data set to compare on.

    Attributes:
        name: how folders and tables call it; "": that of the set that is evaluated on.
        config: the config file of its runs.
        options: ``--register-…``, ``--classes`` and ``--hold-out`` of the training command.
        opts: KEY VALUE … for the runs on it.
    """

    name: str
    config: str
    options: tuple[str, ...] = ()
    opts: tuple[str, ...] = ()

    def with_options(self, *options: str) -> Data:
        """The same with more options of the training command."""
        return replace(self, options=(*self.options, *options))


def parse_data(text: str, config: str) -> Data:
    """One ``--data``; InputError if it is none.

    Args:
        text: see ``_FORM``.
        config: the file of ``--config``.
    """
    name, spec, opts = split_spec("--data", text, _FORM)
    kind, *parts = spec.split(":")
    train, val = f"{name}_train", f"{name}_val"
    sets = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)")
    options: tuple[str, ...]
    if kind == "voc" and len(parts) == 3:
        root, *splits = parts
        options = ("--register-voc", train, root, splits[0])
        options += ("--register-voc", val, root, splits[1])
    elif kind == "coco" and len(parts) == 4:
        options = ("--register-coco", train, *parts[:2], "--register-coco", val, *parts[2:])
    elif spec.endswith((".yaml", ".yml")):
        find_config(spec, f"--data {text!r}:")
        return Data(name, spec, (), tuple(opts))
    else:
        raise InputError(f"--data {text!r} is not {_FORM}")
    return Data(name, config, options, (*sets, *opts))
