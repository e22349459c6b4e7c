"""ONNX models of a small transformers Llama, made by running the exporters that people use."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Floats = NDArray[np.float32]
TOKENS, PAST_TOKENS, BATCH = 5, 7, 2


def tiny_tokenizer(folder: Path, size: int) -> None:
    """A byte-level tokenizer.json of at most `size` ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet())[: size - 3]:
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def export_torch(model: LlamaForCausalLM, folder: Path, dynamo: bool) -> Path:
    """`torch.onnx.export` of a step with explicit past, batch dynamic, the mask and positions inputs."""
    import torch

    c = model.config
    folder.mkdir(parents=True)
    c.save_pretrained(folder)
    tiny_tokenizer(folder, c.vocab_size)
    shape = (BATCH, c.num_key_value_heads, PAST_TOKENS, c.head_dim)
    past = [torch.zeros(shape) for _ in range(2 * c.num_hidden_layers)]
    mask = torch.ones(BATCH, PAST_TOKENS + TOKENS, dtype=torch.int64)
    positions = torch.arange(PAST_TOKENS, PAST_TOKENS + TOKENS).expand(BATCH, TOKENS).contiguous()
    inputs = (torch.zeros(BATCH, TOKENS, dtype=torch.int64), mask, positions, *past)
    states = [f"{layer}.{side}" for layer in range(c.num_hidden_layers) for side in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{state}" for state in states)]
    outputs = ["logits", *(f"present.{state}" for state in states)]
    path = folder / "model.onnx"
    with _quietly():
        if dynamo:
            free = torch.export.Dim.DYNAMIC
            shapes = (*({0: free, 1: free} for _ in range(3)), ({0: free, 2: free},) * len(past))
            torch.onnx.export(
                _step(model), inputs, path, dynamo=True, dynamic_shapes=shapes, external_data=False,
                input_names=names, output_names=outputs,
            )  # fmt: skip
        else:
            axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "tokens"} for name in names[:3]}
            axes |= {"logits": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "total"}}
            axes |= {name: {0: "batch", 2: "past"} for name in names[3:]}
            axes |= {name: {0: "batch", 2: "total"} for name in outputs[1:]}
            torch.onnx.export(
                _step(model), inputs, path, dynamo=False, dynamic_axes=axes, input_names=names, output_names=outputs
            )
    return path


def export_whole_texts(
    model: LlamaForCausalLM, folder: Path, dynamo: bool, masked: bool = True, last: bool = False
) -> Path:
    """`torch.onnx.export` of the plain forward, `use_cache=False`: no past, positions and mask made in the graph."""
    import torch

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            kept: dict[str, int] = {"logits_to_keep": 1} if last else {}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kept).logits

    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    inputs = (torch.zeros(BATCH, TOKENS, dtype=torch.int64), torch.ones(BATCH, TOKENS, dtype=torch.int64))
    inputs, names = inputs[: 1 + masked], ["input_ids", "attention_mask"][: 1 + masked]
    path = folder / "model.onnx"
    named: dict[str, Any] = {"input_names": names, "output_names": ["logits"]}
    with _quietly():
        if dynamo:
            free = torch.export.Dim.DYNAMIC
            shapes = tuple({0: free, 1: free} for _ in names)
            options = {"dynamic_shapes": shapes, "external_data": False, **named}
            torch.onnx.export(Forward().eval(), inputs, path, dynamo=True, **options)
        else:
            axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "logits")}
            torch.onnx.export(Forward().eval(), inputs, path, dynamo=False, dynamic_axes=axes, **named)
    return path


def _step(model: LlamaForCausalLM) -> Any:
    import torch
    from transformers import DynamicCache

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            return (out.logits, *(x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)))

    return Step().eval()


def export_plain(module: Any, config: Any, folder: Path) -> Path:
    """`torch.onnx.export` of a module `(ids, positions, past ...)` of one sequence, its inputs named by nobody."""
    import torch
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, head_dim=config.head_dim, rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.context_length, rope_parameters=rope, tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    past = [torch.zeros(config.kv_heads, PAST_TOKENS, config.head_dim) for _ in range(2 * config.layers)]
    inputs = (torch.zeros(TOKENS, dtype=torch.int64), torch.arange(PAST_TOKENS, PAST_TOKENS + TOKENS), *past)
    path = folder / "model.onnx"
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free}, {0: free}, ({1: free},) * len(past))
    with _quietly():
        torch.onnx.export(module, inputs, path, dynamo=True, dynamic_shapes=shapes, external_data=False)
    return path


def build_genai(model: LlamaForCausalLM, folder: Path, precision: str, options: tuple[str, ...] = ()) -> Path:
    """onnxruntime-genai's own builder: contrib ops, external data, genai_config.json; options as `name=value`."""
    from onnxruntime_genai.models import builder

    source = folder / "source"
    source.mkdir(parents=True)
    model.save_pretrained(source)
    tiny_tokenizer(source, model.config.vocab_size)
    made = folder / precision
    with _quietly():
        where = (None, str(source), str(made), precision, "cpu", str(folder / "cache"))
        builder.create_model(*where, **builder.parse_extra_options(*where, list(options)))
    return made / "model.onnx"


@contextlib.contextmanager
def _quietly() -> Any:
    """Exporters talk a lot, and warn of what tracing may miss."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def logits_of(path: Path, ids: list[int], layers: int, kv_heads: int, head_dim: int) -> Floats:
    """The logits that ONNX Runtime gives after each id, without rounding what 4-bit weights are multiplied with."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
    }
    empty = np.zeros((1, kv_heads, 0, head_dim), np.float32)
    given |= {f"past_key_values.{layer}.{side}": empty for layer in range(layers) for side in ("key", "value")}
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(["logits"], {name: value for name, value in given.items() if name in wanted})
    return np.asarray(found[0][0], np.float32)
