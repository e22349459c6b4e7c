"""The command line: finds the verb, runs it, and turns every failure into one coded line and an exit code.

0: done. 2: the input or the command line is wrong (it says what and what to do). 1: anything else. 130: interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from llamac.errors import LlamacError, did_you_mean

VERBS: dict[str, tuple[str, str]] = {
    "compile": ("llamac.cli.compile", "Compile a checkpoint into one .llamac file."),
    "export": ("llamac.cli.export", "Write a model in the form of another system."),
    "retarget": ("llamac.cli.retarget", "Add code for more machines to a .llamac file, without its checkpoint."),
    "run": ("llamac.cli.run", "Continue a prompt with a compiled model."),
    "chat": ("llamac.cli.chat", "Talk with a compiled model."),
    "inspect": ("llamac.cli.inspect", "Show what is in a .llamac file; runs nothing from it."),
    "verify": ("llamac.cli.verify", "Check every byte of a .llamac file and replay its golden vectors."),
    "plan": ("llamac.cli.plan", "Say what a model needs on a machine, and how fast it can be at most."),
    "diff": ("llamac.cli.diff", "Show what differs between two .llamac files; runs nothing from them."),
    "diverge": ("llamac.cli.diverge", "Find the first value at which two .llamac files part ways."),
    "bench": ("llamac.cli.bench", "Time a compiled model against this machine's memory bandwidth."),
    "opt": ("llamac.cli.opt", "Run passes over IR text."),
    "reduce": ("llamac.cli.reduce", "Make a failing pipeline small enough to read."),
    "explore": ("llamac.cli.explore", "Write a page that shows what every pass did to a model."),
    "targets": ("llamac.cli.targets", "List the machines that llamac compiles for."),
    "passes": ("llamac.cli.passes", "List the compiler's passes."),
}
"""Verb -> its module, which defines `command`, and its line in `llamac --help` (so that help imports no verb)."""

UNEXPECTED = frozenset(
    {
        "LLC0100",
        "LLC0217",
        "LLC0504",
        "LLC0507",
        "LLC0602",
        "LLC0702",
        "LLC0703",
        "LLC0803",
        "LLC0805",
        "LLC0806",
        "LLC0807",
        "LLC0808",
        "LLC0815",
        "LLC0817",
        "LLC0853",
        "LLC0864",
        "LLC0868",
        "LLC0921",
        "LLC0958",
    }
)
"""Codes that are no fault of the input or the command line: exit code 1, where all others mean 2."""

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO})
"""What the system answers when nothing more can be written."""

COMPILER_LIBRARIES = frozenset({"ml_dtypes", "rich", "ziglang"})
"""What the extra `llamac[compile]` installs: a plain install can only run artifacts."""


class Verbs(click.Group):
    """A command group that imports only the verb it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now; None for an unknown verb."""
        if cmd_name not in VERBS:
            return None
        command = import_module(VERBS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest verb suggested for a misspelt one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no verb {args[0]!r}{did_you_mean(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs from the table, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import llamac

        click.echo(f"llamac {llamac.__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.pass_context
def llamac_command(context: click.Context) -> None:
    """Compile Llama models ahead of time into one file, and run that file.

    \b
      llamac compile smollm2-135m --target cpu --quantize keep -o smollm2.llamac
      llamac run smollm2.llamac --prompt "The capital of France is" --max-new-tokens 20
      llamac chat smollm2.llamac

    Results go to stdout (as JSON with --json), everything else to stderr. Exit codes: 0 done, 2 wrong input or
    command line, 1 any other failure, 130 interrupted. LLAMAC_TRACEBACK=1 shows where in the code an error arose.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (those of the process unless given); the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _take_any_character()
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        reason = f"the output cannot be written: {error.strerror}"
        click.echo(LlamacError("LLC0702", "stdout", reason, "send it elsewhere").message(), err=True)
        return 1


def _run(words: list[str]) -> int:
    """The verb's exit code, or that of its failure."""
    try:
        code = llamac_command.main(words, prog_name="llamac", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # the output: verbs report what becomes of their files
            raise
        return _failed(error, words)
    except (KeyboardInterrupt, click.Abort):
        click.echo("LLC0103 llamac: interrupted", err=True)
        return 130
    except Exception as error:
        return _failed(error, words)


def _failed(error: Exception, words: Sequence[str]) -> int:
    """Report the error; the exit code."""
    if os.environ.get("LLAMAC_TRACEBACK"):
        _print_traceback(error)
    return _report(error, "--json" in words)


def _take_any_character() -> None:
    """Characters that the terminal's encoding has not are printed as escapes, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Whoever read our output has gone; without this the interpreter complains once more when it flushes at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception, as_json: bool) -> int:
    """Print the error as one coded line on stderr, and on stdout as JSON when asked; the exit code."""
    coded = _coded(error)
    click.echo(coded.message(), err=True)
    if as_json:
        from .options import print_json

        print_json({"error": coded.to_json()})
    return 1 if coded.code in UNEXPECTED else 2


def _coded(error: Exception) -> LlamacError:
    if isinstance(error, LlamacError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "llamac"
        return LlamacError("LLC0101", where, error.format_message(), f"see {where} --help")
    if isinstance(error, ModuleNotFoundError) and error.name in COMPILER_LIBRARIES:
        reason = f"this verb needs the compiler, and {error.name} is not installed"
        return LlamacError("LLC0600", "llamac", reason, 'pip install "llamac[compile]"')
    reason = f"{type(error).__name__}: {error}"
    return LlamacError("LLC0100", "llamac", reason, "run again with LLAMAC_TRACEBACK=1 and report what it prints")


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)
