"""Reduces a failure of the passes to a repro: a folder with the failing pass's input, the recipe, and the command.

A failure is looked for where users meet it: first the pipeline on the whole model (a crash), then its validation on the
shrunken model (a mismatch). From there the model, the sequences, the pipeline and the module are made smaller as long
as the same pass fails in the same way.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamac.errors import LlamacError
from llamac.ir.gguf_blocks import BLOCKS
from llamac.models.checkpoint import Checkpoint
from llamac.models.graph import build_graph
from llamac.models.llama.config import LlamaConfig
from llamac.models.llama.config_json import config_from_json
from llamac.models.llama.shrink import SyntheticWeights, shrink_config, small_tensors
from llamac.models.llama.weights import expected_shapes
from llamac.passes.pipelines import Quantization, cpu_pipeline, parse_quantization
from llamac.transform.base import PassContext
from llamac.transform.outside import load_classes, load_edits
from llamac.transform.pipeline import Step, parse_pipeline, pipeline_text, run_pipeline
from llamac.transform.reduction import (
    PIPELINE,
    Failure,
    ModuleCheck,
    Tracker,
    failure_of,
    fewer_steps,
    shrink,
    shrink_module,
)
from llamac.transform.scenario import Scenario, make_scenario
from llamac.transform.validation import Validator

from .certificate import MAX_TOKENS, PAGE, SEED
from .layer_kinds import is_uniform, layer_counts

SCREEN = 60
"""Lines of IR that a reader takes in at once."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what a pipeline does to a small model. `passes` is its text; empty: that of the target."""

    config: LlamaConfig
    encodings: Mapping[str, str]
    quantization: Quantization
    kv_dtype: str
    passes_from: tuple[str, ...] = ()
    passes: str = ""
    sequences: tuple[tuple[int, ...], ...] = ()
    seed: int = SEED

    def steps(self) -> list[Step]:
        """The pipeline, outside passes included."""
        if self.passes:
            return parse_pipeline(self.passes, load_classes(self.passes_from))
        tensors = small_tensors(self.config, self.encodings)
        uniform = is_uniform(self.config, tensors)
        built_in = cpu_pipeline(layer_counts(self.config), self.quantization, self.kv_dtype, MAX_TOKENS, uniform, PAGE)
        return load_edits(self.passes_from)(built_in)

    def run_passes(self, tracker: Tracker) -> None:
        """Only the passes: finds crashes, at any size."""
        tensors = small_tensors(self.config, self.encodings)
        run_pipeline(build_graph(self.config, tensors), self.steps(), PassContext(), instruments=[tracker])

    def run_validated(self, tracker: Tracker) -> None:
        """The passes, each compared with the module before it; for small models."""
        tensors = small_tensors(self.config, self.encodings)
        weights = SyntheticWeights(tensors, self.seed)
        scenario = make_scenario(self.config.vocab_size, PAGE, self.seed)
        if self.sequences:
            scenario = Scenario(self.sequences, self.seed)
        Validator(weights.read_rows, scenario).run(build_graph(self.config, tensors), self.steps(), [tracker])

    def to_json(self) -> dict[str, Any]:
        """What `recipe_from_json` reads."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**found, "config": dataclasses.asdict(self.config), "quantization": str(self.quantization)}


def recipe_from_json(fields: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_json` wrote."""
    return Recipe(
        config_from_json(fields["config"]),
        fields["encodings"],
        parse_quantization(fields["quantization"]),
        fields["kv_dtype"],
        tuple(fields["passes_from"]),
        fields["passes"],
        tuple(tuple(s) for s in fields["sequences"]),
        fields["seed"],
    )


@dataclass(frozen=True)
class Repro:
    """A reduced failure: what fails, on what, and the IR that goes into the failing pass (empty: none is at fault)."""

    failure: Failure
    recipe: Recipe
    pipeline: str
    failing: str
    expected: Mapping[str, int]
    ir: str
    alone: bool
    """Whether the pass fails on `ir` by itself: `llamac opt` shows a crash, `--replay` a mismatch, from IR alone."""

    def command(self, folder: Path) -> str:
        """The one command that shows the failure."""
        outside = [word for spec in self.recipe.passes_from for word in ("--passes-from", spec)]
        if self.alone and self.failure.kind != "LLC0507" and not self.expected:
            return shlex.join(["llamac", "opt", str(folder / "repro.ir"), "--passes", self.failing, *outside])
        return shlex.join(["llamac", "reduce", "--replay", str(folder / "repro.json")])


def default_kv_dtype(quantization: Quantization) -> str:
    """The cache's dtype where none is asked for."""
    return "f32" if quantization.scheme == "f32" else "f16"


def repro_folder(output: str | Path) -> Path:
    """Where a failed compilation of `output` leaves its repro."""
    return Path(f"{str(output).removesuffix('.llamac')}.repro")


def recipe_of(
    checkpoint: Checkpoint, quantization: Quantization, kv_dtype: str, passes_from: Sequence[str] = (), passes: str = ""
) -> Recipe:
    """The recipe of a whole model."""
    encodings = {name: t.encoding for name, t in checkpoint.tensors.items()}
    return Recipe(checkpoint.config, encodings, quantization, kv_dtype, tuple(passes_from), passes)


def reduce_failure(recipe: Recipe, seconds: float = 90.0) -> Repro:
    """The smallest repro found within about `seconds` (LLC0510 when nothing fails)."""
    deadline = time.monotonic() + seconds
    failure, recipe, validated = _find(recipe)
    check = _Check(failure, validated)
    recipe = shrink(recipe, _smaller_recipes, check.fails, deadline - seconds / 3)
    if validated and not recipe.sequences:
        sequences = make_scenario(recipe.config.vocab_size, PAGE, recipe.seed).sequences
        if check.fails(replace(recipe, sequences=sequences)):
            recipe = shrink(replace(recipe, sequences=sequences), _fewer_tokens, check.fails, deadline - seconds / 3)
    found, tracker = check.observe(recipe)
    assert found is not None
    return _with_module(recipe, found, tracker, check, deadline)


@dataclass(frozen=True)
class _Check:
    wanted: Failure
    validated: bool

    def observe(self, recipe: Recipe) -> tuple[Failure | None, Tracker]:
        return failure_of(recipe.run_validated if self.validated else recipe.run_passes)

    def fails(self, recipe: Recipe) -> bool:
        return self.wanted.is_like(self.observe(recipe)[0])


def _find(recipe: Recipe) -> tuple[Failure, Recipe, bool]:
    """The failure, the recipe to start from, and whether validation shows it or the passes alone do."""
    small = _shrunken(recipe)
    whole, _ = failure_of(recipe.run_passes, keep_text=False)
    if whole is not None:
        same = whole.is_like(failure_of(small.run_passes, keep_text=False)[0])
        return whole, small if same else recipe, False
    found, _ = failure_of(small.run_validated, keep_text=False)
    if found is None:
        reason = "the pipeline runs, and validation on the shrunken model finds no difference"
        raise LlamacError(
            "LLC0510", recipe.config.name, reason, "name the options that failed: --quantize, --passes-from"
        )
    return found, small, True


def _shrunken(recipe: Recipe) -> Recipe:
    tensors = small_tensors(recipe.config, recipe.encodings)
    small = shrink_config(recipe.config, tensors)
    return _fitted(recipe, small)


def _fitted(recipe: Recipe, config: LlamaConfig, encoding: str = "") -> Recipe:
    """The recipe for another config; every weight stored as before, or all in `encoding`."""
    known = recipe.encodings
    names = expected_shapes(config)
    encodings = {n: encoding or known.get(n, known["embed"]) for n in names}
    return replace(recipe, config=config, encodings=encodings)


def _smaller_recipes(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes that are simpler in one respect, the largest steps first."""
    c = recipe.config
    smaller: list[dict[str, Any]] = [{"layers": n} for n in (1, 2, c.layers // 2) if 0 < n < c.layers]
    smaller += [{"rope_scaling": None}] if c.rope_scaling is not None else []
    smaller += [{"heads": 1, "kv_heads": 1}, {"heads": c.heads // c.kv_heads, "kv_heads": 1}, {"heads": c.kv_heads}]
    smaller += [{"hidden_size": n} for n in (2, 4, 8, 32, 256)] + [{"intermediate_size": n} for n in (2, 4, 8, 32, 256)]
    smaller += [{"head_dim": n} for n in (2, 4, 8, 16, 32)] + [{"vocab_size": n} for n in (5, 8, 16)]
    smaller += [{"tied_head": True}] if not c.tied_head else []
    smaller += [{"rope_style": "half_split"}] if c.rope_style != "half_split" else []
    if set(recipe.encodings.values()) != {"f32"}:
        yield _fitted(recipe, replace(c, dtype="f32"), "f32")
    for fields in smaller:
        config = replace(c, **fields)
        grows = any(isinstance(v, int) and not isinstance(v, bool) and v > getattr(c, k) for k, v in fields.items())
        if config != c and not grows and _blocks_fit(config, recipe.encodings):
            yield _fitted(recipe, config)
    if str(recipe.quantization) != "keep":
        yield replace(recipe, quantization=Quantization())
    if recipe.kv_dtype != "f32":
        yield replace(recipe, kv_dtype="f32")


def _blocks_fit(config: LlamaConfig, encodings: Mapping[str, str]) -> bool:
    """Whether rows hold whole blocks, and the rotation's divisors still fit the head."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "divisors" and len(scaling.divisors) != config.head_dim // 2:
        return False
    shapes = expected_shapes(config)
    blocks = {n: BLOCKS[e].values for n, e in encodings.items() if e in BLOCKS and n in shapes}
    return all(shapes[name][-1] % values == 0 for name, values in blocks.items())


def _fewer_tokens(recipe: Recipe) -> Iterator[Recipe]:
    """Fewer sequences, then shorter ones."""
    for sequence in recipe.sequences if len(recipe.sequences) > 1 else ():
        yield replace(recipe, sequences=(sequence,))
    for place, sequence in enumerate(recipe.sequences):
        for kept in (1, 2, len(sequence) // 2):
            if 0 < kept < len(sequence):
                changed = (*recipe.sequences[:place], sequence[:kept], *recipe.sequences[place + 1 :])
                yield replace(recipe, sequences=changed)


def _with_module(recipe: Recipe, failure: Failure, tracker: Tracker, check: _Check, deadline: float) -> Repro:
    """The repro with the shortest pipeline, and the failing pass's input made small where it fails on that alone."""
    steps = tuple(recipe.steps())
    if failure.item == PIPELINE:
        return Repro(failure, recipe, pipeline_text(steps), "", {}, "", False)
    steps, last = steps[: tracker.count], steps[tracker.count - 1]
    expected = dict(last.expected) if failure.kind == "LLC0501" else {}

    def still_fails(fewer: tuple[Step, ...]) -> bool:
        # The text has no counts, so they cannot fail either.
        return not expected and check.fails(replace(recipe, passes=pipeline_text(fewer)))

    if _has_text(recipe, steps):
        steps = shrink(steps, fewer_steps, still_fails, deadline)
        if not expected:
            shorter = replace(recipe, passes=pipeline_text(steps))
            again, tracked = check.observe(shorter)
            if failure.is_like(again):
                recipe, tracker = shorter, tracked
    weights = SyntheticWeights(small_tensors(recipe.config, recipe.encodings), recipe.seed)
    module_check = ModuleCheck(Step(last.run, expected), failure, weights.read_rows)
    text = shrink_module(tracker.text, module_check, deadline)
    alone = text != tracker.text or module_check.fails(text)
    return Repro(failure, recipe, pipeline_text(steps), str(last.run), expected, text, alone)


def _has_text(recipe: Recipe, steps: Sequence[Step]) -> bool:
    """Whether every pass can be named: an outside module may make ones that have no name of their own."""
    try:
        again = parse_pipeline(pipeline_text(steps), load_classes(recipe.passes_from))
    except LlamacError:
        return False
    return [type(s.run) for s in again] == [type(s.run) for s in steps]


# Files.


def write_repro(repro: Repro, folder: Path) -> list[Path]:
    """Write repro.ir and repro.json; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "repro.json"]
    document = {
        "command": repro.command(folder),
        "failure": dataclasses.asdict(repro.failure),
        "failing": repro.failing,
        "expected": dict(repro.expected),
        "alone": repro.alone,
        "pipeline": repro.pipeline,
        "recipe": repro.recipe.to_json(),
    }
    written[0].write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if repro.ir:
        written.append(folder / "repro.ir")
        written[1].write_text(repro.ir, encoding="utf-8")
    return written


def replay(path: Path) -> Failure | None:
    """What still goes wrong with the repro that `path`, a repro.json, describes (LLC0511 when it is none)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        recipe, wanted = recipe_from_json(document["recipe"]), Failure(**document["failure"])
        failing, expected, alone = str(document["failing"]), dict(document["expected"]), bool(document["alone"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"is no repro: {type(error).__name__}: {error}"
        raise LlamacError("LLC0511", str(path), reason, "name the repro.json that `llamac reduce` wrote") from None
    text = path.with_name("repro.ir")
    if alone and text.exists():
        classes = load_classes(recipe.passes_from)
        step = _step_called(recipe, failing, classes)
        weights = SyntheticWeights(small_tensors(recipe.config, recipe.encodings), recipe.seed)
        return ModuleCheck(Step(step.run, expected), wanted, weights.read_rows).failure(
            text.read_text(encoding="utf-8")
        )
    check = _Check(wanted, wanted.kind == "LLC0507")
    return check.observe(recipe)[0]


def _step_called(recipe: Recipe, failing: str, classes: Mapping[str, Any]) -> Step:
    """The failing step: from the pipeline where it has no name of its own, else by its text."""
    for step in recipe.steps():
        if str(step.run) == failing:
            return step
    return parse_pipeline(failing, classes)[0]


# What compile does.

INTERNAL = frozenset({"LLC0402", "LLC0403", "LLC0501", "LLC0504", "LLC0507"})
"""Codes that mean a bug in a pass, whatever the input."""


@contextmanager
def reproduced(recipe: Recipe, folder: Path, seconds: float = 30.0) -> Iterator[None]:
    """Around the passes: an internal error leaves a repro in `folder`, and its hint says so; input errors pass."""
    try:
        yield
    except (LlamacError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, LlamacError) and error.code not in INTERNAL:
            raise
        found = _bundle(recipe, folder, seconds)
        hint = (
            f"a repro is in {folder}: {found.command(folder)}" if found else "no smaller model shows it: please report"
        )
        if isinstance(error, LlamacError):
            raise LlamacError(error.code, error.where, error.reason, hint) from error
        where = found.failure.item if found else recipe.config.name
        raise LlamacError("LLC0100", where, f"{type(error).__name__}: {error}", hint) from error


def _bundle(recipe: Recipe, folder: Path, seconds: float) -> Repro | None:
    """The repro, written; None when reducing fails too: the first error is the one to report."""
    try:
        repro = reduce_failure(recipe, seconds)
        write_repro(repro, folder)
    except (LlamacError, OSError):
        return None
    return repro
