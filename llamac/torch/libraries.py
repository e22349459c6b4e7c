"""The libraries that the adapters stand on, asked for before anything imports them."""

from __future__ import annotations

from importlib import import_module

from llamac.errors import LlamacError


def require(*names: str) -> None:
    """LLC0955 unless each of the libraries can be imported."""
    for name in names:
        try:
            import_module(name)
        except ImportError:
            reason = f"llamac.torch needs {name}, which is not installed"
            raise LlamacError("LLC0955", name, reason, 'pip install "llamac[torch]"') from None
