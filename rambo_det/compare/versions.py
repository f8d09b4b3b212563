"""With what the numbers were made."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rambo_det

# What a training runs through; the comparison itself changes no number of a run.
_PARTS = ("config.py", "core", "data", "engine", "evaluation", "modeling")


def source_digest() -> str:
    """Digest, 12 hex digits, of the code that trains and evaluates."""
    package = Path(rambo_det.__file__).parent
    files = [f for part in _PARTS for f in (package / part, *sorted((package / part).rglob("*")))]
    digest = hashlib.sha256()
    for file in files:
        if file.suffix not in (".py", ".cpp"):
            continue
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Name -> version of what a number may depend on."""
    import torch

    found = {
        "rambo_det": rambo_det.__version__,
        "rambo_det source": source_digest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name in ("torchvision", "detectron2", "numpy", "pycocotools", "opencv-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
