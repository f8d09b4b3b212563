"""Whether a config asks for RaMBO where a detector has a classification loss to replace."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork, RetinaNet
from detectron2.modeling.meta_arch import SemanticSegmentor

from ..errors import InputError
from .build import rambo_node

#: Meta-architectures without ROI heads, and what to set in their place.
_NO_ROI_HEADS = {
    RetinaNet: "set MODEL.META_ARCHITECTURE RamboRetinaNet",
    ProposalNetwork: "it scores objectness alone, which MODEL.RAMBO.RPN True ranks",
    SemanticSegmentor: "it detects nothing; use MODEL.META_ARCHITECTURE GeneralizedRCNN "
    "or RamboRetinaNet",
}


def resolve_rpn(cfg: CfgNode) -> None:
    """Turns ``MODEL.RAMBO.RPN: True`` into the proposal generator that ranks anchors.

    Raises:
        InputError: the architecture has no RPN, or one of another kind.
    """
    if not rambo_node(cfg).RPN:
        return
    generator = cfg.MODEL.PROPOSAL_GENERATOR
    if generator.NAME not in ("RPN", "RamboRPN"):
        raise InputError(
            f"MODEL.RAMBO.RPN: MODEL.PROPOSAL_GENERATOR.NAME {generator.NAME} has no objectness "
            "to rank: set that to RPN, or MODEL.RAMBO.RPN to False"
        )
    generator.NAME = "RamboRPN"


def check_architecture(cfg: CfgNode) -> None:
    """Raises InputError if a key asks for RaMBO in a part that the architecture does not have.

    Architectures that are no subclass of Detectron2's own are left to their author.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return
    model = META_ARCH_REGISTRY.get(name)
    if issubclass(model, GeneralizedRCNN):
        return
    heads = cfg.MODEL.ROI_HEADS.NAME
    for stock, remedy in _NO_ROI_HEADS.items():
        if not issubclass(model, stock):
            continue
        if heads.startswith("Rambo"):
            raise InputError(
                f"MODEL.ROI_HEADS.NAME {heads}: MODEL.META_ARCHITECTURE {name} has no ROI heads: "
                f"{remedy}"
            )
        if rambo_node(cfg).RPN and stock is not ProposalNetwork:
            raise InputError(
                f"MODEL.RAMBO.RPN: MODEL.META_ARCHITECTURE {name} has no RPN: set it to False, or "
                "use GeneralizedRCNN or ProposalNetwork"
            )


def check_rpn_key(cfg: CfgNode) -> None:
    """Raises InputError if ``MODEL.RAMBO.RPN`` is set and the RPN is still the stock one."""
    if rambo_node(cfg).RPN and cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RamboRPN":
        raise InputError(
            "MODEL.RAMBO.RPN True is resolved by rambo-train: in a script of your own set "
            "MODEL.PROPOSAL_GENERATOR.NAME RamboRPN in its place"
        )
