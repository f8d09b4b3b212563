"""rambo_det: train Detectron2 detectors directly for Average Precision.

``import rambo_det`` registers the models and heads in Detectron2. Without Detectron2 only the loss
is available: ``from rambo_det import RamboLoss``.
"""

import warnings
from importlib.util import find_spec

from .errors import INSTALL_DETECTRON2
from .losses import RamboLoss
from .version import __version__

__all__ = ["RamboLoss", "__version__"]

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():
        # Detectron2 calls torch.jit.script at import, which current torch reports as deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        from . import modeling
        from .config import add_rambo_config  # noqa: F401
        from .modeling import *  # noqa: F403

    __all__ += ["add_rambo_config", *modeling.__all__]
else:

    def __getattr__(name: str) -> None:
        if name != "add_rambo_config" and not name.startswith("Rambo"):
            raise AttributeError(f"module 'rambo_det' has no attribute {name!r}")
        raise ImportError(
            f"rambo_det.{name} needs Detectron2, which is not installed: {INSTALL_DETECTRON2}"
        )
