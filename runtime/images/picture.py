"""Opens a picture as 8-bit RGB, refusing before it is decoded what would exhaust memory or mean something else.

Pillow is loaded on first use: `pip install llamac[images]`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llamac.errors import LlamacError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")
"""Formats that are read: what people have, without those whose decoders run other libraries' programs."""
LARGEST_FILE = 64 << 20
LARGEST_SIDE = 1 << 16
LARGEST_PIXELS = 64_000_000
"""Bytes, width or height, and pixels of the largest picture read: 64 million pixels take 192 MB as RGB."""

_WHITE = (255, 255, 255)
_DECODING = threading.Lock()


def open_picture(source: bytes | Path | str | Image, name: str = "image") -> Image:
    """The picture in `source` (the bytes of a file, its path, or an open image) as RGB, turned as its EXIF data says.

    Transparency shows white. Raises LLC0830 without Pillow, LLC0831 for what cannot be decoded, LLC0832 for what is
    too large and LLC0833 for an animation; `name` is the place that the errors name.
    """
    pillow = _pillow()
    picture: Any = source if isinstance(source, pillow.Image) else _decoded(pillow, source, name)
    _check_size(picture, name)
    try:
        with _whole_files_only():
            _check_content(picture, name)
            return _upright_rgb(picture)
    except LlamacError:
        raise
    except Exception as error:  # as above: frames are looked for and pixels decoded here
        raise _unreadable(name, error) from None


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """No grey stand-in for the missing part of a truncated file, even where another library has asked Pillow for it."""
    from PIL import ImageFile

    with _DECODING:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decoded(pillow: ModuleType, source: Any, name: str) -> Any:
    data = _bytes_of(source, name)
    try:
        return pillow.open(io.BytesIO(data), formats=FORMATS)
    except pillow.DecompressionBombError as error:
        raise _too_large(name, str(error)) from None
    except Exception as error:  # decoders of hostile files raise anything
        raise _unreadable(name, error) from None


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        hint = "pip install 'llamac[images]'"
        raise LlamacError("LLC0830", "image", "Pillow, which decodes pictures, is not installed", hint) from None
    return Image


def _bytes_of(source: bytes | Path | str, name: str) -> bytes:
    if isinstance(source, bytes):
        if len(source) > LARGEST_FILE:
            raise _too_large(name, f"{len(source)} bytes")
        return source
    try:
        with Path(source).open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LlamacError("LLC0831", name, f"cannot be read: {reason}", "check the path") from None
    if len(data) > LARGEST_FILE:
        raise _too_large(name, f"more than {LARGEST_FILE} bytes")
    return data


def _check_size(picture: Image, name: str) -> None:
    """Width and height are known from the header, before any pixel is decoded."""
    width, height = picture.size
    if min(width, height) < 1 or max(width, height) > LARGEST_SIDE or width * height > LARGEST_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")


def _check_content(picture: Image, name: str) -> None:
    """One still picture of 8-bit samples: anything else has no one meaning as RGB."""
    # An MPO file is a photograph followed by previews or a depth map of itself.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        hint = "save the frame that is meant as a PNG"
        raise LlamacError("LLC0833", name, f"the {picture.format} file holds several frames", hint)
    if picture.mode[:1] in ("I", "F"):
        reason = f"samples of mode {picture.mode}, which are not 8 bits wide"
        raise LlamacError("LLC0831", name, reason, "convert the picture to 8 bits a channel")


def _upright_rgb(picture: Image) -> Image:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    if "A" not in upright.getbands() and upright.info.get("transparency") is None:
        return upright.convert("RGB")
    see_through = upright.convert("RGBA")
    opaque = Image.new("RGB", see_through.size, _WHITE)
    opaque.paste(see_through, mask=see_through.getchannel("A"))
    return opaque


def _too_large(name: str, what: str) -> LlamacError:
    limits = f"at most {LARGEST_PIXELS} pixels, {LARGEST_SIDE} on a side, in {LARGEST_FILE >> 20} MiB"
    return LlamacError("LLC0832", name, what, f"make the picture smaller: {limits}")


def _unreadable(name: str, error: Exception) -> LlamacError:
    reason = f"cannot be decoded ({type(error).__name__}: {str(error)[:120]})"
    return LlamacError("LLC0831", name, reason, f"formats that are read: {', '.join(FORMATS)}")
