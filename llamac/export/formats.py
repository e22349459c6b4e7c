"""The forms that `llamac export` writes, as data: each row names the module that writes and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from llamac.errors import LlamacError, did_you_mean

from .request import Exporter

_GROUPED = ("int4", "int4:g64", "int4:g128", "int4:asym", "int4:g64:asym", "int4:g128:asym")

_SHARDED = {"shard": "largest file of weights, such as 500M or 2G [5G]"}
_CACHE = {"kv": "fp8: insist on the source's scales of a quantized key-value cache, which are kept in any case"}

_ALIKE = {
    "f32": ("bf16", "f16"),
    "f16": ("bf16", "f32"),
    "bf16": ("f16", "f32"),
    "fp8": ("int8", "q8_0"),
    "int8": ("q8_0", "fp8"),
    "q8_0": ("int8", "fp8"),
    "q6_k": ("int8", "fp8"),
    "int4": ("q4_0",),
    "int4:asym": ("q4_1",),
    "q4_0": ("int4",),
    "q4_1": ("int4:asym", "int4"),
    "q4_k": ("int4:asym", "int4"),
}
"""A scheme -> those that keep about as much of a weight, the nearest first."""


@dataclass(frozen=True)
class Format:
    """One row. `schemes` are the values of `--quantize` that the consumer can load, the default first.

    suffix: an output whose name ends so is that one file; every other output is a folder. options: name of an
    `--option` -> its help.
    """

    name: str
    module: str
    summary: str
    schemes: tuple[str, ...]
    suffix: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def exporter(self) -> Exporter:
        """The module that writes it, imported now."""
        return cast(Exporter, import_module(self.module))

    def scheme(self, wanted: str | None) -> str:
        """`wanted`, or the default; LLC0923 with the nearest that the consumer can load."""
        if wanted is None:
            return self.schemes[0]
        if wanted not in self.schemes:
            near = did_you_mean(wanted, self.schemes) or self._nearest(wanted)
            reason = f"{self.name} has no form for '{wanted}'{near}"
            raise LlamacError("LLC0923", "--quantize", reason, f"choose {', '.join(self.schemes)}")
        return wanted

    def _nearest(self, wanted: str) -> str:
        """Which of its schemes is most like one that is known elsewhere: "" where none is."""
        found = next((scheme for scheme in _ALIKE.get(wanted, ()) if scheme in self.schemes), None)
        return f" (the nearest is '{found}')" if found else ""

    def check_options(self, options: Mapping[str, str]) -> None:
        """LLC0924 for an option that the format does not have."""
        for name in options:
            if name not in self.options:
                known = f"{self.name} takes {', '.join(self.options)}" if self.options else f"{self.name} takes none"
                reason = f"unknown option '{name}'{did_you_mean(name, self.options)}"
                raise LlamacError("LLC0924", "--option", reason, known)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "onnx",
            "llamac.export.onnx_standard",
            "ONNX of the standard operators, for any runtime that reads it",
            ("keep", "f32", "f16", "bf16", "int8", *_GROUPED),
            options={"logits": "all (the default) or last: of the last token alone"},
        ),
        Format(
            "onnx-genai",
            "llamac.export.onnx_genai",
            "ONNX with ONNX Runtime's own operators, for onnxruntime-genai",
            ("keep", "f32", "f16", "bf16", "int8", *_GROUPED),
            options={
                "logits": "last (the default): of the last token of each sequence, or all",
                "accuracy": "of products with integers: 4 (the default) rounds activations to 8 bits, 1 keeps f32",
                "tables": "8 (the default) or 4: bits of the embedding and the head with int4",
            },
        ),
        Format(
            "gguf",
            "llamac.export.gguf.exporter",
            "one GGUF file, for llama.cpp; in a folder with a Modelfile, for Ollama, and the image encoder",
            ("keep", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k"),
            suffix=".gguf",
            options={
                "pre": "llama.cpp's name for how text is cut into words, where the tokenizer's own way is not known",
                "num_ctx": "positions that Ollama makes room for",
                "mmproj": "f32, f16 or bf16: matrices of the image encoder beside the model [as stored]; or none",
            },
        ),
        Format(
            "compressed-tensors",
            "llamac.export.compressed_tensors",
            "a Hugging Face folder in compressed-tensors form, for vLLM and Transformers",
            ("fp8", "int8", *_GROUPED),
            options=_SHARDED | _CACHE,
        ),
        Format(
            "modelopt",
            "llamac.export.modelopt",
            "a Hugging Face folder with hf_quant_config.json, for TensorRT-LLM",
            ("fp8", "int4:g128", "int4:g64"),
            options=_SHARDED | _CACHE,
        ),
        Format(
            "hf",
            "llamac.export.hf_folder",
            "a Hugging Face folder of plain weights, for Transformers",
            ("keep", "f32", "f16", "bf16"),
            options=_SHARDED,
        ),
        Format(
            "meta",
            "llamac.export.meta_folder",
            "a folder as Meta publishes its models: params.json and consolidated.00.pth",
            ("keep", "f32", "f16", "bf16"),
        ),
    )
}
"""Name -> row."""


def find_format(name: str) -> Format:
    """The row called `name` (LLC0920 with the near match when there is none)."""
    if name not in FORMATS:
        reason = f"unknown form '{name}'{did_you_mean(name, FORMATS)}"
        raise LlamacError("LLC0920", "--to", reason, f"choose from {', '.join(FORMATS)}")
    return FORMATS[name]
