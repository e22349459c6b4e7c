"""The text side of a Hugging Face directory: tokenizer files, chat template, stop ids, sampling defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .chat_formats import choose_chat_format
from .checkpoint import GenerationDefaults, TokenizerSource
from .input_files import parse_json_object, read_bytes, read_json_object, read_text
from .ledger import LedgerEntry, entry
from .llama.hf_vocabulary import official_ranks
from .llama.rank_table import RANK_TABLE_FILE, rank_table
from .llama.sentencepiece_format import VOCABULARY_FILE, SentencePieceModel, read_sentencepiece
from .llama.tiktoken_format import is_rank_file, read_ranks, special_tokens
from .stop_tokens import StopIds

SpecialIds = Mapping[str, int]
"""Special token text -> id."""

PostProcessor = object
"""The post-processor of a tokenizer.json, or None where there is no tokenizer.json."""

BEGIN = "<|begin_of_text|>"
LLAMA3_2_IMAGE = 128_256
LARGEST_ID = 1 << 31
SAMPLING_LIMITS = {"temperature": 100.0, "top_k": 1e9, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 100.0}
"""Sampling setting -> its largest value; what the runtime would refuse at every prompt is left out at once."""
ABOVE_ZERO = ("top_p", "repetition_penalty")


@dataclass
class TextFiles:
    """What the text files of a checkpoint say."""

    tokenizer: TokenizerSource | None = None
    chat_template: str | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    ledger: list[LedgerEntry] = field(default_factory=list)


def read_text_files(directory: Path, config: Mapping[str, object], vocab_size: int) -> TextFiles:
    """Read every text file that is there; raises LLC0202 or LLC0214 for one that is damaged."""
    ledger: list[LedgerEntry] = []
    settings = _optional_json(directory / "tokenizer_config.json")
    special_map = _optional_json(directory / "special_tokens_map.json")
    generation = _optional_json(directory / "generation_config.json")
    tokenizer, ids, processor = _tokenizer(directory, settings, config, ledger)
    bos = _token_text(settings, special_map, "bos_token") or (BEGIN if BEGIN in ids else "")
    eos = _token_text(settings, special_map, "eos_token")
    own = {} if tokenizer is None else tokenizer.info
    declared = [ids.get(bos), generation.get("bos_token_id"), config.get("bos_token_id"), own.get("bos_id")]
    bos_id = _first_id(declared, vocab_size)
    stops = _stops(generation, config, ids.get(eos), own.get("eos_id"), vocab_size)
    stops.add_turn_ends(ids)
    template = _chat_template(directory, settings, ledger)
    add_bos = False
    if tokenizer is not None:
        add_bos = bos_id is not None and _adds_bos(processor, settings, bos, ledger)
        eos_id = _first_id([ids.get(eos), config.get("eos_token_id"), own.get("eos_id")], vocab_size)
        tokenizer.info.update({"bos_id": bos_id, "eos_id": eos_id, "add_bos": add_bos})
        if template is None and not settings:
            _add_chat_format(tokenizer, config, ids, ledger)
    sampling = _sampling(generation, ledger)
    defaults = GenerationDefaults(bos_id, add_bos, stops.ids(), stops.sources(), sampling)
    return TextFiles(tokenizer, template, defaults, [*ledger, *stops.ledger])


def _stops(
    generation: Mapping[str, object], config: Mapping[str, object], declared: object, own: object, vocab_size: int
) -> StopIds:
    """Every id that some file calls the end; an image model keeps its text model's in `text_config`."""
    stops = StopIds(vocab_size)
    stops.add(generation.get("eos_token_id"), "generation_config.json eos_token_id")
    stops.add(config.get("eos_token_id"), "config.json eos_token_id")
    text = config.get("text_config")
    stops.add(text.get("eos_token_id") if isinstance(text, dict) else None, "config.json text_config eos_token_id")
    stops.add(declared, "tokenizer_config.json eos_token")
    stops.add(own, "tokenizer.model eos_id")
    return stops


def _add_chat_format(
    tokenizer: TokenizerSource, config: Mapping[str, object], ids: SpecialIds, ledger: list[LedgerEntry]
) -> None:
    """Only for a folder in Meta's layout: where tokenizer_config.json is there, no template means no conversation."""
    name = choose_chat_format(config, tokenizer.kind, ids)
    if name is not None:
        tokenizer.info["chat_format"] = name
        reason = "Meta's folders carry no chat template; the format follows from vocabulary and rope scaling"
        ledger.append(entry("default", "chat format", name, reason))


def _optional_json(path: Path) -> dict[str, object]:
    return read_json_object(path) if path.is_file() else {}


def _tokenizer(
    directory: Path, settings: Mapping[str, object], config: Mapping[str, object], ledger: list[LedgerEntry]
) -> tuple[TokenizerSource | None, SpecialIds, PostProcessor]:
    """tokenizer.json, or a tokenizer.model of base64 rank lines; with special tokens and post-processor."""
    if (directory / "tokenizer.json").is_file():
        data = read_bytes(directory / "tokenizer.json")
        parsed = parse_json_object(data, "tokenizer.json")
        source = TokenizerSource("tokenizer.json", {"tokenizer.json": data}, {})
        ranks = official_ranks(parsed)
        if ranks is not None:
            source.files[RANK_TABLE_FILE] = rank_table(ranks)
            source.info["special_tokens"] = _special_from_json(parsed)
        return source, _special_from_json(parsed), parsed.get("post_processor") or {}
    path = directory / "tokenizer.model"
    if not path.is_file():
        ledger.append(entry("note", "tokenizer", "none", "the folder has neither tokenizer.json nor tokenizer.model"))
        return None, {}, None
    data = read_bytes(path)
    if not is_rank_file(data):
        return _sentencepiece(read_sentencepiece(data, "tokenizer.model"), ledger)
    ranks = read_ranks(data, "tokenizer.model")
    tokens = special_tokens(len(ranks), {**_image_token(config), **_special_from_decoder(settings)})
    files = {"tokenizer.model": data, RANK_TABLE_FILE: rank_table(ranks)}
    return TokenizerSource("tiktoken", files, {"special_tokens": tokens}), tokens, None


def _image_token(config: Mapping[str, object]) -> dict[str, int]:
    """Llama 3.2 Vision in Meta's layout: its image token is not the tokenizer's, but the first row after the head's."""
    chunk = config.get("vision_chunk_size", -1)
    return {"<|image|>": LLAMA3_2_IMAGE} if isinstance(chunk, int) and chunk > 0 else {}


def _sentencepiece(
    model: SentencePieceModel, ledger: list[LedgerEntry]
) -> tuple[TokenizerSource | None, SpecialIds, PostProcessor]:
    """Llama 2's vocabulary, in the stored form that GGUF files have, too."""
    problem = model.unsupported()
    if problem:
        reason = f"{problem}; save the tokenizer with transformers to get tokenizer.json"
        ledger.append(entry("note", "tokenizer", "none", f"tokenizer.model: {reason}"))
        return None, {}, None
    ids = {"bos_id": model.bos_id, "eos_id": model.eos_id}
    source = TokenizerSource("gguf-spm", {VOCABULARY_FILE: model.vocabulary()}, dict(ids))
    return source, model.control_tokens(), None


def _special_from_json(tokenizer: Mapping[str, object]) -> dict[str, int]:
    """Text -> id of the special tokens of a tokenizer.json."""
    added = tokenizer.get("added_tokens")
    rows = [row for row in added if isinstance(row, dict)] if isinstance(added, list) else []
    return _special_rows((row.get("content"), row.get("id"), row.get("special")) for row in rows)


def _special_from_decoder(settings: Mapping[str, object]) -> dict[str, int]:
    """Text -> id of the special tokens that a tokenizer_config.json lists."""
    decoder = settings.get("added_tokens_decoder")
    rows = decoder.items() if isinstance(decoder, dict) else ()
    return _special_rows(
        (row.get("content"), int(key) if key.isdecimal() and len(key) < 10 else None, row.get("special"))
        for key, row in rows
        if isinstance(row, dict)
    )


def _special_rows(rows: Iterable[tuple[object, object, object]]) -> dict[str, int]:
    return {
        text: token_id
        for text, token_id, special in rows
        if isinstance(text, str) and text and type(token_id) is int and 0 <= token_id < LARGEST_ID and special is True
    }


def _token_text(settings: Mapping[str, object], special_map: Mapping[str, object], key: str) -> str:
    """A token is given as its text or as an object with `content`; an empty string when neither file gives it."""
    value = settings.get(key) or special_map.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _first_id(values: Iterable[object], vocab_size: int) -> int | None:
    """The first value that is an id of the vocabulary, or the first id of a list."""
    for value in values:
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size:
            return value
    return None


def _adds_bos(
    processor: PostProcessor, settings: Mapping[str, object], bos_token: str, ledger: list[LedgerEntry]
) -> bool:
    """Whether the checkpoint's own tokenizer puts the begin-of-sequence token before a prompt."""
    declared = settings.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    if processor is not None:
        return _post_processor_adds(processor, bos_token)
    ledger.append(entry("default", "tokenizer add_bos", "true", "no file says otherwise, and Llama prompts start so"))
    return True


def _post_processor_adds(processor: object, bos_token: str) -> bool:
    """True when a template of the post-processor starts with the begin-of-sequence token."""
    if not isinstance(processor, dict):
        return False
    parts = processor.get("processors")
    if isinstance(parts, list):
        return any(_post_processor_adds(part, bos_token) for part in parts[:16])
    single = processor.get("single")
    first = single[0] if isinstance(single, list) and single else None
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(special, dict) and bos_token in ("", special.get("id"))


def _sampling(generation: Mapping[str, object], ledger: list[LedgerEntry]) -> dict[str, float]:
    """The published sampling settings; `do_sample: false` means greedy, temperature 0."""
    found: dict[str, float] = {}
    for key in SAMPLING_LIMITS:
        value = generation.get(key)
        usable = _usable(key, value)
        if usable is not None:
            found[key] = usable
        elif value is not None:
            what = f"{key} {repr(value)[:60]}"
            ledger.append(entry("ignored", "generation_config.json", what, "not a number that can be used"))
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def _usable(key: str, value: object) -> float | None:
    """The value of a sampling setting as the runtime takes it; None where it would not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= SAMPLING_LIMITS[key]:
        return None
    if key == "top_k":
        return int(value) if value == int(value) else None
    return None if key in ABOVE_ZERO and not value else value


def _chat_template(directory: Path, settings: Mapping[str, object], ledger: list[LedgerEntry]) -> str | None:
    """chat_template.jinja, chat_template.json, or the one inside tokenizer_config.json."""
    if (directory / "chat_template.jinja").is_file():
        return read_text(directory / "chat_template.jinja")
    value = _optional_json(directory / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, dict) and isinstance(row.get("name"), str)]
        templates = {row["name"]: row.get("template") for row in rows}
        for name in templates:
            if name != "default":
                what = f"chat template {str(name)[:60]!r}"
                ledger.append(entry("ignored", "tokenizer_config.json", what, "the one named 'default' is used"))
        value = templates.get("default")
    return value if isinstance(value, str) and value else None
