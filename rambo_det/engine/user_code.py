"""Imports a user's own modules, which register backbones, heads, datasets and config keys."""

import importlib.util
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..config import add_rambo_config
from ..errors import InputError, one_line

_imported: dict[str, ModuleType] = {}


def import_user_code(names: Iterable[str]) -> None:
    """Imports modules by name and Python files by path, each of them once.

    Raises InputError, naming the module, if a module does not exist or raises an error.
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
                # A unique module name, because the file may be named like another module.
                unique = f"_rambo_det_import_{len(_imported)}_{os.path.basename(key)[:-3]}"
                spec: Any = importlib.util.spec_from_file_location(unique, key)
                sys.modules[unique] = module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(name)
            _imported[key] = module
        except Exception as error:  # whatever the user's code raises
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"--import {name}: {reason}") from error


def new_config() -> CfgNode:
    """Returns Detectron2's defaults with the keys of this package and of the imported modules.

    An imported module adds its keys in a function ``add_config(cfg)``.
    """
    cfg = get_cfg()
    add_rambo_config(cfg)
    for module in _imported.values():
        if hasattr(module, "add_config"):
            module.add_config(cfg)
    return cfg
