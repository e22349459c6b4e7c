"""The ATen ops that capture knows: one small function for each, in a table by name."""

from __future__ import annotations

from .aten_arithmetic import ARITHMETIC
from .aten_products import PRODUCTS
from .aten_shapes import SHAPES
from .call import Importer

IMPORTERS: dict[str, Importer] = {**ARITHMETIC, **SHAPES, **PRODUCTS}
"""ATen name without its overload -> the function that imports it."""
