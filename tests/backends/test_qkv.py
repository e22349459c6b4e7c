"""q, k and v with norm, temperature, rotation and cache append in one kernel: the bits of the kernels it replaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from every_way import ROWS, check_every_way
from kernel_driver import Case, Library, Runner, build_runners
from panel16 import Array, Grouped, GroupedMatrix, pack_pairs, quantize_rows

PAGES, PAGE, LAYERS, LAYER = 3, 256, 2, 1
KV_TYPES = {"f32": ("LLAMAC_F32", 4, 0), "f16": ("LLAMAC_F16", 2, 0), "bf16": ("LLAMAC_BF16", 2, 0)}
KV_TYPES |= {"i8": ("LLAMAC_KV_I8", 1, 4)}
"""Cache -> its name in C, bytes of an element, bytes of the scales of a key and value."""


@dataclass(frozen=True)
class Layer:
    """A projection: format of the weight (None: bf16 in pairs), heads, inputs, cache, and what is done to the heads."""

    format: Grouped | None
    heads: int
    kv_heads: int
    dim: int
    k: int
    kv: str
    is_rotated: bool = True
    is_normed: bool = False
    is_tempered: bool = False

    @property
    def name(self) -> str:
        changes = f"{self.is_rotated:d}{self.is_normed:d}{self.is_tempered:d}"
        weight = self.format.name if self.format else "bf16"
        return f"{weight}-{self.heads}x{self.dim}-{self.kv_heads}-{self.kv}-{changes}"

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim

    @property
    def head_bytes(self) -> int:
        _, element, scales = KV_TYPES[self.kv]
        return PAGE * (2 * self.dim * element + scales)

    def cases(self) -> list[Case]:
        """The kernels apart, and the fused one."""
        kind = self.format.literal if self.format else "LLAMAC_BF16_PAIRS"
        call, x = ("grouped", "QUANTIZED(8)") if self.format else ("dense", f"B(float, 8), {self.k}")
        h, q, k = self.dim, self.heads * self.dim, self.kv_heads * self.dim
        layer_bytes = self.kv_heads * self.head_bytes
        kv = f"(llamac_kv){{B(uint8_t, 1), {LAYERS * layer_bytes}, B(int32_t, 4), {PAGES}}}"
        cache = f"{kv}, {LAYER}, {self.kv_heads}, {h}, {KV_TYPES[self.kv][0]}"
        product = f"llamac_linear_{call}(th, B(float, 7), {self.width}, {x}, S(0), B(uint8_t, 11), {self.width}, "
        steps = [f"{product}{self.k}, {kind}, NULL)"]
        if self.is_normed:
            heads = self.heads + self.kv_heads
            steps.append(f"llamac_norm_heads(th, B(float, 7), {self.width}, S(0), {heads}, {h}, NULL, 1e-5f)")
        if self.is_tempered:
            temper = f"llamac_temper_heads(th, B(float, 7), {self.width}, B(int32_t, 2), S(0), {self.heads}, {h}"
            steps.append(f"{temper}, 7.0f, 0.1f)")
        tables = "B(float, 5), B(float, 6)" if self.is_rotated else "NULL, NULL"
        append = f"llamac_kv_append(th, {cache}, B(float, 7) + {q}, {self.width}, B(float, 7) + {q + k}, {self.width}, "
        steps.append(f"{append}S(0), B(int32_t, 2), B(int32_t, 3), {tables})")
        if self.is_rotated:
            steps.append(f"llamac_rope_rows(th, B(float, 7), {self.width}, S(0), {self.heads}, {h}, {tables})")
        steps.append("if (th->id == 0) for (int64_t r = 0; r < S(0); r++) ")
        steps[-1] += f"memcpy(B(float, 0) + r * {q}, B(float, 7) + r * {self.width}, {4 * q})"
        numbers = f"{'1e-5f' if self.is_normed else '-1.0f'}, {'7.0f, 0.1f' if self.is_tempered else '0.0f, 0.0f'}"
        to = f"(llamac_qkv){{B(float, 0), {q}, {kv}, {LAYER}, {self.heads}, {self.kv_heads}, {h}, "
        to += f"{KV_TYPES[self.kv][0]}, {numbers}, {tables}, B(int32_t, 2), B(int32_t, 3)}}"
        fused = f"llamac_qkv_{call}(th, {to}, {x}, S(0), B(uint8_t, 11), {self.k}, {kind});"
        apart = "; llamac_barrier(th); ".join(steps) + ";"
        return [Case(f"apart-{self.name}", apart), Case(f"fused-{self.name}", fused)]


INT4, INT8 = Grouped(4, True, 32, 16, 0), Grouped(8, True, 32, 16, 0)
CASES = [
    Layer(INT4, 9, 3, 64, 96, "f16"),
    Layer(INT4, 3, 3, 64, 96, "i8"),  # ranges of two threads would begin inside a head, which has one scale
    Layer(INT8, 4, 2, 32, 64, "bf16"),
    Layer(INT4, 5, 1, 128, 64, "f32", is_normed=True),
    Layer(INT4, 5, 1, 128, 64, "f16", is_rotated=False, is_tempered=True),
    Layer(None, 3, 3, 64, 50, "f16"),
    Layer(None, 6, 2, 48, 70, "f32"),
    Layer(None, 4, 2, 16, 40, "i8", is_normed=True, is_tempered=True),
]


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runner]:
    """All cases on every instruction set that runs here."""
    return build_runners([case for layer in CASES for case in layer.cases()], tmp_path_factory.mktemp("qkv"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runner]:
    """Two cases on one instruction set."""
    cases = [case for layer in CASES[:2] for case in layer.cases()]
    return {"x86_64_v3": Library(cases, "x86_64_v3", tmp_path_factory.mktemp("one"))}


def _inputs(layer: Layer) -> tuple[list[Array], Array]:
    """x (quantized: three arrays), and the packed weight."""
    import ml_dtypes

    random = np.random.default_rng(5)
    x = random.standard_normal((ROWS, layer.k)).astype(np.float32)
    if layer.format is None:
        none = np.zeros((ROWS, 1), np.float32)
        matrix = random.standard_normal((layer.width, layer.k)).astype(ml_dtypes.bfloat16)
        return [x, none, none], pack_pairs(matrix, None)
    rows = quantize_rows(x, layer.format)
    return [rows.q, rows.scale, rows.sum], GroupedMatrix.random(layer.format, layer.width, layer.k, random).pack()


def _places() -> tuple[Array, Array, Array]:
    """Positions around a page's end of two sequences, and the pages of both, those of the first backwards."""
    positions = np.concatenate([np.arange(248, 248 + ROWS - 5), np.arange(5)]).astype(np.int32)
    sequences = np.array([0] * (ROWS - 5) + [1] * 5, np.int32)
    return positions, sequences, np.array([[2, 1, 0], [0, 0, 0]], np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("layer", CASES, ids=lambda layer: layer.name)
def test_the_bits_of_the_kernels_apart(runners: dict[str, Runner], layer: Layer) -> None:
    _check(runners, layer)


@pytest.mark.parametrize("layer", CASES[:2], ids=lambda layer: layer.name)
def test_the_bits_on_one_instruction_set(one: dict[str, Runner], layer: Layer) -> None:
    _check(one, layer)


def _check(runners: dict[str, Runner], layer: Layer) -> None:
    random = np.random.default_rng(6)
    x, weights = _inputs(layer)
    positions, sequences, pages = _places()
    angles = random.uniform(-3, 3, (ROWS, layer.dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def run(name: str, runner: Runner, threads: int, rows: int) -> Array:
        q = np.zeros((rows, layer.heads * layer.dim), np.float32)
        cache = np.zeros((PAGES, LAYERS * layer.kv_heads * layer.head_bytes), np.uint8)
        tables = [positions[:rows].copy(), sequences[:rows].copy(), pages, cos[:rows].copy(), sin[:rows].copy()]
        products = np.zeros((rows, layer.width), np.float32)
        given = [part[:rows].copy() for part in x]
        runner.run(f"{name}-{layer.name}", threads, [rows], [q, cache, *tables, products, *given, weights])
        return _by_row(layer, q, cache, positions[:rows], sequences[:rows], pages)

    expected = run("apart", next(iter(runners.values())), 1, ROWS)
    assert expected[:, layer.heads * layer.dim :].any(axis=1).all()
    check_every_way(runners, expected, lambda runner, threads, rows: run("fused", runner, threads, rows))


def _by_row(layer: Layer, q: Array, cache: Array, positions: Array, sequences: Array, pages: Array) -> Array:
    """Each row's q, and the bytes of its keys, values and scales; all other bytes of the cache must be zero."""
    _, element, scales = KV_TYPES[layer.kv]
    heads = cache.reshape(PAGES, LAYERS, layer.kv_heads, layer.head_bytes)
    front = PAGE * scales
    keys = heads[..., front : front + PAGE * layer.dim * element]
    values = heads[..., front + PAGE * layer.dim * element :]
    pair = 2 if layer.kv == "i8" else 1  # elements that lie side by side
    keys = keys.reshape(PAGES, LAYERS, layer.kv_heads, PAGE // 16, layer.dim // pair, 16, pair * element)
    values = values.reshape(PAGES, LAYERS, layer.kv_heads, PAGE // pair, layer.dim, pair, element)
    found, seen = [], 0
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        page, slot = pages[sequence, position // PAGE], position % PAGE
        parts = [keys[page, LAYER, :, slot // 16, :, slot % 16], values[page, LAYER, :, slot // pair, :, slot % pair]]
        parts += [heads[page, LAYER, :, at + 2 * slot : at + 2 * slot + 2] for at in (0, 2 * PAGE) if front]
        cached = np.concatenate([part.reshape(-1) for part in parts])
        seen += int((cached != 0).sum())
        found.append(np.concatenate([q[row].view(np.uint8), cached]))
    assert int((cache != 0).sum()) == seen, "wrote beyond the rows"
    return np.stack(found)
