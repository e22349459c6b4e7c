"""`llamac run`: continue one prompt."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from llamac.errors import LlamacError

from .answers import print_events, print_pieces
from .options import (
    chat_options,
    generate_options,
    json_option,
    loading_options,
    open_model,
    print_json,
    read_tools_file,
    sampling_options,
    speculation_options,
)
from .texts import Text

if TYPE_CHECKING:
    from llamac.runtime.generation import Generation
    from llamac.runtime.model import Model, TextStream
    from llamac.runtime.profile import Profile


@click.command("run")
@click.argument("artifact")
@click.option("--prompt", type=Text(), help="The prompt; - reads stdin (one newline at its end is dropped).")
@click.option("--prompt-ids", metavar="1,2,3", help="The prompt as token ids.")
@click.option(
    "--chat", "as_chat", is_flag=True, help="Send the prompt as a user's message, in the model's chat format."
)
@click.option("--system", type=Text(), help="With --chat: a system message before it.")
@click.option(
    "--image", "images", multiple=True, metavar="FILE", help="A picture for the prompt; may be given several times."
)
@chat_options
@sampling_options
@speculation_options
@click.option(
    "--logprobs", type=int, metavar="N", help="With --json: log-probabilities, with the N likeliest each time."
)
@click.option("--echo", is_flag=True, help="Put the prompt before the new text.")
@click.option("--ignore-stop-ids", is_flag=True, help="Run on past the model's own stop ids.")
@loading_options
@json_option
@click.option("--quiet", is_flag=True, help="No line about speed on stderr.")
@click.option(
    "--profile", "as_profile", is_flag=True, help="Time every op: tables on stderr, or `profile` in the JSON."
)
def command(artifact: str, as_json: bool, quiet: bool, as_profile: bool, **values: Any) -> None:
    """Continue a prompt with the model in ARTIFACT.

    \b
      llamac run m.llamac --prompt "The capital of France is" --max-new-tokens 20
      llamac run m.llamac --chat --prompt "Why is the sky blue?" --temperature 0.7 --seed 1
      llamac run m.llamac --chat --tools tools.json --prompt "What is the weather in Oslo?"
      llamac run m.llamac --chat --image cat.jpg --prompt "What is in this picture?"
      llamac run m.llamac --speculate lookup --prompt "Correct the spelling: ..."
      llamac run m.llamac --draft small.llamac --prompt "Once upon a time"
      cat letter.txt | llamac run m.llamac --prompt - --json

    The text appears on stdout as it is written. With --json one object is printed at the end: text, prompt_ids,
    token_ids, stop_reason (stop_id, stop_string, length or context), tool_calls, logprobs, timings, and how
    many tokens were guessed and guessed right (null without --speculate and --draft). With --tools each
    call that the model makes is a line of JSON on stdout; llamac executes none of them. Pictures stand in front of the
    text, or where a prompt without --chat has <|image|>. A prompt longer than the
    context is an error; nothing is cut off. Running an artifact runs the code in it: run what you trust.
    """
    if values["logprobs"] is not None and not as_json:
        raise LlamacError("LLC0101", "--logprobs", "they are printed in the JSON alone", "add --json")
    prompt = _read_prompt(values)
    with open_model(artifact, values, len(values["images"])) as model:
        with model.profile() if as_profile else nullcontext() as profile:
            stream = _start(model, prompt, values)
            if not as_json:
                _print_text(stream, model, values["tools"] is not None)
            outcome = stream.outcome
        if as_json:
            _print_json(model, outcome, profile)
        elif not quiet:
            click.echo(_speed_line(outcome, model.load_seconds), err=True)
        if profile is not None and not as_json:
            click.echo(profile.text(), err=True)


def _print_text(stream: TextStream, model: Model, has_tools: bool) -> None:
    if has_tools:
        print_events(stream.events())
    else:
        _print_stream(stream, model.manifest["tokenizer"] is not None)


def _read_prompt(values: dict[str, Any]) -> str | list[int]:
    text, ids = values["prompt"], values["prompt_ids"]
    if (text is None) == (ids is None):
        raise LlamacError(
            "LLC0102", "prompt", "give exactly one of --prompt and --prompt-ids", "--prompt - reads stdin"
        )
    for option in ("system", "tools", "chat_format"):
        if values[option] is not None and not values["as_chat"]:
            name = f"--{option.replace('_', '-')}"
            raise LlamacError("LLC0101", name, f"{name} needs --chat", "add --chat")
    if ids is not None:
        if values["as_chat"]:
            raise LlamacError("LLC0101", "--chat", "a chat message is text, not ids", "give it with --prompt")
        return _parse_ids(ids)
    return _read_stdin() if text == "-" else str(text)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        hint = "separate whole numbers by commas"
        raise LlamacError("LLC0101", "--prompt-ids", f"{text!r} is not a list of ids", hint) from None


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise LlamacError("LLC0102", "stdin", f"it is not UTF-8: {error}", "convert it first, with iconv") from None


def _start(model: Model, prompt: str | list[int], values: dict[str, Any]) -> TextStream:
    options = generate_options(values)
    if not values["as_chat"]:
        return model.stream(prompt, images=values["images"], **options)
    shown = [{"type": "image", "path": path} for path in values["images"]]
    content = [*shown, {"type": "text", "text": prompt}] if shown else prompt
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if values["system"] is not None:
        messages.insert(0, {"role": "system", "content": values["system"]})
    tools = read_tools_file(values["tools"])
    return model.stream_chat(messages, tools=tools, chat_format=values["chat_format"], **options)


def _print_stream(stream: TextStream, has_text: bool) -> None:
    if not has_text:
        click.echo(" ".join(map(str, stream.outcome.token_ids)))
    else:
        print_pieces(stream)


def _print_json(model: Model, outcome: Generation, profile: Profile | None) -> None:
    result = outcome.to_json()
    if model.manifest["tokenizer"] is None:
        result["text"] = None
    result["timings"] = _timings(outcome, model.load_seconds)
    result |= {"model": model.name, "target": model.target.name, "threads": model.threads}
    if profile is not None:
        result["profile"] = profile.to_json()
    print_json(result)


def _timings(outcome: Generation, load_seconds: float) -> dict[str, float | None]:
    timings = outcome.timings
    return {
        "load_ms": round(load_seconds * 1e3, 3),
        "time_to_first_token_ms": round(timings.first_token_seconds * 1e3, 3),
        "total_ms": round(timings.total_seconds * 1e3, 3),
        "decode_tokens_per_second": _decode_rate(outcome),
    }


def _decode_rate(outcome: Generation) -> float | None:
    seconds = outcome.timings.total_seconds - outcome.timings.first_token_seconds
    return round((len(outcome.token_ids) - 1) / seconds, 2) if seconds > 0 else None


def _speed_line(outcome: Generation, load_seconds: float) -> str:
    rate = _decode_rate(outcome)
    return (
        f"[{len(outcome.prompt_ids)} + {len(outcome.token_ids)} tokens, ended by {outcome.stop_reason}; "
        f"load {load_seconds * 1e3:.0f} ms, first token {outcome.timings.first_token_seconds * 1e3:.0f} ms"
        + (f", then {rate:.1f} tokens/s" if rate is not None else "")
        + _speculation_text(outcome)
        + "]"
    )


def _speculation_text(outcome: Generation) -> str:
    counts = outcome.speculation
    if counts is None:
        return ""
    return f"; {counts.accepted} of {counts.drafted} guesses right, {counts.tokens_per_step:.2f} tokens a step"
