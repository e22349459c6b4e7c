"""Options that several verbs share, and the keyword arguments they become."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llamac.errors import LlamacError

from .texts import Text

if TYPE_CHECKING:
    from llamac.runtime.model import GenerateOptions, Model

Command = TypeVar("Command", bound=Callable[..., Any])
TOOLS_HINT = 'give a file like [{"name": "get_weather", "description": "...", "parameters": {...}}, "brave_search"]'
_PROCESSOR_DIGITS = 5

_LOADING = (
    click.option("--threads", type=int, metavar="N", help="CPU threads. [default: one per usable core]"),
    click.option("--target", metavar="NAME", help="Which code in the file to run. [default: the best that fits]"),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="cpu, cuda, hip, one by number (cuda:1), tvm, onnxruntime.",
    ),
    click.option("--context", type=int, metavar="N", help="Longest sequence, in tokens. [default: the model's own]"),
    click.option(
        "--weights",
        type=click.Choice(["map", "copy"]),
        default="map",
        show_default=True,
        help="Read weights from the mapped file, or from a copy in memory, in huge pages.",
    ),
    click.option("--pin", metavar="CPUS", help="Keep each thread on one processor: auto, or numbers as in 0,2-5."),
    click.option("--first-touch", is_flag=True, help="Spread memory over the memory nodes as the threads use it."),
    click.option("--check", is_flag=True, help="Compare every byte, weights included, with its hash before running."),
)

_SAMPLING = (
    click.option("--max-new-tokens", type=int, default=256, show_default=True, metavar="N", help="Stop after N."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy. [default: the model's own, else 0]"),
    click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 is off."),
    click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens of mass P; 1 is off."),
    click.option("--min-p", type=float, metavar="P", help="Drop tokens less likely than P x the likeliest; 0 is off."),
    click.option("--repetition-penalty", type=float, metavar="R", help="Above 1 avoids what was said; 1 is off."),
    click.option("--seed", type=int, metavar="SEED", help="The same seed draws the same tokens."),
    click.option("--stop", type=Text(), multiple=True, help="End before this text; may be given several times."),
)

_SPECULATION = (
    click.option(
        "--speculate", type=click.Choice(["lookup", "draft", "off"]), metavar="WAY",
        help="Guess the next tokens and check several in one step: lookup (from the text itself), draft or off. "
        "[default: draft where --draft names one, else off]",
    ),
    click.option("--draft", metavar="FILE", help="A smaller model with the same vocabulary, which guesses tokens."),
    click.option("--draft-tokens", type=int, metavar="N", help="Most guesses a step. [default: lookup 8, draft 5]"),
    click.option("--lookup-ngram", type=int, metavar="N", help="With lookup: most tokens to compare. [default: 3]"),
)  # fmt: skip

_CHAT = (
    click.option("--tools", metavar="FILE", help="Tools the model may call: a JSON list of functions and names."),
    click.option("--chat-format", metavar="NAME", help="A built-in chat format instead of the model's template."),
)

GENERATION_NAMES = frozenset(
    {
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "stop",
        "logprobs",
        "echo",
        "ignore_stop_ids",
        "speculate",
        "draft_tokens",
        "lookup_ngram",
    }
)
"""The options that `Model.generate` takes under the same name."""


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout; in ASCII where stdout is not in UTF-8, or a name in it is not."""
    import json

    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    text = json.dumps(value, ensure_ascii=encoding != "utf8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    click.echo(text)


def loading_options(command: Command) -> Command:
    """`--threads --target --device --context --check`."""
    for option in reversed(_LOADING):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """`--max-new-tokens` and everything about drawing tokens and stopping."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def speculation_options(command: Command) -> Command:
    """`--speculate --draft --draft-tokens --lookup-ngram`."""
    for option in reversed(_SPECULATION):
        command = option(command)
    return command


def chat_options(command: Command) -> Command:
    """`--tools --chat-format`."""
    for option in reversed(_CHAT):
        command = option(command)
    return command


def read_tools_file(path: str | None) -> list[Any] | None:
    """The list in a `--tools` file; LLC0101 when it is no JSON list."""
    if path is None:
        return None
    import json
    from pathlib import Path

    try:
        tools = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LlamacError("LLC0101", "--tools", f"{path} cannot be read ({error})", TOOLS_HINT) from None
    if not isinstance(tools, list):
        raise LlamacError("LLC0101", "--tools", f"{path} holds no list", TOOLS_HINT)
    return tools


def generate_options(values: Mapping[str, Any]) -> GenerateOptions:
    """The keyword arguments of `Model.generate` among a verb's options."""
    options: GenerateOptions = {}
    for name in GENERATION_NAMES & values.keys():
        options[name] = values[name]  # type: ignore[literal-required]
    return options


def parse_processors(text: str | None) -> list[int] | bool:
    """`--pin` as `llamac.load` takes it: False without, True for auto, else the numbers; LLC0101 for anything else."""
    if text is None or text == "auto":
        return text is not None
    found: list[int] = []
    for word in text.split(","):
        first, _, last = word.partition("-")
        numbers = [end for end in (first, last or first) if end.isdecimal() and len(end) <= _PROCESSOR_DIGITS]
        if len(numbers) != 2 or ("-" in word) != bool(last) or int(numbers[0]) > int(numbers[1]):
            hint = "give auto, or numbers such as 0,2-5"
            raise LlamacError("LLC0101", "--pin", f"{word[:40]!r} is no processor", hint)
        found += range(int(numbers[0]), int(numbers[1]) + 1)
    return found


def check_guessing(values: Mapping[str, Any]) -> None:
    """LLC0101 for options of guesses where nothing guesses."""
    if values["speculate"] is None and values["draft"] is None:
        for name in ("draft_tokens", "lookup_ngram"):
            if values[name] is not None:
                option = f"--{name.replace('_', '-')}"
                raise LlamacError("LLC0101", option, "nothing guesses tokens", "add --speculate lookup or --draft FILE")


def open_model(artifact: str, values: Mapping[str, Any], images: int = 1) -> Model:
    """Load an artifact as a verb's loading options say, with a progress bar on stderr while all bytes are hashed.

    images: how many pictures a sequence has room for.
    """
    from llamac.runtime.loader import load

    check_guessing(values)
    with byte_progress("checking", values["check"]) as progress:
        return load(
            artifact,
            threads=values["threads"],
            target=values["target"],
            device=values["device"],
            context=values["context"],
            check="full" if values["check"] else "load",
            images=max(images, 1),
            progress=progress,
            draft=values.get("draft"),
            weights=values["weights"],
            pin=parse_processors(values["pin"]),
            first_touch=values["first_touch"],
        )


@contextmanager
def byte_progress(label: str, wanted: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, as a callback of (bytes done, bytes in all); None when not wanted or no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr, show_eta=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance
