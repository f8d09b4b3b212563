"""rambo_det: train Detectron2 detectors directly for Average Precision.

``import rambo_det`` registers the heads in Detectron2. Without Detectron2 the loss itself,
``from rambo_det import RamboLoss``, is there all the same.
"""

import warnings
from importlib.util import find_spec

from .core import RamboLoss
from .version import __version__

__all__ = ["RamboLoss", "__version__"]

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():
        # Detectron2 scripts a few functions at import, which current torch calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        from .config import add_rambo_config
        from .modeling import RamboFastRCNNOutputLayers, RamboROIHeads

    __all__ += ["RamboFastRCNNOutputLayers", "RamboROIHeads", "add_rambo_config"]
else:

    def __getattr__(name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ImportError(
            f"rambo_det.{name} needs Detectron2, which is not installed: pip install "
            "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
        )
