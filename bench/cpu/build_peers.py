"""Builds the peers of `compare.py`, each in a virtual environment below `.bench/` (`make bench-peers`).

    python bench/cpu/build_peers.py [ENGINE ...]

llama.cpp is compiled from the sources in its package, twice: for this machine, and without AVX-512 and VNNI. That needs
a C++ compiler and takes some minutes each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv

from peers import ENGINES, FOLDER, Engine


def build(engine: Engine) -> None:
    """Make the environment of one engine, unless it is there and whole."""
    folder = FOLDER / engine.name
    done = folder / ".built"
    recipe = "\n".join([*engine.packages, engine.build or ""])
    if done.exists() and done.read_text(encoding="utf-8") == recipe:
        return
    print(f"building {engine.name} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    environment = dict(os.environ)
    if engine.build is not None:
        environment["CMAKE_ARGS"] = engine.build
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "numpy", *engine.packages]
    subprocess.run(command, env=environment, check=True)
    done.write_text(recipe, encoding="utf-8")


def main() -> None:
    """The program."""
    unknown = set(sys.argv[1:]) - set(ENGINES)
    if unknown:
        raise SystemExit(f"no engine is called {', '.join(sorted(unknown))}: choose from {', '.join(ENGINES)}")
    for name in sys.argv[1:] or ENGINES:
        build(ENGINES[name])


if __name__ == "__main__":
    main()
