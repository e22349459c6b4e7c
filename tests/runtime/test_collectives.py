"""The transport between processes beside torch.distributed's gloo, and where it is used wrongly."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.collectives import SocketCollectives, socket_mesh

RANKS = 3
SIZES = [(1,), (5, 7), (64, 1024), (1, 300_001)]
"""The last one is more than sockets hold at once."""


def given(rank: int, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """What a rank brings."""
    return np.random.default_rng([rank, *size]).standard_normal(size).astype(np.float32)


def beside_gloo(rank: int, folder: str) -> None:
    """One process: the same exchanges through gloo and through sockets of its own making."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    peers = {}
    for low, high in itertools.combinations(range(RANKS), 2):  # every pair meets at a path of its own
        near, path = socket.socket(socket.AF_UNIX), f"{folder}/{low}-{high}"
        if rank == low:
            near.bind(path)
            near.listen(1)
        dist.barrier()
        if rank == low:
            peers[high] = near.accept()[0]
        elif rank == high:
            near.connect(path)
            peers[low] = near
    ours = SocketCollectives(rank, peers)
    for size in SIZES:
        mine = given(rank, size)
        summed, parts = torch.from_numpy(mine.copy()), [torch.empty(size) for _ in range(RANKS)]
        dist.all_reduce(summed)
        dist.all_gather(parts, torch.from_numpy(mine))
        found = ours.all_reduce(mine)
        np.testing.assert_allclose(found, summed.numpy(), rtol=0, atol=2e-6)
        for a, b in zip(ours.all_gather(mine), parts, strict=True):
            np.testing.assert_array_equal(a, b.numpy())
        np.save(f"{folder}/{rank}-{size[-1]}.npy", found)
    dist.destroy_process_group()


@pytest.mark.skipif(os.name != "posix", reason="sockets of the file system")
def test_beside_gloo(tmp_path: Path) -> None:
    """Three processes: the sums of gloo to rounding, its joins to the bit; every rank has the same bits."""
    pytest.importorskip("torch")
    code = "import sys; from test_collectives import beside_gloo; beside_gloo(int(sys.argv[1]), sys.argv[2])"
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": folder}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)], env=environment, cwd=folder)
        for rank in range(RANKS)
    ]
    assert [process.wait(120) for process in started] == [0] * RANKS
    for size in SIZES:
        sums = [np.load(tmp_path / f"{rank}-{size[-1]}.npy") for rank in range(RANKS)]
        expected = given(0, size) + given(1, size) + given(2, size)
        assert all((found == expected).all() for found in sums)


def together(work: list[Callable[[], object]]) -> list[object]:
    """Each in a thread; what it gives, or the error."""
    found: list[object] = [None] * len(work)

    def run(number: int) -> None:
        try:
            found[number] = work[number]()
        except LlamacError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "they wait for one another"
    return found


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_large_rows_do_not_block(ranks: int) -> None:
    """More than a socket's buffers hold, from every rank at once."""
    all_ranks = [SocketCollectives(rank, peers) for rank, peers in enumerate(socket_mesh(ranks))]
    size = (3, 400_000)
    found = together([lambda c=c: c.all_reduce(given(c.rank, size)) for c in all_ranks])
    expected = given(0, size)
    for rank in range(1, ranks):
        expected = expected + given(rank, size)
    for total in found:
        np.testing.assert_array_equal(total, expected)


def test_other_exchanges_are_noticed() -> None:
    """Ranks that have come to different exchanges do not add what is not alike."""
    first, second = (SocketCollectives(rank, peers) for rank, peers in enumerate(socket_mesh(2)))
    found = together(
        [lambda: first.all_reduce(np.ones(4, np.float32)), lambda: second.all_reduce(np.ones(5, np.float32))]
    )
    assert any(isinstance(e, LlamacError) and e.code == "LLC0868" and "16 bytes" in e.reason for e in found)


def test_who_has_gone_is_named() -> None:
    first, second = (SocketCollectives(rank, peers) for rank, peers in enumerate(socket_mesh(2)))
    second.close()
    with pytest.raises(LlamacError) as found:
        first.all_gather(np.ones((2, 2), np.float32))
    assert found.value.code == "LLC0868" and found.value.where == "rank 1"
