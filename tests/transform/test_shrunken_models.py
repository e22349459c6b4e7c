"""What a certificate is about: every pass that changes a model finds its work in the shrunken model too.

A pass that fires on the whole model alone would be recorded as right without having been run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from llamac.ir.evaluator import RowReader
from llamac.layer_kinds import is_uniform, layer_counts
from llamac.models.checkpoint import Checkpoint, StoredTensor
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.shrink import SyntheticWeights, shrink_config, shrink_tensors
from llamac.models.random_weights import random_checkpoint
from llamac.models.sources import open_source
from llamac.passes.pipelines import parse_quantization, target_pipeline
from llamac.transform.base import PassContext
from llamac.transform.pipeline import run_pipeline

Recipe = tuple[str, str, str]
RECIPES = [("cpu", "keep", "f16"), ("cpu", "int4", "int8"), ("cpu", "int8", "f16"), ("gpu", "int4", "f16")]
"""Kind of target, quantization, cache."""


def fired(
    config: LlamaConfig, tensors: Mapping[str, StoredTensor], rows: RowReader, recipe: Recipe, page: int
) -> set[tuple[str, str]]:
    """(pass, what it did) for everything that a pipeline does to a model."""
    kind, quantize, kv = recipe
    counts, uniform = layer_counts(config), is_uniform(config, tensors)
    steps = target_pipeline(kind, counts, parse_quantization(quantize), kv, 64, uniform, page)
    records = run_pipeline(build_graph(config, tensors), steps, PassContext(rows), verify_each=False)
    return {(r.name, name) for r in records for name, count in r.result.counts.items() if count}


def check(checkpoint: Checkpoint, recipe: Recipe) -> set[tuple[str, str]]:
    """What is done to the shrunken model, after a look whether it is what is done to the whole."""
    small = shrink_config(checkpoint.config, checkpoint.tensors)
    tensors = shrink_tensors(checkpoint.config, small, checkpoint.tensors)
    whole = fired(checkpoint.config, checkpoint.tensors, checkpoint.read_rows, recipe, 256)
    found = fired(small, tensors, SyntheticWeights(tensors, 1).read_rows, recipe, 8)
    assert found == whole, f"only in the whole: {whole - found}; only in the small one: {found - whole}"
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids="-".join)
@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-2-7b"])
def test_the_same_passes_fire(name: str, recipe: Recipe) -> None:
    done = check(open_source(name, random_weights=1), recipe)
    assert recipe[0] == "gpu" or {("fuse-gated-linear", "gated_linear"), ("fuse-qkv-append", "qkv_append")} <= done


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids="-".join)
@pytest.mark.parametrize("name", ["llama-4-scout", "llama-3.2-11b-vision", "llama-3-70b"])
def test_the_same_passes_fire_on_larger_models(name: str, recipe: Recipe) -> None:
    check(open_source(name, random_weights=1), recipe)


def test_gates_that_fill_no_panels_stay_so() -> None:
    config = open_source("llama-3.2-1b", random_weights=1).config
    done = check(random_checkpoint(replace(config, layers=2, intermediate_size=8200), 1), RECIPES[0])
    assert ("fuse-gated-linear", "gated_linear") not in done
