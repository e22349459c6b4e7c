"""Makes tests/capture/optimum_model/: a small Llama exported by optimum, and the logits of transformers for it.

    pip install optimum-onnx==0.1.0 onnxruntime && python tests/capture/make_optimum_model.py

optimum asks for older versions of transformers than llamac's tests, so its model is kept here.
expected.json names the versions.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from optimum.exporters.onnx import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "optimum_model"
IDS = [3, 60, 0, 14, 14, 9, 55, 2, 31, 48, 1, 40]
KEPT = ("model.onnx", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def make_model() -> LlamaForCausalLM:
    """Two layers, grouped queries, Llama 3's rope scaling, weights large enough for errors to show."""
    torch.manual_seed(7)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, max_position_embeddings=256, rope_theta=5e5,
        rope_scaling={**scaling, "original_max_position_embeddings": 64}, tie_word_embeddings=False, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(8)
        else:
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Single bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:61]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def main() -> None:
    """Export, and keep what the test needs."""
    model = make_model()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        model.save_pretrained(source)
        make_tokenizer().save_pretrained(source)
        main_export(str(source), str(made), task="text-generation-with-past", do_validation=False, no_post_process=True)
        FOLDER.mkdir(exist_ok=True)
        for name in KEPT:
            (FOLDER / name).write_bytes((made / name).read_bytes())
    logits = model(torch.tensor([IDS])).logits[0]
    versions = {name: version(name) for name in ("optimum", "optimum-onnx", "transformers", "torch", "onnx")}
    expected = {"versions": versions, "ids": IDS, "logits": [[round(x, 6) for x in row] for row in logits.tolist()]}
    (FOLDER / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
