"""The kernels of pictures compiled at the sizes of Scout and of Llama 3.2 11B Vision: no spills, matrix units used."""

from __future__ import annotations

from collections import Counter

import pytest
from picture_kernels_of import MODELS, buckets_of, encoder_of, picture_requests_of
from test_compiled_kernels import EVERY, MAY_SPILL, QUICK, compiled, matrix_instruction

from llamac.backends.gpu.request import KernelRequest

PRODUCTS = {"image_linear", "attend_all", "prefill_vision"}
QUICKEST = {"sm_90": {"attend_all", "append_tokens", "prefill_vision"}, "gfx942": {"image_linear", "decode_vision"}}
"""Target -> kernels of which the quick test compiles one of each."""


def check(requests: list[KernelRequest], target: str) -> None:
    """Within the budgets of every kernel, and products by the widest matrix instruction that the target has."""
    for request, kernel in compiled(requests, target):
        if request.kernel in PRODUCTS and target not in MAY_SPILL:
            assert matrix_instruction(request, target) in kernel.assembly, request.label


@pytest.mark.parametrize("target", list(QUICKEST))
def test_one_of_each(target: str) -> None:
    first: dict[str, KernelRequest] = {}
    for request in picture_requests_of("vision-11b", target):
        first.setdefault(request.kernel, request)
    check([first[name] for name in sorted(QUICKEST[target])], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_target(name: str, target: str) -> None:
    check(list(picture_requests_of(name, target)), target)


@pytest.mark.parametrize("target", QUICK)
def test_launches_of_blocks_and_layers(target: str) -> None:
    """Eight a block with rotation, seven without, nine with gates; a layer that sees pictures decodes in six."""
    for name, wanted in (("scout", {8}), ("vision-11b", {7, 9})):
        blocks = Counter(c.where.rpartition(".")[0] for c in encoder_of(name, target).body if "layers." in c.where)
        assert {n for block, n in blocks.items() if block.startswith("vision.")} == wanted, name
    for bucket in buckets_of("vision-11b", target)[:-1]:
        layers = Counter(call.where.split(".")[1] for call in bucket.body if call.where.startswith("layers."))
        assert set(layers.values()) == {5, 6}


def test_memory_of_an_encoder_is_bounded() -> None:
    """Scout's keeps what one block needs; that of whole pictures also what joins its output."""
    sizes = {name: encoder_of(name, "sm_90").arena_bytes for name in MODELS}
    assert sizes["scout"] < 32e6 and sizes["vision-11b"] < 280e6
