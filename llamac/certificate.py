"""The pass certificate: translation validation of an architecture's pipeline, recorded so that it can be replayed.

It holds everything a replay needs and nothing of the model's weights: the shrunken config, how each role of weight is
stored, the seed, and the verdict after each pass. Differences are not recorded, only whether each was within the bound:
their last bits vary with the machine, and the same input must give the same artifact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llamac.ir.evaluator import RowReader
from llamac.models.checkpoint import Checkpoint, StoredTensor
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.config_json import config_from_json
from llamac.models.llama.shrink import SyntheticWeights, divisible, shrink_config, shrink_tensors, small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import Quantization, Share, parse_quantization, target_pipeline
from llamac.transform.outside import Edit, load_edits
from llamac.transform.pipeline import Instrument, pipeline_text
from llamac.transform.rank_validation import validate_ranks
from llamac.transform.scenario import Scenario, make_scenario
from llamac.transform.validation import EXACT_BOUND, Validator, Verdict

from .image_side import validate_encoder
from .layer_kinds import is_uniform, layer_counts

SEED = 20
PAGE = 8
"""Cache page of the small model: boundaries come up in short sequences."""

MAX_TOKENS = 64

ONNX = "onnx"
"""The kind of ONNX Runtime's graph, which is made by a pipeline of its own; its image encoder by that of all."""


def certify(
    checkpoint: Checkpoint,
    quantization: Quantization,
    kv_dtype: str,
    passes_from: Sequence[str] = (),
    kinds: Sequence[str] = ("cpu",),
    ranks: int = 1,
) -> dict[str, Any]:
    """Validate the pipelines of `kinds` of targets on a shrunken model of the checkpoint's architecture.

    Where the model is divided among `ranks`, two ranks together are validated too. LLC0507 when a pass is wrong.
    """
    small = shrink_config(checkpoint.config, checkpoint.tensors)
    tensors = shrink_tensors(checkpoint.config, small, checkpoint.tensors)
    found = _certificate(small, tensors, quantization, kv_dtype, passes_from, kinds)
    return found if ranks == 1 else {**found, "rank_verdicts": _recorded(certify_ranks(found))}


def certify_ranks(certificate: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts on two ranks that share the small model of a certificate (LLC0507 when a pass is wrong)."""
    quantization, kv_dtype = parse_quantization(certificate["quantization"]), certificate["kv_dtype"]
    small = divisible(config_from_json(certificate["config"]), 2, quantization.group)
    encodings = {name: certificate["encodings"][name] for name in expected_shapes(small)}
    tensors, edit = small_tensors(small, encodings), load_edits(certificate.get("passes_from", ()))
    counts, uniform, verdicts = layer_counts(small), is_uniform(small, tensors), []
    scenario = make_scenario(small.vocab_size, PAGE, SEED)
    for kind in certificate["kinds"]:
        pipelines = [
            edit(target_pipeline(kind, counts, quantization, kv_dtype, MAX_TOKENS, uniform, PAGE, Share(2, rank)))
            for rank in range(2)
        ]
        modules = [build_graph(small, tensors) for _ in pipelines]
        verdicts += validate_ranks(modules, pipelines, _weights(tensors, SEED), scenario)
    return verdicts


def recertify(certificate: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """The certificate of the same small model for other kinds of targets (LLC0507 when a pass is wrong)."""
    small = config_from_json(certificate["config"])
    tensors = small_tensors(small, certificate["encodings"])
    quantization, passes_from = parse_quantization(certificate["quantization"]), certificate.get("passes_from", ())
    found = _certificate(small, tensors, quantization, certificate["kv_dtype"], passes_from, kinds)
    return {**found, "rank_verdicts": _recorded(certify_ranks(found))} if "rank_verdicts" in certificate else found


def _certificate(
    small: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    quantization: Quantization,
    kv_dtype: str,
    passes_from: Sequence[str],
    kinds: Sequence[str],
) -> dict[str, Any]:
    edit, verdicts, pipelines = load_edits(passes_from), [], []
    for kind in kinds:
        found, text = validate(small, tensors, quantization, kv_dtype, SEED, edit, kind=kind)
        verdicts += found
        pipelines.append(text)
    image = _validate_encoders(small, tensors, quantization, kv_dtype, SEED, PAGE, kinds)
    return {
        "config": {**dataclasses.asdict(small), "name": "shrunken"},
        "encodings": {name: t.encoding for name, t in tensors.items()},
        "quantization": str(quantization),
        "kv_dtype": kv_dtype,
        "kinds": list(kinds),
        "pipeline": pipelines[0],
        "passes_from": list(passes_from),
        "seed": SEED,
        "page": PAGE,
        "bound": EXACT_BOUND,
        "verdicts": _recorded(verdicts),
        **({"image_verdicts": _recorded(image)} if image else {}),
    }


def _recorded(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [{"after": v.after, "against": v.against, "passed": v.passed} for v in verdicts]


def _weights(tensors: Mapping[str, StoredTensor], seed: int) -> RowReader:
    return SyntheticWeights(tensors, seed).read_rows


def replay(certificate: Mapping[str, Any]) -> list[Verdict]:
    """Run the validation that a certificate records again, with this llamac's passes (LLC0507 when one is wrong)."""
    small = config_from_json(certificate["config"])
    tensors = small_tensors(small, certificate["encodings"])
    quantization = parse_quantization(certificate["quantization"])
    edit = load_edits(certificate.get("passes_from", ()))
    kv_dtype, seed = certificate["kv_dtype"], int(certificate["seed"])
    kinds = certificate.get("kinds", ["cpu"])
    verdicts = [v for k in kinds for v in validate(small, tensors, quantization, kv_dtype, seed, edit, kind=k)[0]]
    if "rank_verdicts" in certificate:
        verdicts += certify_ranks(certificate)
    if "image_verdicts" not in certificate:
        return verdicts
    page = int(certificate["page"])
    return verdicts + _validate_encoders(small, tensors, quantization, kv_dtype, seed, page, kinds)


def _validate_encoders(
    small: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    quantization: Quantization,
    kv_dtype: str,
    seed: int,
    page: int,
    kinds: Sequence[str],
) -> list[Verdict]:
    """The verdicts of the image pipelines of kinds of targets; none without an encoder."""
    given = (small, tensors, quantization, kv_dtype, _weights(tensors, seed), seed, page)
    return [verdict for kind in kinds if kind != ONNX for verdict in validate_encoder(*given, kind)]


def validate(
    small: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    quantization: Quantization,
    kv_dtype: str,
    seed: int,
    edit: Edit = list,
    scenario: Scenario | None = None,
    instruments: Sequence[Instrument] = (),
    kind: str = "cpu",
) -> tuple[list[Verdict], str]:
    """The verdicts of a kind of target's pipeline, as `edit` leaves it, on the small model; and the pipeline's text."""
    uniform = is_uniform(small, tensors)
    steps = edit(target_pipeline(kind, layer_counts(small), quantization, kv_dtype, MAX_TOKENS, uniform, PAGE))
    weights = SyntheticWeights(tensors, seed)
    validator = Validator(weights.read_rows, scenario or make_scenario(small.vocab_size, PAGE, seed))
    return validator.run(build_graph(small, tensors), steps, instruments), pipeline_text(steps)
