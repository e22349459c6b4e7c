"""Meta's own layout: loaded by torch and computed by Meta's own code, and read back by llamac."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sentencepiece_format import SENTENCES, trained
from tiny_gguf import to_pairs
from tiny_llama import TinyShape, make_reference, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, make_model, save_model
from tiny_meta import llama3, llama4, meta_logits, published_llama4, sharded, write_meta
from tiny_pictures import make_llama4

from llamac.errors import LlamacError
from llamac.export.entry import export
from llamac.export.interpreted_logits import interpreted_logits
from llamac.export.meta_params import meta_params
from llamac.export.meta_tokenizer import sentencepiece_model, tokenizer_model
from llamac.export.torch_file import described
from llamac.models.llama.config import RopeScaling
from llamac.models.llama.meta_config import config_from_meta
from llamac.models.llama.sentencepiece_format import read_sentencepiece
from llamac.models.presets import preset
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import open_source

SHAPE = TinyShape(group=2, head_dim=16, width=64, inner=224, scaled=False)
SAME_F32 = 1e-5


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    found = torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)
    assert isinstance(found, dict)
    return found


def params_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "params.json").read_text()))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_metas_own_code_computes_it(tied: bool, tmp_path: Path) -> None:
    """Rows of q and k come interleaved; a tied head is written out, and found again to be tied."""
    shape = replace(SHAPE, tied=tied)
    model = make_reference(shape)
    result = export(save_checkpoint(model, shape, tmp_path / "m"), to="meta", output=tmp_path / "out", check=True)
    assert result.checks is not None and [check.name for check in result.checks] == ["config", "weights", "logits"]
    state = state_of(tmp_path / "out")
    theirs = llama3(params_of(tmp_path / "out"), shape.vocab)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    ids = some_ids(shape.vocab, 24)
    assert relative_error(meta_logits(theirs, ids), interpreted_logits(open_source(tmp_path / "m"), ids)) < SAME_F32
    q = model.model.layers[1].self_attn.q_proj.weight.numpy()
    assert np.array_equal(state["layers.1.attention.wq.weight"].numpy(), to_pairs(q, shape.head_dim))
    assert open_source(tmp_path / "out").config.tied_head == tied


def test_a_shard_of_bf16_has_aligned_data(tmp_path: Path) -> None:
    source = save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path / "m")
    for name in ("a", "b"):
        export(source, to="meta", output=tmp_path / name, quantize="bf16", check=True)
    first, second = ((tmp_path / name / "consolidated.00.pth").read_bytes() for name in ("a", "b"))
    assert first == second
    state = state_of(tmp_path / "a")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert all(value.data_ptr() % 64 == 0 for value in torch.load(tmp_path / "a" / "consolidated.00.pth").values())


def test_llama4(tmp_path: Path) -> None:
    """A folder of Meta's, read and written again: the same tensors under the same names."""
    params = {
        "dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 144, "multiple_of": 32, "norm_eps": 1e-5,
        "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "rope_theta": 500000.0, "use_scaled_rope": True,
        "rope_scaling_factor": 16.0, "rope_high_freq_factor": 1.0, "attention_chunk_size": 8, "nope_layer_interval": 4,
        "use_qk_norm": True, "attn_temperature_tuning": True, "floor_scale": 4.0, "attn_scale": 0.1,
        "moe_args": {"num_experts": 4, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1,
                     "interleave_moe_layer_step": 2},
    }  # fmt: skip
    model = llama4(params)
    before = published_llama4(model)
    write_meta(tmp_path / "m", sharded(before, 1, params), params)
    export(tmp_path / "m", to="meta", output=tmp_path / "out", check=True)
    after = state_of(tmp_path / "out")
    weights = {name for name in before if "_extra_state" not in name and not name.startswith("rope")}
    assert set(after) == weights
    assert [name for name in weights if not torch.equal(after[name], before[name])] == []
    first, _ = config_from_meta(params, 144, "f32")
    again, _ = config_from_meta(params_of(tmp_path / "out"), 144, "f32")
    assert first == again


def test_llama4_from_hugging_face(tmp_path: Path) -> None:
    shape = Tiny4()
    save_model(make_model(shape), shape, tmp_path / "m")
    checkpoint = open_source(tmp_path / "m")
    result = export(tmp_path / "m", to="meta", output=tmp_path / "out", check=True)
    assert result.checks is not None and len(result.checks) == 3
    assert open_source(tmp_path / "out").config.moe == checkpoint.config.moe


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b",
                                  "llama-3.2-3b", "llama-4-scout", "llama-4-maverick"])  # fmt: skip
def test_published_shapes(name: str) -> None:
    """params.json of every release comes back, with the multipliers that Meta chose where they are known."""
    config = preset(name)
    params, found = meta_params(config)
    wanted = replace(config, rope_style="interleaved", name="", context_length=found.context_length, dtype=found.dtype)
    assert replace(found, name="") == wanted
    assert params["multiple_of"] in (256, 1024, 2048, 4096)
    if name in ("llama-3-8b", "llama-3.1-70b"):
        assert params["ffn_dim_multiplier"] == 1.3


def test_a_factor_that_metas_code_does_not_read(tmp_path: Path) -> None:
    config = replace(preset("tiny"), rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192), rope_theta=500000.0)
    result = export(random_checkpoint(config, 1), to="meta", output=tmp_path / "out", check=True)
    assert any(entry.what == "rope_scaling_factor 32" for entry in result.ledger)
    assert open_source(tmp_path / "out").config.rope_scaling == config.rope_scaling


def test_numbers_beyond_32_bits() -> None:
    """The pickle of a tensor of 21.5 GB, by the standard library's reader of opcodes."""
    import pickletools

    from llamac.export.torch_file import StreamedTensor

    pickled = described([StreamedTensor("w", "BF16", (655360, 16384), lambda: iter(()))])
    numbers = [argument for opcode, argument, _ in pickletools.genops(pickled) if isinstance(argument, int)]
    assert 655360 * 16384 in numbers


def test_the_tokenizer_of_llama2(tmp_path: Path) -> None:
    """The sentencepiece library reads the written model and gives the ids of the one that it was made from."""
    library = pytest.importorskip("sentencepiece")
    data, oracle = trained()
    stored = json.loads(read_sentencepiece(data, "x").vocabulary())
    made = library.SentencePieceProcessor(model_proto=sentencepiece_model(stored))
    rng, alphabet = random.Random(1), "".join(SENTENCES) + " ▁\t\n😀ß€"
    for text in [*SENTENCES, *("".join(rng.choices(alphabet, k=30)) for _ in range(200))]:
        ids = oracle.encode(text)
        assert made.encode(text) == ids and made.decode(ids) == oracle.decode(ids)
    assert (made.bos_id(), made.eos_id(), made.unk_id()) == (oracle.bos_id(), oracle.eos_id(), oracle.unk_id())


@pytest.mark.slow
def test_the_tokenizer_of_llama3(tmp_path: Path) -> None:
    """From Hugging Face's tokenizer.json come Meta's own bytes again."""
    from importlib.util import find_spec

    from llamac.export.hf_tokenizer import tokenizer_files
    from llamac.models.hf_text import read_text_files

    found = find_spec("llama_models")
    assert found is not None and found.submodule_search_locations is not None
    data = (Path(found.submodule_search_locations[0]) / "llama3" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data)
    text = read_text_files(tmp_path, {}, 128256)
    config = replace(preset("tiny"), vocab_size=128256)
    checkpoint = replace(random_checkpoint(config, 1), tokenizer=text.tokenizer, generation=text.generation)
    assert tokenizer_model(checkpoint) == data
    (tmp_path / "hf").mkdir()
    for name, content in tokenizer_files(checkpoint).items():
        (tmp_path / "hf" / name).write_bytes(content)
    again = read_text_files(tmp_path / "hf", {}, 128256)
    made = tokenizer_model(replace(checkpoint, tokenizer=again.tokenizer))
    assert made is not None and made.split() == data.split()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 32}, r"LLC0951 layers\.N\.attn: heads of 32, where Meta's code takes"),
        ({"rms_norm_eps": 1e-5, "scaled": True}, "LLC0951 rope_scaling: no params.json gives its rope_scaling"),
    ],
)
def test_what_params_json_cannot_say(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    shape = replace(SHAPE, **{key: value for key, value in changes.items() if key != "rms_norm_eps"})
    source = save_checkpoint(make_reference(shape), shape, tmp_path / "m")
    with pytest.raises(LlamacError, match=message):
        export(source, to="meta", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_images(tmp_path: Path) -> None:
    """Llama 4's encoder has constants of Meta's that this one differs in."""
    make_llama4(tmp_path / "m")
    with pytest.raises(LlamacError, match="LLC0951 vision"):
        export(tmp_path / "m", to="meta", output=tmp_path / "out")


def test_an_encoder_of_metas_own(tmp_path: Path) -> None:
    """Llama 4 with images, from Meta's layout to Hugging Face's and back to the same files."""
    from test_meta_images import IMAGES4, random_tensor

    from llamac.models.llama.vision_config import Llama4Vision
    from llamac.models.llama.weights import META
    from llamac.models.llama4 import vision_weights
    from llamac.models.name_table import MODEL

    before = published_llama4(llama4({key: value for key, value in IMAGES4.items() if key != "vision_args"}))
    vision = Llama4Vision(32, 128, 2, 2, 56, 14, 3, 1e4, 1e-5, 0.5, 48, 48, 200092, 200080, 200081)
    for name, shape in vision_weights.expected_vision_shapes(vision, 64).items():
        stored = vision_weights.NAMES.translated(name, MODEL, META)
        assert stored is not None
        before[stored] = random_tensor(shape)
    write_meta(tmp_path / "m", sharded(before, 1, IMAGES4), IMAGES4)
    export(tmp_path / "m", to="hf", output=tmp_path / "hf", check=True)
    export(tmp_path / "hf", to="meta", output=tmp_path / "out", check=True)
    after = state_of(tmp_path / "out")
    assert set(after) == {name for name in before if "_extra_state" not in name and not name.startswith("rope")}
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == []
