"""Creates folders, finds files, reads texts and checks that images can be read."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import InputError, one_line

#: Extensions of the files that count as images when a folder is searched.
IMAGE_EXTENSIONS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# The last bytes of a complete file of each format. Files with another end are decoded to be sure.
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
_EXIF_ORIENTATION = 0x0112
# The modes that Pillow converts to RGB correctly. Other modes have more than 8 bits a channel.
_8_BITS = {"1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"}


def make_folder(folder: Path, option: str = "RAMBO_DET_CACHE") -> None:
    """Creates a folder if it does not exist. Raises InputError, naming ``option``, if the folder
    cannot be created or is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{option} {folder} is not a folder") from None
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be created: {error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{option} {folder} is not writable: change its permissions or name another folder"
        )


def printable(name: str | Path) -> str:
    """Returns a name for use in a message: on one line, with unprintable characters escaped."""
    return str(name) if str(name).isprintable() else repr(str(name))


def backslash_hint(name: str | Path) -> str:
    """Returns a hint for a message about a missing file: "" unless its name has backslashes."""
    return ": its name has backslashes, write / for folders" if "\\" in str(name) else ""


def read_text(path: Path, what: str) -> str:
    """Returns the text of a UTF-8 file, with or without a byte order mark.

    Raises InputError, calling the file ``what``, if it cannot be read or has another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} {printable(path)} is not in UTF-8: {error}") from None
    except OSError as error:
        raise InputError(f"the {what} {printable(path)} cannot be read: {error.strerror}") from None


def files_in(folder: Path, endings: Collection[str]) -> list[Path]:
    """Returns all files in a folder, at any depth, that have one of the extensions, sorted.

    Follows links to folders and skips hidden names. ``endings`` are in lower case, with the dot.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(top)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = filter(_is_visible, folders)
        paths = (Path(top, name) for name in names if _is_visible(name))
        found += [path for path in paths if path.suffix.lower() in endings]
    return sorted(filter(os.path.isfile, found))


def _is_visible(name: str) -> bool:
    """Returns whether a name is not hidden and not one that macOS, Jupyter or a NAS adds."""
    return not name.startswith((".", "__MACOSX", "@eaDir"))


def check_image(
    path: Path, referenced_by: str, size: tuple[int, int] | None = None, decode: bool = False
) -> tuple[int, int, int]:
    """Returns width and height in px of an upright image, and its EXIF orientation, 1 to 8.

    Reads the header and the last bytes. Decodes the whole image only if these leave a doubt or
    ``decode`` is true. Raises InputError, naming the place ``referenced_by``, if the image is
    missing, truncated, not an image, too large for Pillow or not of the given ``size``. Also raises
    InputError if Detectron2 would change the image: its reader clips values above 255, and turns a
    TIFF with an orientation a second time, after Pillow.
    """
    name = f"{referenced_by}: the image {printable(path)}"
    if not os.path.isfile(path):
        raise InputError(f"{name} is missing{backslash_hint(path)}")
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but readable
            file.seek(max(0, path.stat().st_size - 16))
            end = file.read()
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                tag = image.getexif().get(_EXIF_ORIENTATION)
                orientation = tag if tag in range(1, 9) else 1  # Detectron2 ignores text too
                if image.format == "TIFF" and orientation > 1:
                    raise InputError(
                        f"{name} is a TIFF with EXIF orientation {orientation}, which would be "
                        "applied twice: save it upright, without orientation"
                    )
                if orientation > 4:  # Detectron2 reads images upright: swaps width and height
                    width, height = height, width
                if decode or not end.endswith(_LAST_BYTES.get(image.format or "", b"none")):
                    image.load()
                if image.mode not in _8_BITS:
                    _check_range(image, name)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): scale it down") from None
    except (OSError, SyntaxError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"{name} is truncated or broken: {one_line(error)}") from None
    if size not in (None, (width, height)):
        turned = " after EXIF rotation" if orientation > 1 else ""
        raise InputError(
            f"{name} is {width}x{height} px{turned}, but its annotation says {size[0]}x{size[1]}: "
            "correct the annotation, or use the images that were annotated"
        )
    return width, height, orientation


def _check_range(image: Image.Image, name: str) -> None:
    """Raises InputError unless the values of an image fit in 8 bits."""
    wide = image.convert("I") if image.mode.startswith("I;16") else image
    low, high = wide.getextrema()
    if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
        kind = {"F": "floating point", "I": "32-bit"}.get(image.mode, "16-bit")
        raise InputError(
            f"{name} is a {kind} image with values from {low:g} to {high:g}, which would be "
            "clipped to 0..255: save it with 8 bits, scaled to that range"
        )
