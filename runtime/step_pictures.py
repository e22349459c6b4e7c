"""The picture arguments of one step, as a device takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .run_plan import ImagePlan


@dataclass(frozen=True)
class StepPictures:
    """What T rows show or see of pictures, C contiguous; either pair may be missing.

    image_rows: i32 [T], the row of image_embeddings f32 [M, d] that a row is, -1 where it is a token. vision_start and
    vision_stop: i32 [T], the vision tokens that a row sees, those from start to stop - 1.
    """

    image_rows: NDArray[np.int32] | None = None
    image_embeddings: NDArray[np.float32] | None = None
    vision_start: NDArray[np.int32] | None = None
    vision_stop: NDArray[np.int32] | None = None

    def check(self, tokens: int) -> None:
        """A wrong shape or type would be a wild pointer in the code: refuse it as the programming error it is."""
        for array in (self.image_rows, self.vision_start, self.vision_stop):
            if array is not None and (array.dtype != np.int32 or not array.flags.c_contiguous):
                raise TypeError("step needs C-contiguous int32 image rows and ranges of vision tokens")
            if array is not None and array.shape != (tokens,):
                raise ValueError(f"step needs image rows and ranges of vision tokens for each of {tokens} rows")
        images = self.image_embeddings
        if images is not None and (images.dtype != np.float32 or not images.flags.c_contiguous or images.ndim != 2):
            raise TypeError("step needs C-contiguous float32 image embeddings [rows, width]")
        if (self.image_rows is None) != (images is None) or (self.vision_start is None) != (self.vision_stop is None):
            raise ValueError("step needs image rows with embeddings, and the starts of ranges with their stops")


def check_pixels(pixels: NDArray[np.float32], image: ImagePlan) -> None:
    """Refuse what `encode_image` cannot take as the programming error it is: TypeError, ValueError."""
    if pixels.dtype != np.float32 or not pixels.flags.c_contiguous or pixels.ndim != 4 or not len(pixels):
        raise TypeError("encode_image needs C-contiguous float32 pixels [tiles, channels, height, width]")
    if pixels.shape[1:] != image.pixels[1:] or (image.is_joint and len(pixels) > image.pixels[0]):
        raise ValueError(f"encode_image needs tiles of {image.pixels}, not {pixels.shape}")
