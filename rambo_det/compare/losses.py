"""Losses as differences of a config, and what a user makes of them on the command line."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..errors import InputError

#: What a loss is called where it is explained to a reader.
TITLES = {"ce": "cross entropy", "focal": "focal loss", "rambo": "RaMBO"}

# The names that each kind of model has for each loss.
_ROI_HEADS = [
    {"ce": f"{kind}ROIHeads", "focal": f"Focal{name}ROIHeads", "rambo": f"Rambo{name}ROIHeads"}
    for kind, name in (("Standard", ""), ("Res5", "Res5"), ("Cascade", "Cascade"))
]
_ONE_STAGE = [{"focal": "RetinaNet", "rambo": "RamboRetinaNet"}]


@dataclass(frozen=True)
class Variant:
    """A loss, with keys of its own where a user gave some.

    Attributes:
        name: how folders and tables call it.
        loss: a key of :data:`TITLES`.
        opts: KEY VALUE … that it has beyond those of all variants.
    """

    name: str
    loss: str
    opts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What a reader is told."""
        return TITLES[self.loss] if self.name == self.loss else self.name


def loss_opts(cfg: CfgNode, loss: str) -> list[str]:
    """KEY VALUE … that make the model of a config train with that loss, whichever it has now.

    Raises:
        InputError: the model is none that has such a loss.
    """
    model = cfg.MODEL
    for names in _ONE_STAGE:
        if model.META_ARCHITECTURE in names.values():
            if loss not in names:
                raise InputError(
                    f"--losses {loss}: MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} has no "
                    f"such loss: use {' or '.join(names)}"
                )
            # The AP loss learns no natural zero of the scores, and all are measured alike.
            return ["MODEL.META_ARCHITECTURE", names[loss], "MODEL.RETINANET.SCORE_THRESH_TEST",
                    "0.0"]  # fmt: skip
    for names in _ROI_HEADS:
        if model.META_ARCHITECTURE == "GeneralizedRCNN" and model.ROI_HEADS.NAME in names.values():
            opts = ["MODEL.ROI_HEADS.NAME", names[loss]]
            if loss != "rambo":
                opts += ["MODEL.RAMBO.RPN", "False"]
                if model.PROPOSAL_GENERATOR.NAME == "RamboRPN":
                    opts += ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"]
            return opts
    known = [next(iter(names.values())) for names in _ROI_HEADS + _ONE_STAGE]
    raise InputError(
        f"losses can be swapped in {', '.join(known)} and their twins, not in "
        f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} with MODEL.ROI_HEADS.NAME "
        f"{model.ROI_HEADS.NAME}"
    )


def parse_variants(
    losses: str | None, variants: list[str], grids: list[str], default: list[str]
) -> list[Variant]:
    """The variants of the command line in their order; the first is the reference.

    Args:
        losses: ``ce,rambo``; None: ``default``, unless there are variants or grids.
        variants: each ``NAME=LOSS KEY VALUE …``.
        grids: each ``NAME=LOSS KEY V1,V2 …``: a variant for every combination. Commas in
            brackets or quotes are part of a value.
        default: names of losses.

    Raises:
        InputError: whatever is wrong with them.
    """
    if losses is None and (variants or grids):
        names = []
    else:
        names = default if losses is None else [name.strip() for name in losses.split(",")]
    for name in names:
        _check_loss("--losses", name)
    found = [Variant(name, name) for name in names]
    for text in variants:
        name, loss, opts = _split("--variant", text)
        found.append(Variant(name, loss, tuple(opts)))
    for text in grids:
        name, loss, opts = _split("--grid", text)
        keys = opts[::2]
        for values in itertools.product(*(_values(value) for value in opts[1::2])):
            pairs = list(zip(keys, values, strict=True))
            label = "_".join([name, *(f"{k.rpartition('.')[2].lower()}-{v}" for k, v in pairs)])
            label = re.sub(r"[^-+.\w]", "-", label)  # it becomes a folder
            found.append(Variant(label, loss, tuple(itertools.chain(*pairs))))
    for one, other in itertools.combinations(found, 2):
        if one.name == other.name:
            raise InputError(f"two variants are called {one.name}: give them different names")
        if one.title == other.title:
            raise InputError(
                f"variants {one.name} and {other.name} are both called {one.title} in tables: give "
                "one another name"
            )
    return found


def _values(text: str) -> list[str]:
    """The parts between commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def split_spec(option: str, text: str, form: str) -> tuple[str, str, list[str]]:
    """``NAME=WORD KEY VALUE …`` in its parts.

    Args:
        option: of the command line, for the message.
        text: what the user gave.
        form: what it should look like.

    Raises:
        InputError: it does not.
    """
    name, equals, rest = text.partition("=")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: {error}") from None
    if not equals or not words:
        raise InputError(f"{option} {text!r} is not {form}")
    if not re.fullmatch(r"[A-Za-z0-9][-+.\w]*", name):
        raise InputError(
            f"{option} {text!r}: the name becomes a folder: use letters, digits and - + . _"
        )
    if len(words) % 2 == 0:
        raise InputError(f"{option} {text!r}: keys come as KEY VALUE, {words[-1]!r} has no value")
    return name, words[0], words[1:]


def _split(option: str, text: str) -> tuple[str, str, list[str]]:
    name, loss, opts = split_spec(option, text, '"NAME=LOSS KEY VALUE ..."')
    _check_loss(option, loss)
    return name, loss, opts


def _check_loss(option: str, name: str) -> None:
    if name not in TITLES:
        raise InputError(f"{option}: there is no loss {name!r}, only {', '.join(TITLES)}")


def default_losses(cfg: CfgNode) -> list[str]:
    """The stock loss of the config's model and RaMBO."""
    one_stage = any(cfg.MODEL.META_ARCHITECTURE in names.values() for names in _ONE_STAGE)
    return ["focal" if one_stage else "ce", "rambo"]
