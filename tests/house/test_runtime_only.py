"""What a plain `pip install llamac` can do: the verbs of the runtime, with compiler, torch and IR out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

OUT_OF_REACH = (
    "torch", "triton", "transformers", "safetensors", "gguf", "ziglang", "ml_dtypes", "networkx", "rich",
    "llamac.ir", "llamac.transform", "llamac.analysis", "llamac.passes", "llamac.backends", "llamac.models",
    "llamac.driver", "llamac.torch",
)  # fmt: skip

NOT_INSTALLED = tuple(name for name in OUT_OF_REACH if not name.startswith("llamac."))

PROGRAM = """
import sys

out_of_reach = sys.argv.pop(1).split(",")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == out or name.startswith(out + ".") for out in out_of_reach):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from llamac.cli.main import main
code = main(sys.argv[1:])
assert not any(name in out_of_reach for name in sys.modules), "imported all the same"
sys.exit(code)
"""


def without(names: tuple[str, ...], *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own that cannot import any of `names`."""
    command = [sys.executable, "-c", PROGRAM, ",".join(names), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "{artifact}", "--prompt", "ab", "--max-new-tokens", "4", "--json"),
        ("run", "{artifact}", "--prompt", "ab", "--chat", "--temperature", "0.7", "--seed", "1", "--json"),
        ("inspect", "{artifact}", "--json"),
        ("verify", "{artifact}", "--json"),
        ("bench", "{artifact}", "--prompt-tokens", "4", "--new-tokens", "4", "--json"),
        ("targets", "--json"),
    ],
    ids=lambda words: "-".join(word.lstrip("-") for word in words if word[0] != "{")[:30],
)
def test_verbs_of_the_runtime(words: tuple[str, ...], toy_artifact: Path) -> None:
    done = without(OUT_OF_REACH, *(word.format(artifact=toy_artifact) for word in words))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_chat(toy_artifact: Path) -> None:
    done = without(OUT_OF_REACH, "chat", str(toy_artifact), "--max-new-tokens", "4", stdin="hi\n")
    assert done.returncode == 0, done.stderr


def test_help_lists_every_verb() -> None:
    done = without(OUT_OF_REACH, "--help")
    assert done.returncode == 0, done.stderr
    assert "compile" in done.stdout


@pytest.mark.parametrize(
    "words",
    [("compile", "smollm2-135m", "-o", "/nowhere/out.llamac"), ("passes", "--json")],
    ids=lambda words: words[0],
)
def test_verbs_of_the_compiler_say_what_to_install(words: tuple[str, ...]) -> None:
    done = without(NOT_INSTALLED, *words)
    assert done.returncode == 2, done.stderr
    assert "LLC0600" in done.stderr and "llamac[compile]" in done.stderr


def test_every_verb_can_be_asked_for_help() -> None:
    every = (
        "import sys\nfrom llamac.cli.main import VERBS, main\nsys.exit(max(main([verb, '--help']) for verb in VERBS))"
    )
    program = PROGRAM.split("from llamac.cli.main import main")[0] + every
    command = [sys.executable, "-c", program, ",".join(NOT_INSTALLED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: llamac ") == 16


def test_importing_llamac_imports_none_of_it() -> None:
    program = f"import sys, llamac; print([m for m in sys.modules if m in {('numpy', 'click', *OUT_OF_REACH)!r}])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_imports_only_what_it_needs(toy_artifact: Path) -> None:
    """Greedy text from ids: no tokenizer library, no template engine, no command line."""
    unneeded = ("click", "jinja2", "tokenizers", "tiktoken", *OUT_OF_REACH)
    program = (
        f"import sys, llamac\nwith llamac.load({str(toy_artifact)!r}) as model: model.logits([1, 2])\n"
        f"print([m for m in sys.modules if m in {unneeded!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
