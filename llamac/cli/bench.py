"""`llamac bench`: how fast an artifact runs here, beside what this machine's memory can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .options import (
    generate_options,
    json_option,
    loading_options,
    open_model,
    print_json,
    speculation_options,
)

if TYPE_CHECKING:
    from llamac.runtime.benchmark import Repeat
    from llamac.runtime.model import GenerateOptions, Model
    from llamac.runtime.profile import Profile


@click.command("bench")
@click.argument("artifact")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="P")
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, metavar="R", help="Timed runs.")
@click.option("--profile", "as_profile", is_flag=True, help="One more run, timed op by op.")
@speculation_options
@loading_options
@json_option
def command(
    artifact: str, prompt_tokens: int, new_tokens: int, repeats: int, as_profile: bool, as_json: bool, **values: Any
) -> None:
    """Time ARTIFACT: load, first token, prefill and decode, with the memory bandwidth measured in the same run.

    \b
      llamac bench m.llamac --prompt-tokens 512 --new-tokens 128 --threads 2
      llamac bench m.llamac --draft small.llamac
      llamac bench m.llamac --json | jq .decode_fraction_of_read_bandwidth
      llamac bench m.llamac --profile

    One untimed run comes first. Then every repeat is a prefill of P tokens and a greedy decode to N, between two plain
    multi-threaded reads of 512 MB; figures are medians over the repeats, which --json lists one by one. Decoding reads
    weight_bytes_per_token for each token, so its fraction of the read bandwidth says how much is left to gain.
    With --speculate or --draft tokens are guessed, and `speculation` says how many were right; one reading of the
    weights then serves several tokens, so the fraction can pass 1. What a draft reads is not in it.
    For mixtures of experts, tokens_per_expert lists how many tokens each expert of each layer got over all runs.
    peak_rss_bytes is taken before the buffer for that reading is made; mapped weights count in it.
    --profile adds a table for prefill and one for decode: time, calls, bytes and operations of every op, and how much
    of its limit it reached: the plain read of memory, or the peak of its arithmetic unit, measured in this run.
    """
    with open_model(artifact, values) as model:
        result = {"load_ms": round(model.load_seconds * 1e3, 3)} | _measure(
            model, prompt_tokens, new_tokens, repeats, _guessing(values)
        )
        profile = _profile(model, prompt_tokens, new_tokens) if as_profile else None
    if as_json:
        print_json(result if profile is None else result | {"profile": profile.to_json()})
        return
    _print_text(result)
    if profile is not None:
        click.echo(f"\n{profile.text()}")


def _profile(model: Model, prompt_tokens: int, new_tokens: int) -> Profile:
    from llamac.runtime.benchmark import bench_prompt, run_once

    with model.profile() as profile:
        run_once(model, bench_prompt(prompt_tokens, model.vocab_size), new_tokens)
    return profile


def _guessing(values: dict[str, Any]) -> GenerateOptions | None:
    """The options of speculation, or None when no guessing was asked for."""
    wanted = values["draft"] is not None or values["speculate"] is not None
    return generate_options(values) if wanted else None


def _measure(
    model: Model, prompt_tokens: int, new_tokens: int, repeats: int, guessing: GenerateOptions | None
) -> dict[str, Any]:
    from llamac.runtime.benchmark import bench_prompt, check_sizes, repeat_runs, run_once, summarize

    check_sizes(model, prompt_tokens, new_tokens)
    cold, _ = run_once(model, bench_prompt(prompt_tokens, model.vocab_size), new_tokens)
    peak = _peak_rss_bytes()
    rows: list[Repeat] = []
    for row in repeat_runs(model, prompt_tokens, new_tokens, repeats, guessing):
        rows.append(row)
        click.echo(f"repeat {len(rows)} of {repeats}: {_row_line(row, prompt_tokens)}", err=True)
    return {
        **summarize(rows, prompt_tokens, model.plan.memory.weight_bytes_per_token),
        "first_run_time_to_first_token_ms": round(cold * 1e3, 3),
        "peak_rss_bytes": peak,
        "model": model.name,
        "target": model.target.name,
        "threads": model.threads,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": [_row_json(row, prompt_tokens) for row in rows],
        "tokens_per_expert": _tokens_per_expert(model),
    }


def _tokens_per_expert(model: Model) -> dict[str, list[int]] | None:
    """Layer -> what each of its experts got; None where a device does not count them."""
    try:
        return {str(layer): counts for layer, counts in model.expert_counts().items()}
    except LlamacError as error:
        if error.code != "LLC0867":
            raise
        return None


def _row_json(row: Repeat, prompt_tokens: int) -> dict[str, float | None]:
    return {
        "time_to_first_token_ms": round(row.first_token_seconds * 1e3, 3),
        "prefill_tokens_per_second": round(prompt_tokens / row.first_token_seconds, 2),
        "decode_tokens_per_second": round(row.decode_steps / row.decode_seconds, 2) if row.decode_steps else None,
        "read_bandwidth_gb_per_s": round(row.read_bytes_per_second / 1e9, 3),
    }


def _row_line(row: Repeat, prompt_tokens: int) -> str:
    values = _row_json(row, prompt_tokens)
    return (
        f"prefill {values['prefill_tokens_per_second']} tokens/s, "
        f"decode {values['decode_tokens_per_second']} tokens/s, memory read {values['read_bandwidth_gb_per_s']} GB/s"
    )


def _peak_rss_bytes() -> int:
    """The most memory this process has held, mapped files included."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print_text(result: dict[str, Any]) -> None:
    from .inspect import human_bytes

    click.echo(f"{result['model']} ({result['target']}, {result['threads']} threads)")
    click.echo(f"  load                 {result['load_ms']:10.1f} ms")
    click.echo(
        f"  first token          {result['time_to_first_token_ms']:10.1f} ms for {result['prompt_tokens']} tokens"
    )
    click.echo(f"  prefill              {result['prefill_tokens_per_second']:10.1f} tokens/s")
    if result["decode_tokens_per_second"] is not None:
        fraction = result["decode_fraction_of_read_bandwidth"]
        click.echo(f"  decode               {result['decode_tokens_per_second']:10.1f} tokens/s")
        click.echo(
            f"  weights read         {result['weight_read_gb_per_s']:10.2f} GB/s, {fraction:.0%} of the plain read"
        )
    click.echo(f"  plain memory read    {result['read_bandwidth_gb_per_s']:10.2f} GB/s")
    click.echo(f"  peak memory          {human_bytes(result['peak_rss_bytes']):>10}")
    if result["speculation"] is not None:
        counts = result["speculation"]
        click.echo(f"  guesses              {counts['drafted']:10d}, {counts['accepted']} of them right")
        click.echo(f"  tokens a step        {counts['tokens_per_step']:10.2f}")
    for layer, counts in (result["tokens_per_expert"] or {}).items():
        share = max(counts) / sum(counts)
        click.echo(f"  layer {layer} experts    {len(counts)}, the busiest got {share:.0%} of {sum(counts)} choices")
