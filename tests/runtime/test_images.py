"""Pictures: tiles against Meta's and transformers' preprocessing, tokens and spans against theirs, hostile files."""

from __future__ import annotations

import importlib
import io
import struct
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from llamac.errors import LlamacError
from llamac.runtime.images import picture as picture_module
from llamac.runtime.images.canvas import best_grid, drawn_size
from llamac.runtime.images.llama4_tokens import (
    NO_IMAGE,
    TOKEN_NAMES,
    Llama4ImageTokens,
    image_tokens,
    place_images,
    spelled_out,
)
from llamac.runtime.images.mllama_spans import aspect_ratio_id, encoder_input, visible_tokens
from llamac.runtime.images.picture import open_picture
from llamac.runtime.images.settings import llama4_settings, mllama_settings, settings_of_model
from llamac.runtime.images.tiles import TiledImage, cut_into_tiles

TOLERANCE = 1e-6
"""Samples equal bit for bit before they are normalized in f32; transformers normalizes mllama's in another order."""

RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
SIZES = [(28, 28), (1, 1), (56, 28), (30, 200), (200, 30), (100, 99), (113, 57), (84, 84), (300, 7), (7, 300), (61, 29)]
"""Heights and widths around tiles of 28 pixels."""


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """Smooth colours with noise: resampling has something to get wrong."""
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[..., None]
    samples = (ramp + random.integers(0, 40, (height, width, channels))) % 256
    return Image.fromarray(samples.astype(np.uint8), "RGBA" if channels == 4 else "RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class _Normalize:
    """torchvision's transform of a tensor, as its documentation defines it."""

    def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def _resize(image: Image.Image, size: tuple[int, int], interpolation: Any = None) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def meta() -> dict[str, Any]:
    """Meta's preprocessing modules over the four functions of torchvision they call, which hand pictures to Pillow."""
    stub, functional = types.ModuleType("torchvision.transforms"), types.ModuleType("torchvision.transforms.functional")
    functional.resize = _resize  # type: ignore[attr-defined]
    stub.functional = functional  # type: ignore[attr-defined]
    stub.ToTensor = lambda: _to_tensor  # type: ignore[attr-defined]
    stub.Normalize = _Normalize  # type: ignore[attr-defined]
    stub.Resize = lambda size: lambda image: _resize(image, size)  # type: ignore[attr-defined]
    stub.Compose = lambda steps: lambda image: steps[2](steps[1](steps[0](image)))  # type: ignore[attr-defined]
    stub.InterpolationMode = types.SimpleNamespace(BILINEAR="bilinear")  # type: ignore[attr-defined]
    parent = types.ModuleType("torchvision")
    parent.transforms = stub  # type: ignore[attr-defined]
    names = {"torchvision": parent, "torchvision.transforms": stub, "torchvision.transforms.functional": functional}
    sources = {"mllama": "llama_models.llama3.multimodal.image_transform", "llama4": "llama_models.llama4.preprocess"}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in names.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # which importing the second sets for everyone
        # Other tests import them over another stand-in: neither must get the other's.
        theirs = {source: sys.modules.pop(source, None) for source in sources.values()}
        loaded = {name: importlib.import_module(source) for name, source in sources.items()}
        for source, module in theirs.items():
            del sys.modules[source]
            if module is not None:
                sys.modules[source] = module
    return loaded


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_llama4_tiles_equal_metas(size: tuple[int, int], meta: dict[str, Any]) -> None:
    image, tile = noise(*size), 28
    tiles, (rows, columns) = meta["llama4"].VariableSizeImageTransform(tile)(image, max_num_chunks=16)
    if len(tiles) > 1:
        overview = meta["llama4"].ResizeNormalizeImageTransform(tile, tile)(image)
        tiles = torch.cat([tiles, overview[None]])
    found = cut_into_tiles(image, llama4_settings(tile, 1))
    assert (found.rows, found.columns) == (rows, columns)
    assert (found.pixels == tiles.numpy()).all()


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 8], ids=str)
def test_mllama_tiles_equal_metas(size: tuple[int, int], meta: dict[str, Any]) -> None:
    """Sizes that Meta's code does not shrink to no pixels at all."""
    image, tile = noise(*size), 28
    tiles, (rows, columns) = meta["mllama"].VariableSizeImageTransform(tile)(image, max_num_chunks=4)
    found = cut_into_tiles(image, mllama_settings(tile, 5))
    assert (found.rows, found.columns) == (rows, columns)
    assert (found.pixels == tiles.numpy()).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mllama_inputs_equal_transformers(size: tuple[int, int]) -> None:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    settings = mllama_settings(28, 5)
    processor = MllamaImageProcessorPil(
        size={"height": 28, "width": 28}, image_mean=list(settings.mean), image_std=list(settings.std)
    )
    image = noise(*size)
    expected = processor(image, return_tensors="np")
    found = cut_into_tiles(image, settings)
    assert aspect_ratio_id(found, RATIOS) == expected["aspect_ratio_ids"][0, 0]
    assert found.tiles == expected["aspect_ratio_mask"][0, 0].sum()
    assert (
        np.abs(encoder_input(found, 4)[: found.tiles] - expected["pixel_values"][0, 0, : found.tiles]).max() < TOLERANCE
    )
    assert not encoder_input(found, 4)[found.tiles :].any()
    assert not expected["pixel_values"][0, 0, found.tiles :].any()


def test_grids_and_sizes_equal_metas_for_many_shapes(meta: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    transform = meta["llama4"].VariableSizeImageTransform(336)
    for most in (1, 4, 16):
        grids = torch.tensor(transform.find_supported_resolutions(most, 336))
        for height, width in random.integers(1, 6000, (150, 2)).tolist():
            # Meta's grids are (high, wide) but its picture sizes (wide, high), compared position by position: the grid
            # comes out with its sides exchanged, and the caller exchanges them back.
            canvas = transform.get_best_fit((width, height), grids)
            rows, columns = canvas[1] // 336, canvas[0] // 336
            assert best_grid(height, width, 336, most) == (rows, columns)
            target = min(max(width, 336), canvas[0]), min(max(height, 336), canvas[1])
            wide, high = transform.get_max_res_without_distortion((width, height), target)
            assert drawn_size(height, width, 336, (rows, columns)) == (max(high, 1), max(wide, 1))


def test_a_photograph(meta: dict[str, Any]) -> None:
    """A JPEG at the released tile size, through the file."""
    path = Path(importlib.import_module("llama_models").__file__ or "").parent / "resources/dog.jpg"
    tiles, _ = meta["llama4"].VariableSizeImageTransform(336)(Image.open(path).convert("RGB"), max_num_chunks=16)
    found = cut_into_tiles(open_picture(path), llama4_settings(336, 144))
    assert (found.pixels[: found.tiles] == tiles.numpy()).all()


def test_settings_of_the_released_models() -> None:
    scout = {"image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5}
    assert settings_of_model(scout) == llama4_settings(336, 144)
    for pixels, tokens in ((448, 1025), (560, 1601)):
        vision = {"image_size": pixels, "patch_size": 14, "max_tiles": 4, "taps": [3, 7]}
        assert settings_of_model(vision) == mllama_settings(pixels, tokens)
    for wrong in (
        {},
        {"patch_size": 0},
        {"patch_size": True},
        {"pixel_shuffle_ratio": 2.0},
        {"taps": [], "max_tiles": "4"},
    ):
        with pytest.raises(LlamacError, match=r"LLC0802 model\.config\.vision\."):
            settings_of_model({} if not wrong else scout | wrong)


# Opening.


def test_transparency_shows_white() -> None:
    image = noise(9, 12, channels=4)
    found = np.asarray(open_picture(encoded(image)), float)
    alpha = np.asarray(image, float)[..., 3:] / 255
    expected = np.asarray(image, float)[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(found - expected).max() <= 1, "more than rounding to a grey level"


def test_palettes_with_a_transparent_colour_and_grey_with_alpha() -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    found = np.asarray(open_picture(encoded(palette, transparency=0)))
    assert found.tolist() == [[[255] * 3, [200, 100, 50]], [[200, 100, 50], [255] * 3]]
    grey = Image.merge("LA", (Image.new("L", (1, 1), 7), Image.new("L", (1, 1), 0)))
    assert np.asarray(open_picture(encoded(grey))).tolist() == [[[255, 255, 255]]]


def test_pictures_are_turned_upright() -> None:
    image, exif = noise(10, 20), Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    turned = open_picture(encoded(image, exif=exif))
    assert turned.size == (10, 20)
    assert (np.asarray(turned) == np.rot90(np.asarray(image), -1)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"])
def test_formats(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(noise(20, 30), kind))
    assert open_picture(path).size == (30, 20)


# Refusals.


def _png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def _animated(kind: str) -> bytes:
    frames = [noise(8, 8, seed=seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _deep() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)))


REFUSED: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "LLC0831", "cannot be decoded"),
    ("text", b"not a picture at all", "LLC0831", "UnidentifiedImageError"),
    ("a TIFF", encoded(noise(4, 4), "TIFF"), "LLC0831", "UnidentifiedImageError"),
    ("a PDF", encoded(noise(4, 4), "PDF"), "LLC0831", "UnidentifiedImageError"),
    ("cut PNG", encoded(noise(64, 64))[:3000], "LLC0831", "cannot be decoded"),
    ("cut JPEG", encoded(noise(64, 64), "JPEG")[:900], "LLC0831", "cannot be decoded"),
    ("cut header", encoded(noise(64, 64))[:20], "LLC0831", "cannot be decoded"),
    ("no pixels in it", _png_header(100, 100), "LLC0831", "cannot be decoded"),
    ("bomb", _png_header(60000, 60000), "LLC0832", "pixels"),
    ("above the limit", _png_header(8001, 8000), "LLC0832", "8001 x 8000 pixels"),
    ("a long line", _png_header(70000, 1), "LLC0832", "70000 x 1 pixels"),
    ("animated GIF", _animated("GIF"), "LLC0833", "several frames"),
    ("animated PNG", _animated("PNG"), "LLC0833", "several frames"),
    ("animated WEBP", _animated("WEBP"), "LLC0833", "several frames"),
    ("16-bit PNG", _deep(), "LLC0831", "not 8 bits wide"),
]


@pytest.mark.parametrize(("data", "code", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(data: bytes, code: str, reason: str) -> None:
    with pytest.raises(LlamacError) as caught:
        open_picture(data, "image 2")
    assert (caught.value.code, caught.value.where) == (code, "image 2")
    assert reason in caught.value.reason and caught.value.hint


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_are_pictures_or_coded_errors(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")[seed % 6]
    data = bytearray(encoded(noise(40, 40), kind))
    for place in random.integers(0, len(data), 12):
        data[place] = random.integers(256)
    try:
        found = open_picture(bytes(data[: random.integers(1, len(data) + 1)]))
    except LlamacError as error:
        assert error.code in ("LLC0831", "LLC0832", "LLC0833")
    else:
        assert found.mode == "RGB"


def test_an_animation_that_is_cut_off_anywhere() -> None:
    """Where its second frame is damaged, Pillow finds that out while it looks for one."""
    frames = [Image.new("P", (20, 20), colour) for colour in range(3)]
    for place, frame in enumerate(frames):
        frame.putpixel((place, place), 9)
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data, codes = file.getvalue(), set[str]()
    for length in range(1, len(data)):
        try:
            open_picture(data[:length])
        except LlamacError as error:
            codes.add(error.code)
    assert codes == {"LLC0831", "LLC0833"}


def test_files_that_are_not_there_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LlamacError, match="LLC0831 image: cannot be read: No such file"):
        open_picture(tmp_path / "missing.png")
    with pytest.raises(LlamacError, match="LLC0831"):
        open_picture(tmp_path)
    with pytest.raises(LlamacError, match="LLC0831"):
        open_picture("a\0b")
    monkeypatch.setattr(picture_module, "LARGEST_FILE", 100)
    (tmp_path / "large.png").write_bytes(b"0" * 101)
    for source in (tmp_path / "large.png", b"0" * 101):
        with pytest.raises(LlamacError, match="LLC0832"):
            open_picture(source)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(LlamacError, match=r"LLC0830.*llamac\[images\]"):
        open_picture(b"")


# Tokens of Llama 4.

TOKENS = Llama4ImageTokens(200080, 200090, 200092, 200084, 200085, 200081)


def _grid(rows: int, columns: int, overview: bool = True) -> TiledImage:
    count = rows * columns + (overview and rows * columns > 1)
    return TiledImage(np.zeros((count, 3, 1, 1), np.float32), rows, columns)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (3, 5), (4, 4), (16, 1)], ids=str)
def test_llama4_tokens_equal_transformers(grid: tuple[int, int]) -> None:
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    text = Llama4Processor._prompt_split_image(None, grid, 9)
    ids = {name: getattr(TOKENS, field) for field, name in TOKEN_NAMES.items()}
    expected = [ids[f"{part}>"] for part in text.split(">")[:-1]]
    assert spelled_out(_grid(*grid), 9, TOKENS) == expected


def test_the_tokens_of_metas_vocabulary() -> None:
    special = importlib.import_module("llama_models.llama4.tokenizer").Tokenizer.get_instance().special_tokens
    assert image_tokens(special) == TOKENS
    with pytest.raises(LlamacError, match=r"LLC0837 tokenizer: the vocabulary has no token <\|tile_x_separator\|>"):
        image_tokens({name: n for name, n in special.items() if "tile_x" not in name})


def test_images_take_their_places_in_order() -> None:
    images = [_grid(1, 2), _grid(1, 1)]
    found = place_images([1, TOKENS.image, 2, 3, TOKENS.image, 4], images, 3, TOKENS)
    assert found.ids == [1, *spelled_out(images[0], 3, TOKENS), 2, 3, *spelled_out(images[1], 3, TOKENS), 4]
    rows = found.image_rows
    assert rows[rows != NO_IMAGE].tolist() == list(range((3 + 1) * 3))
    assert [token == TOKENS.patch for token in found.ids] == (rows != NO_IMAGE).tolist()
    alone = place_images([5, 6], [], 3, TOKENS)
    assert alone.ids == [5, 6] and alone.image_rows.tolist() == [-1, -1]


@pytest.mark.parametrize(("ids", "count", "code"), [([1, 200090], 0, "0834"), ([1], 1, "0834"), ([200092], 0, "0835")])
def test_prompts_that_do_not_fit_their_images(ids: list[int], count: int, code: str) -> None:
    with pytest.raises(LlamacError, match=f"LLC{code}"):
        place_images(ids, [_grid(1, 1)] * count, 4, TOKENS)


# Spans of mllama.

IMAGE = 9
PROMPTS = [
    [1, 2, 3],
    [1, 9, 2, 3],
    [9],
    [9, 9],
    [1, 9, 9, 2],
    [9, 1, 9, 2, 3],
    [1, 9, 2, 9, 9, 3, 9, 9, 9, 4],
    [9, 9, 1, 9],
]


@pytest.mark.parametrize("ids", PROMPTS, ids=str)
def test_visible_tokens_equal_transformers(ids: list[int]) -> None:
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    tiles = [1 + n % 4 for n in range(ids.count(IMAGE))]
    start, stop = visible_tokens(ids, IMAGE, [5 * n for n in tiles])
    spans = get_cross_attention_token_mask(ids, IMAGE)
    if not spans:
        assert not start.any() and not stop.any()
        return
    dense = convert_sparse_cross_attention_mask_to_dense([spans], [tiles], 4, len(ids))[0]
    real = np.concatenate([np.repeat(dense[:, n, :count], 5, axis=1) for n, count in enumerate(tiles)], axis=1)
    found = (np.arange(5 * sum(tiles)) >= start[:, None]) & (np.arange(5 * sum(tiles)) < stop[:, None])
    assert (found == real.astype(bool)).all()


def test_mllama_refusals() -> None:
    with pytest.raises(LlamacError, match="LLC0834"):
        visible_tokens([1, IMAGE], IMAGE, [])
    with pytest.raises(LlamacError, match=r"LLC0836 image: a grid of 3 x 3 tiles.*1 x 1, 1 x 2"):
        aspect_ratio_id(_grid(3, 3, overview=False), RATIOS)
