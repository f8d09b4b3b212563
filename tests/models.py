"""Configs, datasets and training inputs of small models for the Detectron2 tests."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from PIL import Image

import rambo_det
from rambo_det.data.drawing import SPEC, draw_image
from rambo_det.data.files import check_image
from rambo_det.data.shapes import write_split
from rambo_det.errors import InputError

CONFIGS = Path(rambo_det.__file__).resolve().parents[1] / "configs"
QUICKSTART = str(CONFIGS / "quickstart" / "faster_rcnn_rambo.yaml")
SIZE = SPEC["image_px"]
#: Reduces a quickstart config to a model of a few thousand parameters, for fast iterations.
THIN = [
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res3']",
    "MODEL.RPN.IN_FEATURES", "['res3']", "MODEL.ROI_HEADS.IN_FEATURES", "['res3']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32]]", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0", "MODEL.DEVICE", "cpu",
]  # fmt: skip
#: For runs that are compared bit for bit: random image sizes, a score memory and several
#: checkpoints.
VARIED = [
    *THIN, "INPUT.MIN_SIZE_TRAIN", "(64,80,96)", "SOLVER.CHECKPOINT_PERIOD", "3",
    "SOLVER.WARMUP_ITERS", "4", "MODEL.RAMBO.MEMORY_LENGTH", "2",
]  # fmt: skip


def small_cfg(name: str = QUICKSTART, *opts: object) -> CfgNode:
    """Returns a quickstart config with a score memory, for 3 iterations of 2 images on the CPU."""
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3]
        + ["SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.01, "SEED", 7]
        + ["MODEL.RAMBO.MEMORY_LENGTH", 2, *opts]
    )
    return cfg


def write_coco(folder: Path, num: int = 4, split: str = "train") -> tuple[str, str]:
    """Draws a small COCO dataset; returns its json file and its image folder."""
    write_split(folder, split, num)
    return str(folder / f"{split}.json"), str(folder / split)


VOC_OBJECT = """<object><name>{}</name>{}<difficult>{}</difficult><bndbox><xmin>{}</xmin>
<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
# Detectron2's VOC evaluator needs these elements in each object.
EXTRA = "<pose>Unspecified</pose><truncated>0</truncated>"


def write_voc(root, split, images, size=(60, 50), extra=""):
    """Adds a split to a folder in VOC's layout.

    Args:
        root, split: the folder, made if it does not exist, and the name of the split.
        images: image name -> its objects: (class name, XYXY in VOC's 1-based px, difficult).
        size: width and height of the images in px.
        extra: xml to add to each object.

    Returns:
        The folder.
    """
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    for stem, objects in images.items():
        Image.effect_noise(size, 60).convert("RGB").save(root / "JPEGImages" / f"{stem}.jpg")
        items = "".join(VOC_OBJECT.format(name, extra, hard, *box) for name, box, hard in objects)
        dimensions = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        text = f"<annotation>{dimensions}{items}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root


def write_image(file, size=(40, 40), **options):
    """Writes a black image of ``size``, and makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file, **options)


def write_broken_image(file):
    """Writes a jpg image that passes check_image but cannot be decoded."""
    Image.effect_noise((96, 96), 60).save(file)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
        with suppress(InputError):
            check_image(file, "seems whole")
            try:
                read_image(str(file), "BGR")
            except OSError:
                return


def weights_of(file):
    """Returns the state dict of the model in a checkpoint."""
    return torch.load(file, weights_only=True)["model"]


def training_inputs(num: int = 2, empty: bool = False, outlines: bool = False) -> list[dict]:
    """Returns training inputs of a model, with drawn images.

    Args:
        num: number of images.
        empty: whether to leave out all objects.
        outlines: whether to add a mask and 17 keypoints to each object.
    """
    inputs = []
    for index in range(num):
        image, objects = draw_image("train", index)
        objects = [] if empty else objects
        instances = Instances((SIZE, SIZE))
        boxes = np.array([box for _, box, _ in objects], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.gt_boxes = Boxes(torch.tensor(boxes))
        instances.gt_classes = torch.tensor([label for label, _, _ in objects], dtype=torch.int64)
        if outlines:
            corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].astype(float)
            instances.gt_masks = PolygonMasks([[polygon] for polygon in corners])
            places = np.linspace(boxes[:, :2], boxes[:, 2:], 19, axis=1)[:, 1:-1]
            points = np.concatenate([places, np.full((len(boxes), 17, 1), 2)], axis=2)
            instances.gt_keypoints = Keypoints(points)
        tensor = torch.tensor(image.transpose(2, 0, 1).astype(np.float32))
        inputs.append({"image": tensor, "instances": instances, "height": SIZE, "width": SIZE})
    return inputs
