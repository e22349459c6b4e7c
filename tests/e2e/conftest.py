"""What the end-to-end tests share: imports of what lies beside them, and expensive things made once a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "speculation")]

pytest.importorskip("torch", reason="the end-to-end tests compare with torch: pip install -e '.[test]'")
pytest.importorskip("transformers", reason="the end-to-end tests compare with transformers: pip install -e '.[test]'")

MakeOnce = Callable[[str, Callable[[Path], None]], Path]


def pytest_configure(config: pytest.Config) -> None:
    """The mark of what only `make test-full` runs."""
    config.addinivalue_line("markers", "slow: takes minutes; `make test` leaves it out, `make test-full` runs it")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """torch with one thread a worker: tiny matrices gain nothing from more, and workers share two cores."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """`make_once(name, make)`: the path `name`, made by `make(path)` once a run, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], None]) -> Path:
        path = shared / name
        with _lock(shared / f"{name}.lock"):
            if not path.exists():
                make(path)
        return path

    return once


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive between processes; the system lets go of it whatever happens to this one."""
    import fcntl

    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


try:
    import xdist  # noqa: F401
except ImportError:

    @pytest.fixture(scope="session")
    def worker_id() -> str:
        """What pytest-xdist gives when it is not in use."""
        return "master"
