"""Reads an exported GGUF file back by llamac's own reader, runs it, and compares it with what was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.models.checkpoint import Checkpoint, StoredTensor
from llamac.models.gguf_file import read_gguf
from llamac.models.gguf_reader import DIVISORS, read_gguf_checkpoint
from llamac.models.llama.weights import expected_shapes
from llamac.runtime.text.tokenizer import TokenizerBase, load_tokenizer

from ..hf_tokenizer import TEXTS
from ..interpreted_logits import MOST_PARAMETERS, interpreted_logits, prompt_of, relative_largest, relative_rms
from ..model_weights import ModelWeights
from ..request import Check, ExportRequest
from .architecture import rope_divisors
from .chat import jinja_template
from .llama_cpp_check import llama_cpp_checks
from .plan import PlannedTensor, plan_tensors
from .tensor_check import tensor_checks

SAME_LOGITS = 1e-4
"""Largest difference, of the largest logit, between the file and the source's graph on the file's values."""
NOTHING_LEFT = 1.0
"""Of the source's logits, where weights were rounded: how much that changes is the model's affair, and is shown."""
NOT_COMPARED = frozenset({"name", "dtype", "rope_style", "rope_scaling", "vision"})
"""What GGUF does not say, or says in another way that is compared by itself."""


def checked(request: ExportRequest, path: Path) -> Iterator[Check]:
    """All checks, those of llama.cpp where it is installed."""
    back = read_gguf_checkpoint(path)
    source, found = request.weights("interleaved"), ModelWeights(back)
    planned, _ = plan_tensors(request, source)
    yield _table(request, planned, path)
    yield from tensor_checks(source, found, planned)
    yield _config(request.checkpoint, back)
    yield from _text(request.checkpoint, back)
    yield from _logits(request, source, back, found)
    yield from llama_cpp_checks(request, back, path)


def _table(request: ExportRequest, planned: list[PlannedTensor], path: Path) -> Check:
    """Names, shapes and types: none missing, none more."""
    wanted = {tensor.name: (tensor.shape, tensor.kind) for tensor in planned}
    divisors = rope_divisors(request.checkpoint.config)
    if divisors is not None:
        wanted[DIVISORS] = (divisors.shape, "f32")
    table = {tensor.name: (tensor.shape, tensor.encoding) for tensor in read_gguf(path).tensors}
    odd = sorted({*wanted, *table} - {name for name in wanted if table.get(name) == wanted[name]})
    return Check("table", not odd, f"{len(odd)} differ, {odd[0]} first" if odd else f"{len(table)} tensors as meant")


def _config(source: Checkpoint, back: Checkpoint) -> Check:
    odd = []
    for field in fields(source.config):
        wanted, found = getattr(source.config, field.name), getattr(back.config, field.name)
        if field.name not in NOT_COMPARED and wanted != found and not _alike(field.name, source, back):
            odd.append(f"{field.name} is {found}, not {wanted}")
    meant, divisors = rope_divisors(source.config), rope_divisors(back.config)
    if meant is None or divisors is None:
        same = meant is divisors and source.config.rope_scaling == back.config.rope_scaling
    else:
        same = np.array_equal(meant, divisors)
    if not same:
        odd.append("the scaling of the rotary frequencies differs")
    return Check("config", not odd, "; ".join(odd) or "every value equal")


def _alike(name: str, source: Checkpoint, back: Checkpoint) -> bool:
    """Numbers are stored as f32; patterns may differ beyond the context."""
    wanted, found = getattr(source.config, name), getattr(back.config, name)
    if isinstance(wanted, float):
        return float(np.float32(wanted)) == float(np.float32(found))
    if name != "attention" or wanted is None or found is None:
        return False
    longest = source.config.context_length
    chunks = {chunk if 0 < chunk < longest else 0 for chunk in (wanted.chunk, found.chunk)}
    return len(chunks) == 1 and (wanted.unrotated, wanted.qk_norm) == (found.unrotated, found.qk_norm)


def _text(source: Checkpoint, back: Checkpoint) -> Iterator[Check]:
    same_template = jinja_template(source) == back.chat_template
    yield Check("chat template", same_template, "equal" if same_template else "it differs")
    before, after = _tokenizer(source), _tokenizer(back)
    if before is None:
        yield Check("tokenizer", after is None, "none, as in the source" if after is None else "the source has none")
        return
    odd = ["everything: it cannot be read"] if after is None else list(_differences(before, after))
    yield Check("tokenizer", not odd, f"other ids for {odd[0][:60]!r}" if odd else f"equal ids on {len(TEXTS)} texts")
    stops, found = set(source.generation.stop_ids), set(back.generation.stop_ids)
    lost = sorted(stops - found)
    yield Check("stop ids", not lost, f"{lost} are lost" if lost else f"{len(stops)} arrived")


def _tokenizer(checkpoint: Checkpoint) -> TokenizerBase | None:
    source = checkpoint.tokenizer
    return None if source is None else load_tokenizer(source.kind, source.files, source.info)


def _differences(before: TokenizerBase, after: TokenizerBase) -> Iterator[str]:
    """Texts whose ids differ, with control tokens in them and without, or that do not come back alike."""
    if (before.bos_id, before.add_bos) != (after.bos_id, after.add_bos):
        yield f"the begin of a text: {before.bos_id, before.add_bos}, {after.bos_id, after.add_bos}"
    control = [text for text, token_id in before.special_ids.items() if token_id < after.vocab_size]
    for text in (*TEXTS, " ".join(control[:40])):
        ids = [t.encode(text, allow_special=text not in TEXTS) for t in (before, after)]
        if ids[0] != ids[1] or before.decode(ids[0]) != after.decode(ids[1]):
            yield text


def _logits(request: ExportRequest, source: ModelWeights, back: Checkpoint, found: ModelWeights) -> Iterator[Check]:
    """The file's graph against the source's graph on the file's values, and against the source itself."""
    if back.config.parameters > MOST_PARAMETERS:
        reason = f"the interpreter runs models of at most {MOST_PARAMETERS // 10**6} million parameters"
        request.note("note", "check", "logits are not compared; every weight is", reason)
        return
    ids = prompt_of(back)
    logits = interpreted_logits(back, ids)
    meant = interpreted_logits(_with_values(request.checkpoint, found), ids)
    apart = relative_largest(logits, meant)
    yield Check("logits on the file's values", apart <= SAME_LOGITS, f"apart by {apart:.1e}", f"{SAME_LOGITS:.0e}")
    own = interpreted_logits(_with_values(request.checkpoint, source), ids)
    equal = int((logits.argmax(axis=1) == own.argmax(axis=1)).sum())
    lossless = all(np.array_equal(a, b) for a, b in _first_rows(source, found))
    drift, bound = relative_rms(logits, own), SAME_LOGITS if lossless else NOTHING_LEFT
    measured = f"apart by {drift:.1e} of their spread, {equal} of {len(ids)} choices equal"
    yield Check("logits of the source", drift <= bound, measured, f"{bound:.0e}")


def _first_rows(one: ModelWeights, other: ModelWeights) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    for name in other.names:
        yield one.rows(name, 0, 1), other.rows(name, 0, 1)


@dataclass(frozen=True)
class _Values:
    """Rows of f32, in the order of the rotated rows that the checkpoint's config names."""

    weights: ModelWeights

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.weights.rows(tensor.name, lo, hi)).view(np.uint8).reshape(-1)


def _with_values(model: Checkpoint, weights: ModelWeights) -> Checkpoint:
    """`model` without its image encoder, its weights replaced by the values of others."""
    config = replace(model.config, vision=None)
    ordered = ModelWeights(weights.checkpoint, config.rope_style)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        nbytes = 4 * int(np.prod(shape))
        tensors[name] = StoredTensor(name, name, shape, "f32", Path(), 0, nbytes)
    return replace(model, config=config, tensors=tensors, row_source=_Values(ordered))
