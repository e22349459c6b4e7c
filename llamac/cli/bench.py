"""`llamac bench`: how fast an artifact runs here, beside what this machine's memory can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .options import json_option, loading_options, open_model, print_json

if TYPE_CHECKING:
    from llamac.runtime.benchmark import Repeat
    from llamac.runtime.model import Model


@click.command("bench")
@click.argument("artifact")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="P")
@click.option("--new-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="N")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, metavar="R", help="Timed runs.")
@loading_options
@json_option
def command(artifact: str, prompt_tokens: int, new_tokens: int, repeats: int, as_json: bool, **values: Any) -> None:
    """Time ARTIFACT: load, first token, prefill and decode, with the memory bandwidth measured in the same run.

    \b
      llamac bench m.llamac --prompt-tokens 512 --new-tokens 128 --threads 2
      llamac bench m.llamac --json | jq .decode_fraction_of_read_bandwidth

    One untimed run comes first. Then every repeat is a prefill of P tokens and a greedy decode to N, between two plain
    multi-threaded reads of 512 MB; figures are medians over the repeats, which --json lists one by one. Decoding reads
    weight_bytes_per_token for each token, so its fraction of the read bandwidth says how much is left to gain.
    For mixtures of experts, tokens_per_expert lists how many tokens each expert of each layer got over all runs.
    peak_rss_bytes is taken before the buffer for that reading is made; mapped weights count in it.
    """
    with open_model(artifact, values) as model:
        result = {"load_ms": round(model.load_seconds * 1e3, 3)} | _measure(model, prompt_tokens, new_tokens, repeats)
    if as_json:
        print_json(result)
    else:
        _print_text(result)


def _measure(model: Model, prompt_tokens: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    from llamac.runtime.benchmark import bench_prompt, check_sizes, repeat_runs, run_once, summarize

    check_sizes(model, prompt_tokens, new_tokens)
    cold, _ = run_once(model, bench_prompt(prompt_tokens, model.vocab_size), new_tokens)
    peak = _peak_rss_bytes()
    rows: list[Repeat] = []
    for row in repeat_runs(model, prompt_tokens, new_tokens, repeats):
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
        "tokens_per_expert": {str(layer): counts for layer, counts in model.expert_counts().items()},
    }


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
    for layer, counts in result["tokens_per_expert"].items():
        share = max(counts) / sum(counts)
        click.echo(f"  layer {layer} experts    {len(counts)}, the busiest got {share:.0%} of {sum(counts)} choices")
