"""Which grid of square tiles a picture is laid on, and how large it is drawn there.

The rule is Meta's (VariableSizeImageTransform of Llama 3.2 Vision and Llama 4): shrink as little as possible, enlarge
as little as possible and never past one tile, and of the grids that do so equally well take the smallest.
"""

from __future__ import annotations

import math
from fractions import Fraction


def best_grid(height: int, width: int, tile: int, most_tiles: int) -> tuple[int, int]:
    """(rows, columns) of the grid of at most `most_tiles` tiles of `tile` pixels for a picture of height x width."""
    grids = [(rows, columns) for rows in range(1, most_tiles + 1) for columns in range(1, most_tiles // rows + 1)]
    scales = {grid: min(Fraction(grid[0] * tile, height), Fraction(grid[1] * tile, width)) for grid in grids}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    chosen = min(enlarging) if enlarging else max(scales.values())
    return min((grid for grid in grids if scales[grid] == chosen), key=lambda grid: grid[0] * grid[1])


def drawn_size(height: int, width: int, tile: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width the picture is resized to: as large as the grid holds, enlarged to no more than one tile.

    In binary floating point like the references, whose rounding decides the last pixel.
    """
    highest, widest = (min(max(side, tile), count * tile) for side, count in zip((height, width), grid, strict=True))
    by_height, by_width = highest / height, widest / width
    if by_width < by_height:
        return max(1, min(math.floor(height * by_width), highest)), widest
    return highest, max(1, min(math.floor(width * by_height), widest))
