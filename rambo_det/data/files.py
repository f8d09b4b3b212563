"""Files: where the package keeps what it makes, and whether an image can be read."""

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import InputError

# What a complete file of a format ends with. A file that ends otherwise is decoded to be sure.
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
_EXIF_ORIENTATION = 0x0112


def make_folder(folder: Path) -> None:
    """Create `folder` and those above it.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(
            f"cannot write to the folder {folder} (RAMBO_DET_CACHE names the cache folder)"
        )


def about_backslashes(name: object) -> str:
    """What to add to the message that a file of this name is missing."""
    return " (it is named with backslashes: write /)" if "\\" in str(name) else ""


def image_size(path: Path, named_in: str) -> tuple[int, int]:
    """(width, height) in px of a complete image, turned upright as its EXIF tag says.

    Reads the header and the last bytes; the whole image is decoded only where those leave a doubt.

    Args:
        path: the image.
        named_in: the file that names it, for the message.

    Raises:
        InputError: the image is missing, truncated or not an image, or of a kind that Detectron2
            reads as something else.
    """
    if not path.is_file():
        raise InputError(f"{named_in}: the image {path} is missing{about_backslashes(path)}")
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            width, height = image.size
            mode = image.mode
            # Detectron2 turns images upright when it reads them: 5 to 8 swap width and height.
            if image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
            ending = _LAST_BYTES.get(image.format or "")
            if ending is None or not _ends_with(path, ending):
                image.load()
    except UnidentifiedImageError:
        raise InputError(f"{named_in}: {path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{named_in}: the image {path} has more pixels than Pillow reads, "
            f"{2 * Image.MAX_IMAGE_PIXELS}: make it smaller or cut it into tiles"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{named_in}: the image {path} is truncated or broken: {error}") from None
    if mode.startswith(("I", "F")):
        raise InputError(
            f"{named_in}: the image {path} has more than 8 bits a pixel (Pillow's mode {mode}), "
            "which Detectron2 would read as nearly all white: scale it to 8 bits"
        )
    return width, height


def _ends_with(path: Path, ending: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(ending), path.stat().st_size), os.SEEK_END)
        return file.read() == ending


def check_image(path: Path, size: tuple[int, int], named_in: str) -> None:
    """Raise InputError unless `path` is a complete image of `size` (width, height) px."""
    actual = image_size(path, named_in)
    if actual != size:
        raise InputError(
            f"{named_in}: the image {path} is {actual[0]}x{actual[1]} px (turned upright), but its "
            f"annotation says {size[0]}x{size[1]}"
        )
