"""A user's own modules: backbones, heads, data sets and config keys that they register."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

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
            if is_file:
                # Under a name of its own: the file may be called as another module is.
                own = f"_rambo_det_import_{len(_imported)}_{os.path.basename(key)[:-3]}"
                spec: Any = importlib.util.spec_from_file_location(own, key)
                sys.modules[own] = module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(name)
            _imported[key] = module
        except Exception as error:  # whatever the user's code raises
            reason = " ".join(str(error).split())
            raise InputError(f"--import {name}: {type(error).__name__}: {reason}") from error


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
