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

#: The config key that selects a model's loss, and its value for each loss; stock loss first.
_LOSS_KEYS = [
    ("MODEL.META_ARCHITECTURE", {"focal": "RetinaNet", "rambo": "RamboRetinaNet"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "StandardROIHeads", "rambo": "RamboROIHeads"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "Res5ROIHeads", "rambo": "RamboRes5ROIHeads"}),
    ("MODEL.ROI_HEADS.NAME", {"ce": "CascadeROIHeads", "rambo": "RamboCascadeROIHeads"}),
]


@dataclass(frozen=True)
class Variant:
    """A loss, optionally with config keys of its own."""

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
        known = " or ".join(names)
        raise InputError(
            f"--losses {loss}: {key} {get_key(cfg, key)} has no such loss: use {known}"
        )
    opts = {key: names[loss]}
    if "focal" in names:
        # The AP loss learns no natural zero of the scores. All losses get the same threshold.
        opts["MODEL.RETINANET.SCORE_THRESH_TEST"] = "0.0"
    elif loss != "rambo" and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RamboRPN":
        opts["MODEL.PROPOSAL_GENERATOR.NAME"] = "RPN"
    return opts


def default_losses(cfg: CfgNode) -> list[str]:
    """Returns the stock loss of the config's model and RaMBO; InputError if none is known."""
    return list(_loss_key(cfg)[1])


def _loss_key(cfg: CfgNode) -> tuple[str, dict[str, str]]:
    model = cfg.MODEL
    for key, names in _LOSS_KEYS:
        # The configs of other meta-architectures also name ROI heads, but do not use them.
        if get_key(cfg, key) in names.values() and (
            key == "MODEL.META_ARCHITECTURE" or model.META_ARCHITECTURE == "GeneralizedRCNN"
        ):
            return key, names
    known = ", ".join(next(iter(names.values())) for _, names in _LOSS_KEYS)
    raise InputError(
        f"losses can be swapped in {known} and their twins, not in MODEL.META_ARCHITECTURE "
        f"{model.META_ARCHITECTURE} with MODEL.ROI_HEADS.NAME {model.ROI_HEADS.NAME}"
    )


def parse_variants(
    losses: str | None, variants: list[str], grids: list[str], default: list[str]
) -> list[Variant]:
    """Returns the variants of the command line, in order; the first is the reference.

    Args:
        losses: such as ``ce,rambo``; None: ``default``, unless variants or grids are given.
        variants: each ``NAME=LOSS KEY VALUE …``.
        grids: each ``NAME=LOSS KEY V1,V2 …``, which makes a variant of every combination. Commas
            in brackets or quotes are part of a value.
        default: names of the losses to compare by default.
    """
    names = [] if variants or grids else default
    if losses is not None:
        names = [name.strip() for name in losses.split(",")]
    given: list[tuple[str, str, str, Sequence[str]]] = [("--losses", n, n, ()) for n in names]
    form = '"NAME=LOSS KEY VALUE ..."'
    given += [("--variant", *_parse_option("--variant", text, form)) for text in variants]
    for text in grids:
        name, loss, opts = _parse_option("--grid", text, form)
        for values in itertools.product(*map(_split_commas, opts[1::2])):
            pairs = list(zip(opts[::2], values, strict=True))
            label = "_".join([name, *(f"{k.rpartition('.')[2].lower()}-{v}" for k, v in pairs)])
            label = re.sub(r"[^-+.\w]", "-", label)  # the label becomes a folder name
            given.append(("--grid", label, loss, [*itertools.chain(*pairs)]))
    found: list[Variant] = []
    taken: set[str] = set()
    for option, name, loss, opts in given:
        if loss not in LOSS_TITLES:
            raise InputError(f"{option}: there is no loss {loss!r}, only {', '.join(LOSS_TITLES)}")
        found.append(Variant(name, loss, tuple(opts)))
        if twice := sorted({name, found[-1].title} & taken):
            raise InputError(f"two variants are called {twice[0]}: give them different names")
        taken |= {name, found[-1].title}
    return found


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


def _parse_option(option: str, text: str, form: str) -> tuple[str, str, list[str]]:
    """Splits ``NAME=WORD KEY VALUE …``; InputError, with the right ``form``, if it is malformed."""
    name, equals, rest = text.partition("=")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InputError(f"{option} {text!r}: {error}") from None
    if not equals or not words:
        raise InputError(f"{option} {text!r} is not {form}")
    if not re.fullmatch(r"[A-Za-z0-9][-+.\w]*", name):
        raise InputError(f"{option} {text!r}: a name has letters, digits and - + . _ alone")
    if len(words) % 2 == 0:
        raise InputError(f"{option} {text!r}: keys come as KEY VALUE, {words[-1]!r} has no value")
    return name, words[0], words[1:]


_DATA_SYNTAX = (
    '"NAME=voc:ROOT:TRAIN:VAL", "NAME=yolo:DATA_YAML:TRAIN:VAL", "NAME=coco:FOLDER:TRAIN:VAL", '
    '"NAME=coco:TRAIN.json:IMAGES:VAL.json:IMAGES" or "NAME=CONFIG.yaml", each with KEY VALUE ... '
    "behind it if need be"
)


@dataclass(frozen=True)
class DataSpec:
    """A dataset to compare on, as options of the training command."""

    name: str  # in the names of folders and in tables; "": the name of the test set
    config: str
    register: Sequence[Sequence[str]] = ()  # each a format and the values of --register-FORMAT
    opts: Sequence[str] = ()  # KEY VALUE ... of the runs on this dataset
    classes: str | None = None
    split: float | None = None
    hold_out: int | None = None
    imports: Sequence[str] = ()

    def words(self) -> list[str]:
        """Returns the options of the training command, without the config keys."""
        words = [word for name in self.imports for word in ("--import", name)]
        words += ["--config", self.config]
        for kind, *one in self.register:
            words += [f"--register-{kind}", *one]
        for option in ("classes", "split", "hold_out"):
            if (given := getattr(self, option)) is not None:
                words += [f"--{option.replace('_', '-')}", str(given)]
        return words


def parse_data(text: str, config: str) -> DataSpec:
    """Parses ``--data``, see ``_DATA_SYNTAX``, for the file of ``--config``; raises InputError."""
    name, spec, opts = _parse_option("--data", text, _DATA_SYNTAX)
    if spec.endswith((".yaml", ".yml")):
        find_config(spec, f"--data {text!r}:")
        return DataSpec(name, spec, opts=opts)
    kind, *parts = spec.split(":")
    train, val = f"{name}_train", f"{name}_val"
    opts = ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)", *opts]
    if kind in READERS and len(parts) == 3:
        parts.insert(2, parts[0])
    elif kind != "coco" or len(parts) != 4:
        raise InputError(f"--data {text!r} is not {_DATA_SYNTAX}")
    register = [(kind, train, *parts[:2]), (kind, val, *parts[2:])]
    return DataSpec(name, config, register, opts=opts)
