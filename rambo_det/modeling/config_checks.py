"""Checks for config keys of this plugin that a detector cannot satisfy; errors are one line."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork, RetinaNet
from detectron2.modeling.meta_arch import SemanticSegmentor

from ..errors import InputError


def check_architecture(cfg: CfgNode) -> None:
    """Raises InputError if a key selects RaMBO for a part that the architecture does not have.

    Does not check architectures that are no subclass of an architecture of Detectron2.
    """
    name, heads = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME
    model = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
    without_heads = (RetinaNet, SemanticSegmentor, ProposalNetwork)
    if heads.startswith("Rambo") and issubclass(model, without_heads):
        others = "GeneralizedRCNN" + " or RamboRetinaNet" * (name != "RamboRetinaNet")
        raise InputError(
            f"MODEL.ROI_HEADS.NAME is {heads}, but MODEL.META_ARCHITECTURE {name} has no ROI "
            f"heads: set MODEL.META_ARCHITECTURE to {others}, or MODEL.ROI_HEADS.NAME to a stock "
            "name"
        )
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if generator == "RamboRPN" and issubclass(model, without_heads[:2]):
        raise InputError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is {generator}, but MODEL.META_ARCHITECTURE {name} has "
            "no RPN: set MODEL.PROPOSAL_GENERATOR.NAME to RPN, or use GeneralizedRCNN or "
            "ProposalNetwork"
        )


def check_no_fed_loss(use_fed_loss: bool) -> None:
    """Raises InputError if the config also enables the federated loss, which samples classes."""
    if use_fed_loss:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS cannot be combined with the RaMBO loss, which ranks "
            "all classes of an image, also those that LVIS did not check: set USE_FED_LOSS to False"
        )
