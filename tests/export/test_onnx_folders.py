"""`llamac export --to onnx` and `--to onnx-genai`: whole folders, their checks, and the consumers that run them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from quantized_folders import Packer, awq, fp8_rows, quantize_folder
from tiny_gguf import write_tiny_gguf
from tiny_llama import TinyShape, make_reference, reference_logits, relative_error, save_checkpoint, some_ids
from tiny_llama4 import Tiny4, checkpoint_of, make_model, weights_of
from tiny_pictures import make_llama4, make_mllama

from llamac.backends.onnx.sessions import GenaiModel, OnnxSession
from llamac.errors import LlamacError
from llamac.export.entry import ExportResult, export
from llamac.export.onnx_check import greedy
from llamac.golden import read_golden
from llamac.models.checkpoint import Checkpoint
from llamac.models.sources import embedded_model, open_source

SHAPE = TinyShape(width=96, inner=128)
FORMS = ("onnx", "onnx-genai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as transformers saves it."""
    return save_checkpoint(make_reference(SHAPE), SHAPE, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def llama4() -> Checkpoint:
    """A tiny Llama 4 in memory."""
    config = Tiny4().config()
    return checkpoint_of(weights_of(make_model(Tiny4()), config), config)


def names_of(result: ExportResult) -> list[str]:
    assert result.checks is not None
    return [check.name.split(",")[0] for check in result.checks]


@pytest.mark.parametrize("scheme", ["keep", "bf16", "int8", "int4:asym"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checked_export(form: str, scheme: str, folder: Path, tmp_path: Path) -> None:
    result = export(folder, to=form, output=tmp_path / "out", quantize=scheme, check=True)
    expected = ["onnx.checker", "weights", "logits", "probabilities"]
    assert names_of(result) == expected + (["onnxruntime-genai"] if form == "onnx-genai" else [])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"model.onnx", "model.onnx.data", "config.json", "generation_config.json", "llamac-export.json"}
    assert ("genai_config.json" in files) == (form == "onnx-genai")


@pytest.mark.parametrize("form", FORMS)
def test_llama4(form: str, llama4: Checkpoint, tmp_path: Path) -> None:
    """onnxruntime-genai runs experts, chunks, layers without rotation and temperature too, past a chunk of 8."""
    result = export(llama4, to=form, output=tmp_path / "out", quantize="int8", check=True)
    assert names_of(result)[-1] == ("onnxruntime-genai" if form == "onnx-genai" else "probabilities")


def test_onnxruntime_matches_transformers_through_the_folder(folder: Path, tmp_path: Path) -> None:
    ids = some_ids(SHAPE.vocab, 17)
    reference = reference_logits(make_reference(SHAPE), ids)
    for form in FORMS:
        export(folder, to=form, output=tmp_path / form, options={"logits": "all"})
        session = OnnxSession(tmp_path / form)
        found = np.concatenate([session.step(ids[:9]), session.step(ids[9:16]), session.step(ids[16:])])
        assert relative_error(found, reference) < 1e-4
        session.restart()
        assert relative_error(session.step(ids), reference) < 1e-4


def test_genai_writes_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    """With the past in one buffer that it shares with the present, from prompts of several lengths."""
    import torch

    export(folder, to="onnx-genai", output=tmp_path / "out")
    model, reference = GenaiModel(tmp_path / "out"), make_reference(SHAPE)
    for length in (1, 2, 9, 40):
        ids = some_ids(SHAPE.vocab, length, seed=length)
        with torch.no_grad():
            prompt = torch.tensor([ids])
            seen = torch.ones_like(prompt)
            wanted = reference.generate(prompt, attention_mask=seen, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert model.greedy(ids, 12) == wanted[0, length:].tolist()


@pytest.mark.parametrize("logits", ["last", "all"])
def test_genai_with_a_batch_of_several_lengths(logits: str, folder: Path, tmp_path: Path) -> None:
    """It pads behind the text: each sequence's own last token counts."""
    import onnxruntime_genai

    export(folder, to="onnx-genai", output=tmp_path / "out", options={"logits": logits})
    alone, prompts = GenaiModel(tmp_path / "out"), [some_ids(SHAPE.vocab, 5), some_ids(SHAPE.vocab, 9, seed=1)]
    model = onnxruntime_genai.Model(str(tmp_path / "out"))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, batch_size=2, max_length=14, min_length=14)
    generator = onnxruntime_genai.Generator(model, parameters)
    pad = 2  # as genai_config.json says
    generator.append_tokens(np.array([[*prompts[0], *[pad] * 4], prompts[1]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    for index, prompt in enumerate(prompts):
        assert generator.get_sequence(index)[9:].tolist() == alone.greedy(prompt, 5)


@pytest.mark.slow
def test_smollm2_writes_the_golden_text(tmp_path: Path) -> None:
    """onnxruntime-genai on the exported folder against transformers in fp32, by ids and by text."""
    source = embedded_model()
    export(source, to="onnx-genai", output=tmp_path / "out", options={"accuracy": "1"})
    model, vectors = GenaiModel(tmp_path / "out"), read_golden(None, open_source(source), "keep", [])["vectors"]
    assert len(vectors) > 2
    for vector in vectors:
        ids, end = vector["greedy_ids"], 2
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        assert model.greedy(vector["prompt_ids"], len(ids)) == ids
    assert model.encode("The capital of France is") == [504, 3575, 282, 4649, 314]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["f32", "int4"])
@pytest.mark.parametrize("form", FORMS)
def test_smollm2_with_every_check(form: str, scheme: str, tmp_path: Path) -> None:
    result = export(embedded_model(), to=form, output=tmp_path / "out", quantize=scheme, check=True)
    assert names_of(result)[-1] == ("onnxruntime-genai's tokenizer" if form == "onnx-genai" else "probabilities")


def test_gguf_blocks_are_kept_as_they_are(tmp_path: Path) -> None:
    """Q4_K, with its minima, and Q6_K, in groups of 16: no value changes on the way."""
    shape = TinyShape(group=2, head_dim=64, scaled=False, width=256, inner=512)
    for kind in (Type.Q4_K, Type.Q6_K):
        path = tmp_path / f"{kind.name}.gguf"
        tiny = write_tiny_gguf(path, shape, lambda name, kind=kind: Type.F32 if "norm" in name else kind)  # type: ignore[misc]
        ids = some_ids(shape.vocab, 12)
        for form in FORMS:
            export(path, to=form, output=tmp_path / f"{form}-{kind.name}")
            found = OnnxSession(tmp_path / f"{form}-{kind.name}", exact=True).step(ids)[-1:]
            assert relative_error(found, reference_logits(tiny.reference, ids)[-1:]) < 1e-4


def test_divisors_of_gguf_are_in_the_graph(tmp_path: Path) -> None:
    """rope_freqs.weight scales the rotation, whatever config.json can say of it."""
    shape = TinyShape(width=96, inner=160)
    tiny = write_tiny_gguf(tmp_path / "m.gguf", shape, lambda name: Type.F32, llama3=True)
    ids = some_ids(shape.vocab, 40)
    for form in FORMS:
        export(tmp_path / "m.gguf", to=form, output=tmp_path / form)
        found = OnnxSession(tmp_path / form).step(ids)[-1:]
        assert relative_error(found, reference_logits(tiny.reference, ids)[-1:]) < 1e-4


def test_the_settings_of_genai(folder: Path, tmp_path: Path) -> None:
    export(folder, to="onnx-genai", output=tmp_path / "out", options={"logits": "last", "accuracy": "1"})
    settings = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    model, decoder = settings["model"], settings["model"]["decoder"]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"]) == (131, 2048, 2)
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (2, 2, 16)
    assert "position_ids" not in decoder["inputs"]
    assert settings["search"]["past_present_share_buffer"] is True
    assert GenaiModel(tmp_path / "out").greedy([5, 6, 7], 4) == greedy(OnnxSession(tmp_path / "out"), [5, 6, 7], 4)


def test_a_wrong_weight_fails_the_check(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.backends.onnx.external_data import ExternalData

    write = ExternalData.write

    def with_a_flipped_bit(self: ExternalData, path: Path, *others: object) -> None:
        write(self, path, *others)  # type: ignore[arg-type]
        tensor = next(t for t in self.tensors if t.name == "layers.1.mlp.down")
        data = bytearray(path.read_bytes())
        data[tensor.offset + 5] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(ExternalData, "write", with_a_flipped_bit)
    with pytest.raises(LlamacError, match=r"LLC0921 weights: rows 0\.\. of layers\.1\.mlp\.down differ"):
        export(folder, to="onnx", output=tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()


def test_a_wrong_graph_fails_the_check(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.backends.onnx import norm_rules

    exact = norm_rules.normalized
    monkeypatch.setattr(norm_rules, "normalized", lambda e, x, eps: exact(e, x, 100 * eps))
    with pytest.raises(LlamacError, match="LLC0921 logits"):
        export(folder, to="onnx", output=tmp_path / "out", check=True)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"quantize": "fp8"}, "LLC0923", "(the nearest is 'int8')"),
        ({"quantize": "q4_1"}, "LLC0923", "(the nearest is 'int4:asym')"),
        ({"quantize": "int4:g48"}, "LLC0923", "int4:g64"),
        ({"options": {"logits": "some"}}, "LLC0924", "all or last"),
        ({"options": {"accuracy": "7"}}, "LLC0924", "4 or 1"),
        ({"options": {"logit": "last"}}, "LLC0924", "logits"),
    ],
)
def test_bad_options(options: dict[str, object], code: str, words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamacError) as caught:
        export(folder, to="onnx-genai", output=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    checkpoint = open_source(embedded_model())
    endless = replace(checkpoint, generation=replace(checkpoint.generation, stop_ids=()))
    with pytest.raises(LlamacError, match="LLC0934 generation"):
        export(endless, to="onnx-genai", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_text_side_of_llama4_with_pictures(tmp_path: Path) -> None:
    """onnxruntime-genai has no place for its pictures, which the ledger says and --strict refuses."""
    make_llama4(tmp_path / "source")
    result = export(tmp_path / "source", to="onnx-genai", output=tmp_path / "out")
    assert ("absent", "pictures") in {(entry.kind, entry.where) for entry in result.ledger}
    with pytest.raises(LlamacError, match="LLC0105 pictures"):
        export(tmp_path / "source", to="onnx-genai", output=tmp_path / "strict", strict=True)


def test_cross_attention_to_pictures_has_no_form_in_genai(tmp_path: Path) -> None:
    make_mllama(tmp_path / "source")
    with pytest.raises(LlamacError, match=r"LLC0932 layers\.\d+.*--to onnx"):
        export(tmp_path / "source", to="onnx-genai", output=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["keep", "bf16", "int8", "int4:asym"])
@pytest.mark.parametrize("make", [make_llama4, make_mllama])
def test_a_checked_export_of_a_model_that_sees(make: Callable[[Path], object], scheme: str, tmp_path: Path) -> None:
    """Three graphs, each checked, and logits with a picture; nothing left out."""
    make(tmp_path / "source")
    result = export(tmp_path / "source", to="onnx", output=tmp_path / "out", quantize=scheme, check=True, strict=True)
    expected = ["onnx.checker", "weights"] * 3 + ["logits with a picture", "probabilities with a picture"]
    assert names_of(result) == expected
    kept = {entry.where for entry in result.ledger if entry.kind == "kept"}
    assert ("vision" in kept) == ("int" in scheme)


def test_a_wrong_encoder_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamac.backends.onnx import encoder_rules

    monkeypatch.setattr(encoder_rules, "math", SimpleNamespace(sqrt=lambda x: 1.5))
    make_llama4(tmp_path / "source")
    with pytest.raises(LlamacError, match="LLC0921 logits with a picture"):
        export(tmp_path / "source", to="onnx", output=tmp_path / "out", check=True)


def test_no_torch_is_needed(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from llamac.export.entry import export\n"
        f"export({str(folder)!r}, to='onnx-genai', output={str(tmp_path / 'out')!r}, quantize='int4', check=True)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "out" / "model.onnx").is_file()


QUANTIZED: dict[str, tuple[dict[str, object], Packer]] = {
    "fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8_rows(np.float32)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, awq(32)),
}
"""Layout -> the config of such a checkpoint, and what packs a matrix so."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", QUANTIZED)
def test_quantized_checkpoints_are_taken_as_they_are(layout: str, form: str, tmp_path: Path) -> None:
    """fp8 and 4 bits with zero points: the values are those of the packed words."""
    import torch

    shape, ids = TinyShape(width=96, inner=128, kv_heads=2, group=2), some_ids(131, 12)
    folder = save_checkpoint(make_reference(shape), shape, tmp_path / "source")
    values = quantize_folder(folder, *QUANTIZED[layout])
    model = make_reference(shape)
    model.load_state_dict({name: torch.from_numpy(np.asarray(v, np.float32)) for name, v in values.items()})
    result = export(folder, to=form, output=tmp_path / "out", options={"logits": "all"}, check=True)
    assert "widened" not in {entry.kind for entry in result.ledger}
    found = OnnxSession(tmp_path / "out", exact=True).step(ids)
    assert relative_error(found, reference_logits(model, ids)) < 1e-4
