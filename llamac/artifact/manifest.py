"""The manifest of an artifact: schema 1 as data, its canonical text, and the check that a manifest follows it.

A schema number is raised only when an older reader would misread the file. Forward: a reader refuses a newer schema and
names the llamac that made the file. Backward: a reader reads every schema up to its own. Within one schema new keys may
appear; readers ignore keys they do not know, so such keys can only add, never change the meaning of another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from llamac.errors import LlamacError

FORMAT = "llamac-artifact"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
MAXIMUM_MANIFEST_BYTES = 64 << 20
DEEPEST = 64
"""Objects and lists that may stand in one another: whoever walks through a manifest does so by recursion."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """One key of the manifest.

    path: dotted; `[]` stands for every element of a list, `{}` for every value of an object with free keys.
    kind: text, integer (>= 0), number, flag, object, list; a `?` after it allows null.
    optional: the key may be absent.
    """

    path: str
    kind: str
    meaning: str
    optional: bool = False


SCHEMA: tuple[Key, ...] = (
    Key("format", "text", f'always "{FORMAT}"'),
    Key("schema", "integer", "version of this table; a newer one than the reader knows is refused"),
    Key("producer", "text", "the program that wrote the file, with its version"),
    Key("model", "object", "the source model"),
    Key("model.name", "text", "its name"),
    Key("model.architecture", "text", "its architecture, such as llama"),
    Key("model.source_format", "text", "hf, meta, gguf, onnx, torch or random"),
    Key("model.license", "text?", "its licence as the checkpoint states it, null when it states none"),
    Key("model.parameters", "integer", "number of parameters"),
    Key("model.config", "object", "every field of the model's configuration"),
    Key("model.context_length", "integer", "longest sequence in tokens"),
    Key("model.vocab_size", "integer", "number of token ids"),
    Key("model.token_ids", "integer", "ids that a prompt may hold, where some of them have no logit", True),
    Key("quantization", "text", "the scheme asked for: keep, f32, f16, bf16, fp8, int8, int4, with its options"),
    Key("passes", "list", "the passes that ran, in order"),
    Key("passes[]", "object", "one pass"),
    Key("passes[].name", "text", "name of the pass"),
    Key("passes[].options", "object", "its options"),
    Key("passes[].changed", "flag", "whether it changed the module"),
    Key("passes[].counts", "object", "how often each of its rewrites fired"),
    Key("targets", "list", "machines the file has code for, best first"),
    Key("targets[]", "object", "one target"),
    Key("targets[].name", "text", "name of the target; unique"),
    Key("targets[].kind", "text", "the device that runs it, such as cpu"),
    Key("targets[].triple", "text", "target triple of the code"),
    Key("targets[].requires", "list", "what the machine must have"),
    Key("targets[].requires[]", "text", "a CPU feature flag as /proc/cpuinfo spells it; of a GPU its architecture"),
    Key("targets[].code", "text", "member that holds the code; of a GPU its launch plan, which names the code"),
    Key(
        "targets[].fallback", "text?", "launch plan over code for any later GPU of the maker, where there is one", True
    ),
    Key("targets[].source", "text?", "member that holds the source of the code, null when it is not kept"),
    Key("targets[].layout", "text", "the weight layout the code reads; one of weights[].layout"),
    Key("targets[].ranks", "list", "the layout of each process, where several share the model", True),
    Key("targets[].others", "list", "GPUs: launch plans of the processes behind the first, as code and fallback", True),
    Key("targets[].others[]", "text", "member that holds such a plan"),
    Key("targets[].ranks[]", "text", "the weights that one process reads; the first has targets[].layout"),
    Key("targets[].truth", "text", "generated, compiled, executed or numerically verified"),
    Key("weights", "list", "weights, once for each layout"),
    Key("weights[]", "object", "one layout"),
    Key("weights[].layout", "text", "name of the layout; unique"),
    Key("weights[].member", "text", "member that holds them"),
    Key("weights[].bytes", "integer", "size of that member"),
    Key("weights[].tensors", "list", "the packed tensors of the member"),
    Key("weights[].tensors[]", "object", "one tensor"),
    Key("weights[].tensors[].name", "text", "model-level name; unique within the layout"),
    Key("weights[].tensors[].offset", "integer", "first byte, from the start of the member"),
    Key("weights[].tensors[].bytes", "integer", "packed size"),
    Key("weights[].tensors[].format", "text", "number format, such as bf16x2 or i4g32s16"),
    Key("weights[].tensors[].shape", "list", "logical shape, before packing"),
    Key("weights[].tensors[].shape[]", "integer", "one dimension"),
    Key("ir", "text?", "member with the kernel-level IR that the code was generated from", optional=True),
    Key("gpu", "object", "what differs on GPUs, where the file has code for CPUs too", optional=True),
    Key("gpu.ir", "text", "member with the kernel-level IR of the code for GPUs"),
    Key("gpu.passes", "list", "its passes, as passes has them"),
    Key("gpu.memory", "object", "what differs from memory"),
    Key("gpu.memory.arena_bytes", "integer", "scratch memory of the largest step"),
    Key("gpu.memory.weight_bytes", "integer", "bytes of weights in memory"),
    Key("gpu.memory.weight_bytes_per_token", "integer", "bytes of weights read to decode one token"),
    Key("gpu.image", "object", "what differs of the image encoder", optional=True),
    Key("gpu.image.ir", "text", "member with its kernel-level IR for GPUs"),
    Key("gpu.image.passes", "list", "its passes, as passes has them"),
    Key("onnx", "object", "the graph that ONNX Runtime runs, where it is a target", optional=True),
    Key("onnx.ir", "text", "member with the model-level IR that the graph was emitted from"),
    Key("onnx.passes", "list", "its passes, as passes has them"),
    Key("image", "object", "the image encoder, where the model has one", optional=True),
    Key("image.ir", "text", "member with its kernel-level IR"),
    Key("image.pixels", "list", "tiles, channels, height and width of what one pass takes"),
    Key("image.pixels[]", "integer", "one dimension"),
    Key("image.embeddings", "list", "rows and width of what one pass gives"),
    Key("image.embeddings[]", "integer", "one dimension"),
    Key("image.joint", "flag", "whether a pass takes all tiles of a picture, which need an aspect ratio"),
    Key("image.passes", "list", "its passes, as passes has them"),
    Key("memory", "object", "the memory plan"),
    Key("memory.arena_bytes", "integer", "scratch memory of one step"),
    Key("memory.kv_page_tokens", "integer", "tokens in a page of the key-value cache"),
    Key("memory.caches", "list", "the key-value cache, one entry for each kind of attention layer"),
    Key("memory.caches[]", "object", "one kind"),
    Key(
        "memory.caches[].kind",
        "text",
        "full, chunk, or cross, which holds vision tokens; chunk tells the first two apart",
        True,
    ),
    Key("memory.caches[].chunk", "integer", "positions that a row sees, those of its own block; 0: all before it"),
    Key("memory.caches[].layers", "list", "the layers, in the order in which they lie in a page"),
    Key("memory.caches[].layers[]", "integer", "the number of a layer"),
    Key("memory.caches[].page_bytes", "integer", "bytes of a page, these layers together"),
    Key("memory.kv_dtype", "text", "number format of the key-value cache"),
    Key("memory.max_step_tokens", "integer", "most tokens in one step"),
    Key("memory.weight_bytes", "integer", "bytes of weights in memory"),
    Key("memory.weight_bytes_per_token", "integer", "bytes of weights read to decode one token"),
    Key("memory.logits_bytes", "integer", "bytes of one row of logits"),
    Key("tokenizer", "object?", "the tokenizer, null when the artifact takes and gives token ids only"),
    Key("tokenizer.kind", "text", "tokenizer.json, tiktoken, gguf-bpe or gguf-spm"),
    Key("tokenizer.files", "object", "its files: file name -> member"),
    Key("tokenizer.files{}", "text", "member that holds the file"),
    Key("tokenizer.info", "object", "special tokens, chat format and settings that its files leave out"),
    Key("chat_template", "text?", "member that holds the Jinja template, null when the model has none"),
    Key("generation", "object", "how text starts and stops"),
    Key("generation.bos_id", "integer?", "id of the token a sequence begins with"),
    Key("generation.add_bos", "flag", "whether a prompt gets that token in front"),
    Key("generation.stop_ids", "list", "ids that end the text"),
    Key("generation.stop_ids[]", "integer", "one such id"),
    Key("generation.stop_sources", "object", "stop id -> where it came from"),
    Key("generation.stop_sources{}", "list", "the places that name this id"),
    Key("generation.stop_sources{}[]", "text", "one place"),
    Key("generation.defaults", "object", "sampling defaults of the model: temperature, top_p and so on"),
    Key("golden", "object", "golden vectors, replayed by verify"),
    Key("golden.oracle", "text", 'what computed them, "absent" when nothing outside llamac did'),
    Key("golden.vectors", "list", "one entry a prompt"),
    Key("golden.vectors[]", "object", "one vector"),
    Key("golden.vectors[].prompt_ids", "list", "the prompt"),
    Key("golden.vectors[].prompt_ids[]", "integer", "one token id"),
    Key("golden.vectors[].greedy_ids", "list", "the greedy continuation"),
    Key("golden.vectors[].greedy_ids[]", "integer", "one token id"),
    Key("golden.vectors[].top", "list", "largest logits after the prompt, as [id, logit] pairs"),
    Key("golden.vectors[].top[]", "list", "one pair"),
    Key("golden.vectors[].top[][]", "number", "the id, then the logit"),
    Key("certificate", "object?", "translation validation of the passes, null when it was off", optional=True),
    Key("ledger", "list", "every default taken and everything left undone"),
    Key("ledger[]", "object", "one entry"),
    Key("ledger[].kind", "text", "kind of entry"),
    Key("ledger[].where", "text", "model-level name it concerns"),
    Key("ledger[].what", "text", "what was decided"),
    Key("ledger[].reason", "text", "why"),
    Key("members", "object", f"every other member of the file, so all but {MANIFEST} and {MANIFEST_HASH}"),
    Key("members{}", "object", "size and hashes of one member"),
    Key("members{}.bytes", "integer", "its size"),
    Key(
        "members{}.sha256", "text", "hex SHA-256 of the whole member; weights have sha256_blocks instead", optional=True
    ),
    Key(
        "members{}.block_bytes", "integer", "bytes in a block of sha256_blocks; the last may be shorter", optional=True
    ),
    Key("members{}.sha256_blocks", "list", "hex SHA-256 of every block, in order", optional=True),
    Key("members{}.sha256_blocks[]", "text", "one hash"),
)
"""Every key of schema 1, in the order of the documentation (docs/artifact-format.md shows this table)."""


def canonical_json(value: Any) -> bytes:
    """The one text of a manifest: UTF-8, keys sorted, one space of indentation, a newline at the end."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def manifest_hash_line(data: bytes) -> bytes:
    """Contents of the member manifest.sha256, in the form that `sha256sum -c` reads."""
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode("ascii")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Reads strict JSON (no duplicate keys, no NaN), then looks at format and schema; LLC0705, LLC0709, LLC0710."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise LlamacError("LLC0709", where, f"{MANIFEST} is not valid JSON: {ascii(str(error))[:200]}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise LlamacError("LLC0705", where, f'{MANIFEST} does not say "format": "{FORMAT}"')
    schema = value.get("schema")
    if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA_VERSION:
        producer = ascii(str(value.get("producer", "an unnamed program")))[:80]
        reason = (
            f"made by a newer llamac ({producer}, schema {str(schema)[:20]}); this one reads up to {SCHEMA_VERSION}"
        )
        raise LlamacError("LLC0710", where, reason, "upgrade with: pip install --upgrade llamac")
    return value


def check_manifest(manifest: Manifest, where: str) -> None:
    """Every required key is there with its type, and what the keys say about one another holds; else LLC0711."""
    for key in SCHEMA:
        for place, value in _values_at(manifest, key, where):
            if not _has_kind(value, key.kind):
                _refuse(where, place, f"must be {_KIND_WORDS[key.kind.rstrip('?')]}{_or_null(key)}, is {_brief(value)}")
    if manifest["schema"] != SCHEMA_VERSION:
        _refuse(where, "schema", f"must be {SCHEMA_VERSION}, is {_brief(manifest['schema'])}")
    _check_members(manifest, where)
    _check_references(manifest, where)
    for entry in manifest["weights"]:
        _check_tensors(entry, where)


_KIND_WORDS = {
    "text": "a text",
    "integer": "an integer >= 0",
    "number": "a number",
    "flag": "true or false",
    "object": "an object",
    "list": "a list",
}
_KIND_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "flag": (bool,),
    "object": (dict,),
    "list": (list,),
}

_LARGEST_NUMBER = 1e300


def _or_null(key: Key) -> str:
    return " or null" if key.kind.endswith("?") else ""


def _has_kind(value: Any, kind: str) -> bool:
    if value is None:
        return kind.endswith("?")
    kind = kind.rstrip("?")
    if isinstance(value, bool):
        return kind == "flag"
    if kind == "integer":
        return isinstance(value, int) and 0 <= value < 1 << 63
    if kind == "number":
        return isinstance(value, (int, float)) and abs(value) < _LARGEST_NUMBER
    return isinstance(value, _KIND_TYPES[kind])


def _values_at(manifest: Manifest, key: Key, where: str) -> Iterator[tuple[str, Any]]:
    """(place, value) for everything `key.path` reaches; a missing key that is not optional is refused."""
    steps = key.path.replace("[]", ".[]").replace("{}", ".{}").split(".")
    found: list[tuple[str, Any]] = [("", manifest)]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        found = [below for place, value in found for below in _descend(place, value, step, last, key, where)]
    yield from found


def _descend(place: str, value: Any, step: str, last: bool, key: Key, where: str) -> Iterator[tuple[str, Any]]:
    if step == "[]":
        yield from ((f"{place}[{index}]", item) for index, item in enumerate(value or ()))
    elif step == "{}":
        yield from ((f"{place}[{_brief(name)}]", item) for name, item in (value or {}).items())
    elif value is not None:
        below = f"{place}.{step}" if place else step
        if step in value:
            yield below, value[step]
        elif last and not key.optional:
            _refuse(where, below, "is missing")


def _check_members(manifest: Manifest, where: str) -> None:
    for name, record in manifest["members"].items():
        place = f"members[{_brief(name)}]"
        blocked = [key in record for key in ("sha256_blocks", "block_bytes")]
        if any(blocked) != all(blocked) or any(blocked) == ("sha256" in record):
            _refuse(where, place, "must have either sha256, or sha256_blocks and block_bytes")
        hashes = record["sha256_blocks"] if blocked[0] else [record["sha256"]]
        if blocked[0]:
            if record["block_bytes"] < 1:
                _refuse(where, f"{place}.block_bytes", "must be at least 1")
            expected = -(-record["bytes"] // record["block_bytes"])
            if len(hashes) != expected:
                _refuse(where, f"{place}.sha256_blocks", f"must have {expected} hashes, has {len(hashes)}")
        for text in hashes:
            if len(text) != 64 or text.strip("0123456789abcdef"):
                _refuse(where, place, f"{_brief(text)} is not a hex SHA-256")


def _check_references(manifest: Manifest, where: str) -> None:
    """Everything that names a member or a layout names one that exists."""
    named: list[tuple[str, str | None]] = [("chat_template", manifest["chat_template"]), ("ir", manifest.get("ir"))]
    named += [(f"{part}.ir", manifest[part]["ir"]) for part in ("image", "gpu", "onnx") if part in manifest]
    named += [("gpu.image.ir", manifest["gpu"]["image"]["ir"])] if "image" in manifest.get("gpu", {}) else []
    for index, target in enumerate(manifest["targets"]):
        named += [(f"targets[{index}].{key}", target.get(key)) for key in ("code", "source", "fallback")]
        named += [(f"targets[{index}].others", member) for member in target.get("others", ())]
    for index, entry in enumerate(manifest["weights"]):
        named.append((f"weights[{index}].member", entry["member"]))
    for name, member in ((manifest["tokenizer"] or {}).get("files") or {}).items():
        named.append((f"tokenizer.files[{_brief(name)}]", member))
    for place, member in named:
        if member is not None and member not in manifest["members"]:
            _refuse(where, place, f"names the member {_brief(member)}, which is not in the file")
    layouts = [entry["layout"] for entry in manifest["weights"]]
    for index, target in enumerate(manifest["targets"]):
        ranks = target.get("ranks", [target["layout"]])
        for key, layout in (("layout", target["layout"]), *(("ranks", layout) for layout in ranks)):
            if layout not in layouts:
                _refuse(where, f"targets[{index}].{key}", f"names {_brief(layout)}, which weights do not have")
        if ranks[:1] != [target["layout"]]:
            _refuse(where, f"targets[{index}].ranks", "must begin with the layout of the target")
    _check_unique(layouts, where, "weights[].layout")
    _check_unique([target["name"] for target in manifest["targets"]], where, "targets[].name")
    for index, entry in enumerate(manifest["weights"]):
        if entry["bytes"] != manifest["members"][entry["member"]]["bytes"]:
            _refuse(where, f"weights[{index}].bytes", f"differs from the size of the member {_brief(entry['member'])}")


def _check_tensors(entry: Manifest, where: str) -> None:
    for index, tensor in enumerate(entry["tensors"]):
        if tensor["offset"] + tensor["bytes"] > entry["bytes"]:
            place = f"weights[{_brief(entry['layout'])}].tensors[{index}]"
            _refuse(where, place, f"{_brief(tensor['name'])} reaches beyond the {entry['bytes']} bytes of its member")
    _check_unique([tensor["name"] for tensor in entry["tensors"]], where, "weights[].tensors[].name")


def _check_unique(names: list[str], where: str, place: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(where, place, f"{_brief(name)} is there twice")
        seen.add(name)


def _check_depth(value: Any) -> None:
    """ValueError for what nests deeper than any manifest."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        inside = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inside for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} deep")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(where: str, place: str, reason: str) -> NoReturn:
    hint = "get the file again from its source, or compile it again"
    raise LlamacError("LLC0711", where, f"manifest key {place} {reason}", hint)


def _brief(value: Any) -> str:
    """A value of an untrusted manifest, fit for one line of a terminal."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
