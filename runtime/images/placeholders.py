"""Places for pictures in a prompt."""

from __future__ import annotations

from llamac.errors import LlamacError


def check_image_count(placeholders: int, images: int) -> None:
    """LLC0834 unless every placeholder has its picture."""
    if placeholders != images:
        reason = f"the prompt has {placeholders} places for pictures, and {images} were given"
        raise LlamacError("LLC0834", "images", reason, "write the image token once for each picture")
