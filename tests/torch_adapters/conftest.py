"""What the tests of the PyTorch adapters share: a tiny Llama of transformers, and its artifact in f32."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

pytest.importorskip("torch", reason="these tests compare with torch: pip install -e '.[test]'")
pytest.importorskip("transformers", reason="these tests compare with transformers: pip install -e '.[test]'")

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from llamac.torch.model import LlamacModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it: weights, a tokenizer whose ids 0..255 are bytes, and how to generate."""
    from tiny_llama import TinyShape, make_reference, save_checkpoint
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shape = TinyShape(context=640, vocab=260, seed=4)
    made = make_reference(shape)
    made.generation_config.update(
        bos_token_id=256, eos_token_id=257, pad_token_id=257, do_sample=True, temperature=0.8, top_k=20
    )
    made.config.bos_token_id, made.config.eos_token_id = 256, 257
    folder = save_checkpoint(made, shape, tmp_path_factory.mktemp("torch") / "tiny")
    library = Tokenizer(
        models.BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<bos>", "<eos>", "<user>", "<assistant>"])
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", chat_template=template
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> LlamaForCausalLM:
    """The model in torch, f32."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval().requires_grad_(False)


@pytest.fixture(scope="session")
def artifact(checkpoint: Path) -> Path:
    """The same model, compiled in f32 with steps of at most 16 tokens."""
    import llamac

    path = checkpoint.with_name("tiny.llamac")
    llamac.compile(checkpoint, output=path, quantize="f32", max_step_tokens=16)
    return path


@pytest.fixture(scope="session")
def shared_model(artifact: Path) -> Iterator[LlamacModel]:
    from llamac.torch import LlamacModel

    with LlamacModel.from_artifact(artifact, threads=1) as loaded:
        yield loaded


@pytest.fixture
def model(shared_model: LlamacModel) -> Iterator[LlamacModel]:
    """The artifact behind transformers; every page must have come back when the test is over."""
    import gc

    yield shared_model
    pools = shared_model.artifact.session.pools
    if any(pool.free_pages != pool.page_count for pool in pools):
        gc.collect()
    for pool in pools:
        assert pool.free_pages == pool.page_count, "pages were lost"
