"""Reads an exported folder back as any source is read, and compares it with what was meant and with its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llamac.errors import LlamacError
from llamac.models.checkpoint import Checkpoint, StoredTensor, TokenizerSource
from llamac.models.llama.config import LlamaConfig
from llamac.models.sources import open_source

from .hf_plain import MeantRows
from .hf_tokenizer import TOKENIZER, tokenizer_differences
from .interpreted_logits import MOST_PARAMETERS, interpreted_logits, prompt_of, relative_largest, relative_rms
from .model_weights import ModelWeights
from .request import Check, ExportRequest

_SAME_LOGITS = 1e-5
_LOST = 1.0
"""Logits that are as far from the source's as these spread tell nothing of it; unrelated ones are 1.4 times as far."""
_AS_FAR = 2.0
"""Logits may be this many times as far from the source's as errors of the opposite sign would put them."""


@dataclass
class FolderCheck:
    """The comparison of one folder; `meant` are its values. Meta's folders say nothing of stop ids and sampling."""

    request: ExportRequest
    place: Path
    config: LlamaConfig
    meant: MeantRows
    hugging_face: bool = True

    def run(self) -> Iterator[Check]:
        """All checks that every form has in common; LlamacError where the folder cannot be read back at all."""
        back = open_source(self.place)
        yield self._config(back)
        yield from self._tokenizer(back)
        weights, rounding = self._weights(back)
        yield weights
        yield from self._logits(back, rounding)

    def _config(self, back: Checkpoint) -> Check:
        found, wanted = replace(back.config, name=""), replace(self.config, name="")
        odd = [f.name for f in fields(wanted) if getattr(found, f.name) != getattr(wanted, f.name)]
        generations = (back.generation, self.request.checkpoint.generation)
        begun, ended = (replace(generation, stop_sources={}) for generation in generations)
        if self.hugging_face and begun != ended:
            odd.append("stop ids or sampling")
        return Check("config", not odd, ", ".join(odd) + " differ" if odd else "every value equal")

    def _tokenizer(self, back: Checkpoint) -> Iterator[Check]:
        """Ids and text on many scripts, where there is a tokenizer and the form has a place for it."""
        source = self.request.checkpoint.tokenizer
        if source is None or (back.tokenizer is None and not self.hugging_face):
            return
        if self.hugging_face:
            # No `info`: what the file itself says of the begin-of-sequence token counts.
            made = TokenizerSource("tokenizer.json", {TOKENIZER: (self.place / TOKENIZER).read_bytes()}, {})
        else:
            assert back.tokenizer is not None
            made = back.tokenizer
        odd = tokenizer_differences(source, made, with_special=self.hugging_face)
        yield Check("tokenizer", not odd, f"other ids for {odd[0][:40]!r}" if odd else "equal ids and text")

    def _weights(self, back: Checkpoint) -> tuple[Check, float]:
        """Every weight against what was meant; and the largest relative change of a matrix from its source."""
        found = ModelWeights(back, self.config.rope_style)
        source = self.request.weights(self.config.rope_style)
        worst, place, rounding = 0.0, "", 0.0
        for name in found.names:
            changed = size = 0.0
            step = max(1, (1 << 21) // found.shape(name)[-1]) if len(found.shape(name)) == 2 else 1
            for lo in range(0, found.stored(name).rows, step):
                hi = min(lo + step, found.stored(name).rows)
                rows, wanted = found.rows(name, lo, hi), self.meant(name, lo, hi)
                apart = float(np.abs(rows - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
                worst, place = max((worst, place), (apart, name))
                if name in source.names:
                    before = source.rows(name, lo, hi)
                    changed += float(np.square(rows - before).sum())
                    size += float(np.square(before).sum())
            rounding = max(rounding, math.sqrt(changed / size) if size else 0.0)
        said = f"{len(found.names)} weights, largest difference {worst:.1e}{f' ({place})' if worst else ''}"
        return Check("weights", worst == 0, said, "0"), rounding

    def _logits(self, back: Checkpoint, rounding: float) -> Iterator[Check]:
        """Of the source and of the folder, both by the interpreter."""
        source = self.request.checkpoint
        if source.config.parameters > MOST_PARAMETERS:
            reason = f"the interpreter runs models of at most {MOST_PARAMETERS // 10**6} million parameters"
            self.request.note("note", "check", "logits are not compared; every weight is", reason)
            return
        ids = prompt_of(source)
        found, reference = interpreted_logits(back, ids), interpreted_logits(source, ids)
        if rounding == 0:
            apart = relative_largest(found, reference)
            yield Check("logits", apart <= _SAME_LOGITS, f"apart by {apart:.1e} of the largest", f"{_SAME_LOGITS:.0e}")
            return
        # Errors of the same size with the opposite sign move the logits about as far: more would be another fault.
        mirrored = interpreted_logits(self._mirrored(back), ids)
        apart, bound = relative_rms(found, reference), min(_LOST, _AS_FAR * relative_rms(mirrored, reference))
        said = f"apart by {apart:.1e} of their spread; weights by {rounding:.1e}"
        yield Check("logits", apart <= bound, said, f"{bound:.1e}, by rounding errors of the opposite sign")

    def _mirrored(self, back: Checkpoint) -> Checkpoint:
        """The source with the rounding errors of the export subtracted instead of added."""
        tensors = {
            name: StoredTensor(name, name, stored.shape, "f32", stored.file, 0, 4 * math.prod(stored.shape))
            for name, stored in back.tensors.items()
        }
        rows = _MirroredRows(self.request.weights(self.config.rope_style), self.meant)
        return replace(back, config=self.config, tensors=tensors, row_source=rows)


@dataclass
class _MirroredRows:
    """Rows of 2 * source - meant, as f32."""

    source: ModelWeights
    meant: MeantRows

    def read(self, tensor: StoredTensor, lo: int, hi: int) -> NDArray[np.uint8]:
        """The bytes of rows [lo, hi)."""
        values = self.meant(tensor.name, lo, hi)
        if tensor.name in self.source.names:
            values = 2 * self.source.rows(tensor.name, lo, hi) - values
        return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)


def refuse_unreadable(error: Exception, library: str) -> LlamacError:
    """The coded form of what a consumer's library said when it could not load the folder."""
    reason = f"{library} does not load it: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
    return LlamacError("LLC0954", library, reason, "report this: nothing was written")
