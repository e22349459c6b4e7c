"""The tokenizer of an artifact as one of transformers, where the two stand on the same library."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llamac.errors import LlamacError
from llamac.runtime.model import Model
from llamac.runtime.text.tokenizer_rust import RustTokenizer

from .model import LlamacModel


def tokenizer_of(model: LlamacModel | Model) -> PreTrainedTokenizerFast:
    """transformers' tokenizer with the artifact's vocabulary, first token, stop token and chat template; pads left.

    Unlike the artifact's own `encode`, and like any tokenizer of transformers, it reads control tokens spelt out in a
    text as what they say. LLC0813 when the artifact has no tokenizer, LLC0955 for one of Meta's (tiktoken).
    """
    artifact = model.artifact if isinstance(model, LlamacModel) else model
    own = artifact.tokenizer
    if not isinstance(own, RustTokenizer):
        reason = f"{type(own).__name__} does not stand on the tokenizers library"
        hint = "use transformers' AutoTokenizer with the checkpoint's folder: the ids are the same"
        raise LlamacError("LLC0955", "tokenizer", reason, hint)
    library = Tokenizer.from_str(own.library_json())
    if library.decoder is None:  # of a GGUF file, whose pieces are in the byte alphabet
        library.decoder = ByteLevel()
    first = _text(own, artifact.plan.bos_id)
    if own.add_bos and first is not None:
        library.post_processor = TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, artifact.plan.bos_id)]
        )
    last = _text(own, min(artifact.plan.stop_ids, default=None))
    has_template = artifact.manifest["chat_template"] is not None
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        bos_token=first,
        eos_token=last,
        pad_token=last,
        padding_side="left",
        chat_template=artifact.chat_template.source if has_template else None,
        clean_up_tokenization_spaces=False,
    )


def _text(tokenizer: RustTokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.special_text(token_id) or None
