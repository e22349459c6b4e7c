"""The image encoders of the family as numbers: Llama 4's early-fusion tower, and that of Llama 3.2 Vision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Llama4Vision:
    """Llama 4's image tower, pixel-shuffle adapter and projector. Sizes are element counts, images are square.

    An image tile of image_size x image_size pixels becomes (image_size / patch_size)^2 * pixel_shuffle_ratio^2 text
    positions. adapter_hidden and adapter_output are the two layers of the adapter's MLP; the projector maps
    adapter_output to the hidden size of the text model.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    channels: int
    rope_theta: float
    norm_eps: float
    pixel_shuffle_ratio: float
    adapter_hidden: int
    adapter_output: int
    image_token: int
    image_start_token: int
    image_end_token: int

    @property
    def tile_tokens(self) -> int:
        """Text positions that one tile takes."""
        side = self.image_size // self.patch_size
        return round(side * self.pixel_shuffle_ratio) ** 2


@dataclass(frozen=True)
class MllamaVision:
    """The encoder of Llama 3.2 Vision: `layers` local blocks, then `global_layers` gated ones, over all tiles at once.

    taps: the blocks whose *input* joins the output (Meta's meaning). supported_aspect_ratios: (tiles high, tiles wide);
    aspect ratio id i + 1 is entry i, id 0 is no image. output_size is hidden_size * (1 + len(taps)).
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    global_layers: int
    heads: int
    image_size: int
    patch_size: int
    channels: int
    norm_eps: float
    max_tiles: int
    taps: tuple[int, ...]
    output_size: int
    supported_aspect_ratios: tuple[tuple[int, int], ...]
    image_token: int

    @property
    def tile_tokens(self) -> int:
        """Vision tokens of one tile: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1
