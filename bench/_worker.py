"""The other side of `_peer.py`: answers requests of a benchmark with an engine, one line of JSON for one of JSON.

Runs in the environment of the engine, so it imports the standard library only. What the engine itself prints goes to
stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(engine: Any, version: str) -> None:
    """Until stdin ends: call the method of `engine` that a request names in "do", with its other values as arguments.

    Engines have `run(prompt, new)`, a fresh sequence decoded greedily, which gives seconds to the first token, seconds
    for the others, and the ids. Some have `together(prompt, new, sequences)`, the same for several sequences stepped
    together, and `logits(ids, path)`, which writes the logits after every id as a .npy file.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(engine, request.pop("do"))(**request)), file=answers, flush=True)
