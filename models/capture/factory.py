"""`--from torch pkg.module:factory`: imports the user's code, calls the factory, and captures what it returns.

This runs that code with all the rights of the caller, like any import.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from llamac.errors import LlamacError

from .captured import CapturedModel
from .entry import capture
from .torch_library import require_torch

FORM = "name it as pkg.module:function"


def open_torch(factory_path: str) -> CapturedModel:
    """The captured model that `pkg.module:factory` makes; the current folder is importable, as with `python -m`.

    The factory takes no arguments and returns what `capture` takes, or `(that, LlamaConfig)`, or a `CapturedModel`.
    LLC0319 when it cannot be imported or fails.
    """
    require_torch()
    name, _, attribute = factory_path.partition(":")
    if not name or not attribute:
        raise LlamacError("LLC0319", factory_path, "this names no factory", FORM)
    made = _call(factory_path, _find(factory_path, name, attribute))
    if isinstance(made, CapturedModel):
        return made
    module, config = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    return capture(module, config=config)


def _find(path: str, name: str, attribute: str) -> Any:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        reason = f"cannot be imported: {type(error).__name__}: {error}"
        raise LlamacError("LLC0319", path, reason, "run the command where `python -c 'import ...'` finds it") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise LlamacError("LLC0319", path, f"is a {type(found).__name__}, not a function", FORM)
    return found


def _call(path: str, factory: Any) -> Any:
    try:
        return factory()
    except LlamacError:
        raise
    except Exception as error:
        raise LlamacError("LLC0319", path, f"the factory failed: {type(error).__name__}: {error}", "") from error
