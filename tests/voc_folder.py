"""Write small folders in Pascal VOC's layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

# class name, (xmin, ymin, xmax, ymax) as VOC counts pixels, difficult
VocObject = tuple[str, tuple[float, float, float, float], int]

OBJECT = """<object><name>{}</name>{}<difficult>{}</difficult><bndbox><xmin>{}</xmin>
<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
# Upstream's evaluator cannot do without these.
EXTRA = "<pose>Unspecified</pose><truncated>0</truncated>"


def write_voc(
    root: Path,
    split: str,
    images: Mapping[str, Sequence[VocObject]],
    size: tuple[int, int] = (60, 50),
    extra: str = "",
) -> Path:
    """Add a split to the folder `root`: image name -> its objects."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images) + "\n")
    for stem, objects in images.items():
        Image.effect_noise(size, 60).convert("RGB").save(root / "JPEGImages" / f"{stem}.jpg")
        items = "".join(OBJECT.format(name, extra, hard, *box) for name, box, hard in objects)
        dimensions = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        text = f"<annotation>{dimensions}{items}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root
