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
        from .data.shapes import register_shapes
        from .modeling import (
            RamboCascadeROIHeads,
            RamboCriterion,
            RamboFastRCNNOutputLayers,
            RamboRes5ROIHeads,
            RamboRetinaNet,
            RamboROIHeads,
            RamboRPN,
        )

    register_shapes()  # the configs of the quickstart work in any script; drawn at first use

    __all__ += ["RamboCascadeROIHeads", "RamboCriterion", "RamboFastRCNNOutputLayers"]
    __all__ += ["RamboROIHeads", "RamboRPN", "RamboRes5ROIHeads", "RamboRetinaNet"]
    __all__ += ["add_rambo_config"]

    if find_spec("detectron2.modeling.meta_arch.fcos") is not None:  # v0.5 has none
        from .modeling.fcos import RamboFCOS  # noqa: F401

        __all__ += ["RamboFCOS"]


def __getattr__(name: str) -> None:
    if name.startswith("_"):
        raise AttributeError(name)
    if "add_rambo_config" not in __all__:
        lacks = f"rambo_det.{name} needs Detectron2, which is not installed"
    elif name == "RamboFCOS":
        lacks = "rambo_det.RamboFCOS needs a Detectron2 with FCOS, which the one installed lacks"
    else:
        raise AttributeError(f"module 'rambo_det' has no attribute {name!r}")
    raise ImportError(
        f"{lacks}: pip install "
        "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    )
