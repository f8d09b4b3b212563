"""Parses the losses and datasets of a comparison from the command line."""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..data.register import READERS
from ..engine.keys import get_key
from ..errors import InputError
from ..paths import find_config

#: Display names of the losses.
LOSS_TITLES = {"ce": "cross entropy", "focal": "focal loss", "rambo": "RaMBO"}

_MAX_NAME = 100  # number of characters; a file name may have 255 bytes
#: The config key that selects a model's loss, and its value for each loss; stock loss first.
_LOSS_KEYS = [
    ("MODEL.META_ARCHITECTURE", {"focal": "RetinaNet", "rambo": "RamboRetinaNet"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "StandardROIHeads", "rambo": "RamboROIHeads"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "Res5ROIHeads", "rambo": "RamboRes5ROIHeads"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "CascadeROIHeads", "rambo": "RamboCascadeROIHeads"}),
]


@dataclass(frozen=True)
class Variant:
    """A loss, optionally with extra config keys."""

    name: str  # in the names of folders and in tables
    loss: str  # a key of LOSS_TITLES
    opts: tuple[str, ...] = ()  # KEY VALUE ... of this variant alone

    @property
    def title(self) -> str:
        """The display name: the loss's if the variant has the loss's name, else ``name``."""
        return LOSS_TITLES[self.loss] if self.name == self.loss else self.name


def loss_opts(cfg: CfgNode, loss: str) -> dict[str, str]:
    """Returns the keys that give a config's model this loss; InputError if it cannot have it."""
    key, names = _loss_key(cfg)
    if loss not in names:
        model = f"a model with {key} {get_key(cfg, key)}"
        raise InputError(f"--losses {loss}: {model} supports only {' and '.join(names)}")
    opts = {key: names[loss]}
    if "focal" in names:
        # The AP loss learns no natural zero of the scores. All losses get the same threshold.
        opts["MODEL.RETINANET.SCORE_THRESH_TEST"] = "0.0"
    elif loss != "rambo" and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RamboRPN":
        opts["MODEL.PROPOSAL_GENERATOR.NAME"] = "RPN"
    return opts


def _loss_key(cfg: CfgNode) -> tuple[str, dict[str, str]]:
    model = cfg.MODEL
    for key, names in _LOSS_KEYS:
        # The configs of other meta-architectures also name ROI heads, but do not use them.
        is_used = "ROI_HEADS" not in key or model.META_ARCHITECTURE == "GeneralizedRCNN"
        if is_used and get_key(cfg, key) in names.values():
            return key, names
    known = ", ".join(next(iter(names.values())) for _, names in _LOSS_KEYS)
    raise InputError(
        f"losses can be swapped only in {known} and their Rambo versions, not in META_ARCHITECTURE "
        f"{model.META_ARCHITECTURE} with ROI_HEADS.NAME {model.ROI_HEADS.NAME}"
    )


def parse_variants(
    losses: str | None, variants: list[str], grids: list[str], cfg: CfgNode
) -> list[Variant]:
    """Returns the variants of the command line, in order; the first is the reference.

    Args:
        losses: such as ``ce,rambo``; None: the stock loss of the config's model and RaMBO, unless
            variants or grids are given.
        variants: each ``NAME=LOSS KEY VALUE …``.
        grids: each ``NAME=LOSS KEY V1,V2 …``, which makes a variant of every combination. Commas
            in brackets or quotes are part of a value.
        cfg: the config of the model. Raises InputError if its losses cannot be swapped.
    """
    default = list(_loss_key(cfg)[1])
    names = [] if variants or grids else default
    if losses is not None:
        names = [name.strip() for name in losses.split(",")]
    parsed = [Variant(name, name) for name in names]
    syntax = '"NAME=LOSS KEY VALUE ..."'
    parsed += [Variant(*_parse_option("--variant", text, syntax)) for text in variants]
    for text in grids:
        name, loss, opts = _parse_option("--grid", text, syntax)
        for values in itertools.product(*map(_split_commas, opts[1::2])):
            pairs = list(zip(opts[::2], values, strict=True))
            label = "_".join([name, *(f"{k.rpartition('.')[2].lower()}-{v}" for k, v in pairs)])
            label = re.sub(r"[^-+.\w]", "-", label)  # the label becomes a folder name
            parsed.append(Variant(label, loss, tuple(itertools.chain(*pairs))))
    taken: set[str] = set()
    for variant in parsed:
        if len(variant.name) > _MAX_NAME:
            hint = f"the most are {_MAX_NAME}: use --variant NAME=... with a short name"
            size = f"has {len(variant.name)} characters"
            raise InputError(f"the name {variant.name[:40]}... of a variant {size}, {hint}")
        if variant.loss not in LOSS_TITLES:
            raise InputError(f"unknown loss {variant.loss!r}, choose from {', '.join(LOSS_TITLES)}")
        if twice := sorted({variant.name, variant.title} & taken):
            raise InputError(f"two variants have the name {twice[0]}: rename one")
        taken |= {variant.name, variant.title}
    return parsed


def _split_commas(text: str) -> list[str]:
    """Splits a text at the commas outside of brackets and quotes."""
    parts, part = [], ""
    for piece in text.split(","):
        part = f"{part},{piece}" if part else piece
        pairs = all(part.count(a) == part.count(b) for a, b in ("()", "[]", "{}"))
        if pairs and part.count("'") % 2 == part.count('"') % 2 == 0:
            parts.append(part)
            part = ""
    return [*parts, part] if part else parts


def _parse_option(option: str, text: str, syntax: str) -> tuple[str, str, tuple[str, ...]]:
    """Splits ``NAME=WORD KEY VALUE …``; InputError, with the right ``syntax``, if malformed."""
    name, equals, rest = text.partition("=")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: {error}") from None
    if not equals or not words:
        raise InputError(f"{option} {text!r} must have the form {syntax}")
    if not re.fullmatch(r"[A-Za-z0-9][-+.\w]*", name):
        raise InputError(f"{option} {text!r}: a name may contain only letters, digits and - + . _")
    if len(words) % 2 == 0:
        raise InputError(f"{option} {text!r}: the config key {words[-1]!r} has no value")
    return name, words[0], tuple(words[1:])


_DATA_SYNTAX = (
    '"NAME=voc:ROOT:TRAIN:VAL", "NAME=yolo:DATA_YAML:TRAIN:VAL", "NAME=coco:FOLDER:TRAIN:VAL", '
    '"NAME=coco:TRAIN.json:IMAGES:VAL.json:IMAGES" or "NAME=CONFIG.yaml", optionally followed by '
    "KEY VALUE ..."
)


@dataclass(frozen=True)
class DataSpec:
    """A dataset to compare on, as words of the training command."""

    name: str  # in the names of folders and in tables; "": the name of the test set
    arguments: Sequence[str]  # options
    opts: Sequence[str] = ()  # KEY VALUE ... of the runs on this dataset


def parse_data(text: str, config: str) -> DataSpec:
    """Parses ``--data``, see ``_DATA_SYNTAX``, for the file of ``--config``; raises InputError."""
    name, spec, opts = _parse_option("--data", text, _DATA_SYNTAX)
    if spec.endswith((".yaml", ".yml")):
        find_config(spec, f"--data {text!r}:")
        return DataSpec(name, ["--config", spec], opts)
    kind, *parts = spec.split(":")
    train, val = f"{name}_train", f"{name}_val"
    opts = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)", *opts)
    if kind in READERS and len(parts) == 3:
        parts.insert(2, parts[0])
    elif kind != "coco" or len(parts) != 4:
        raise InputError(f"--data {text!r} must have the form {_DATA_SYNTAX}")
    option = f"--register-{kind}"
    arguments = ["--config", config, option, train, *parts[:2], option, val, *parts[2:]]
    return DataSpec(name, arguments, opts)
