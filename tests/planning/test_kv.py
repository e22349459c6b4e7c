"""Cache sizes against the family's published figures."""

from __future__ import annotations

import pytest

from llamac.models.presets import preset
from llamac.planning.kv import KvGroup, kv_groups


def groups(name: str, context: int, dtype: str = "bf16", tp: int = 1, images: int = 0) -> dict[str, KvGroup]:
    return {g.kind: g for g in kv_groups(preset(name), context, 512, dtype, tp, images)}


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        ("llama-2-7b", 524288),
        ("llama-2-13b", 819200),
        ("llama-2-70b", 327680),
        ("llama-3.1-8b", 131072),
        ("llama-3.3-70b", 327680),
        ("llama-3.1-405b", 516096),
        ("llama-3.2-1b", 32768),
        ("llama-3.2-3b", 114688),
    ],
)
def test_dense_models(name: str, token_bytes: int) -> None:
    found = groups(name, 4096)
    assert found.keys() == {"full"} and found["full"].token_bytes == token_bytes
    assert found["full"].bytes == 4096 * token_bytes


def test_a_context_lies_in_whole_pages() -> None:
    group = groups("llama-3.2-1b", 257)["full"]
    assert (group.pages, group.tokens, group.bytes) == (2, 257, 512 * 32768)


@pytest.mark.parametrize("name", ["llama-4-scout", "llama-4-maverick"])
def test_chunked_layers_keep_their_chunk(name: str) -> None:
    short, long = groups(name, 8192), groups(name, 262144)
    assert short["full"].token_bytes + short["chunked"].token_bytes == 196608
    assert long["full"].token_bytes == 49152 and long["full"].tokens == 262144
    # A chunk of 8192 positions, and one step.
    assert long["chunked"].bytes == pytest.approx(1.208e9 * 8704 / 8192, rel=1e-3)
    assert long["chunked"].bytes == groups(name, 16384)["chunked"].bytes > short["chunked"].bytes


def test_a_guard_within_one_chunk_keeps_everything() -> None:
    assert sum(g.bytes for g in groups("llama-guard-4-12b", 8192).values()) == 8192 * 196608


@pytest.mark.parametrize(("name", "token_bytes", "image"), [("11b", 32768, 209.8e6), ("90b", 81920, 524.6e6)])
def test_images_are_kept_for_cross_attention(name: str, token_bytes: int, image: float) -> None:
    name = f"llama-3.2-{name}-vision" + ("-instruct" if name == "11b" else "")
    found = groups(name, 4096, images=1)
    cross, three = found["cross"], groups(name, 4096, images=3)["cross"]
    assert cross.token_bytes == token_bytes and cross.tokens * token_bytes == pytest.approx(image, rel=1e-3)
    # They lie in whole pages, one picture after another.
    assert cross.pages == -(-cross.tokens // 256) and cross.bytes == cross.pages * 256 * token_bytes
    assert three.tokens == 3 * cross.tokens and three.pages == -(-3 * cross.tokens // 256)
    assert "cross" not in groups(name, 4096)
    assert found["full"].layers == preset(name).layers - len(preset(name).cross_layers)


def test_types() -> None:
    sizes = {dtype: groups("llama-3.1-8b", 4096, dtype)["full"].token_bytes for dtype in ("f32", "f16", "fp8", "int8")}
    assert sizes == {"f32": 262144, "f16": 131072, "fp8": 65536, "int8": 65536 + 32 * 2 * 8 * 2}


def test_devices_share_heads_and_repeat_them_when_there_are_too_few() -> None:
    whole = groups("llama-3.1-405b", 4096)["full"].bytes
    assert groups("llama-3.1-405b", 4096, tp=8)["full"].bytes == whole // 8
    assert groups("llama-3.1-405b", 4096, tp=16)["full"].bytes == whole // 8
