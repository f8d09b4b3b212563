"""A user's own modules: backbones, heads, data sets and config keys that they register."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from types import ModuleType

from detectron2.config import CfgNode, get_cfg

from ..config import add_rambo_config
from ..errors import InputError

_imported: dict[str, ModuleType] = {}


def import_user_code(names: Iterable[str]) -> None:
    """Imports modules, and Python files by their path, once each.

    Raises InputError, naming the module, if one is not there or raises an error itself.
    """
    for name in names:
        is_file = name.endswith(".py")
        key = os.path.abspath(name) if is_file else name
        if key in _imported:
            continue
        if is_file and not os.path.isfile(name):
            raise InputError(f"--import {name}: no such file")
        try:
            _imported[key] = _load(key) if is_file else importlib.import_module(name)
        except Exception as error:  # whatever the user's code raises
            reason = " ".join(str(error).split())
            raise InputError(f"--import {name}: {type(error).__name__}: {reason}") from error


def _load(file: str) -> ModuleType:
    # Under a name of its own: the file may be called as another module is.
    name = f"_rambo_det_import_{len(_imported)}_{os.path.basename(file)[:-3]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def new_config() -> CfgNode:
    """Detectron2's defaults, with the keys of this package and of what was imported.

    An imported module adds its keys by a function ``add_config(cfg)``.
    """
    cfg = get_cfg()
    add_rambo_config(cfg)
    for module in _imported.values():
        if hasattr(module, "add_config"):
            module.add_config(cfg)
    return cfg
