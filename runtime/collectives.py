"""How the processes of a divided model come together: sums and joins of rows that all of them take part in.

`Collectives` is what a device needs of a transport. Here is the one between processes of one machine, over sockets;
GPUs meet through NCCL or RCCL (`gpu/nccl.py`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamac.errors import LlamacError

Float32s = npt.NDArray[np.float32]

_HEADER = struct.Struct("<QQ")
"""Number of the exchange, bytes that follow."""


class Collectives(Protocol):
    """One process among `ranks`, number `rank`; all of them make the same calls in the same order."""

    rank: int
    ranks: int

    def all_reduce(self, mine: Float32s) -> Float32s:
        """The sum of every rank's array, in the order of the ranks, so that all have the same bits."""

    def all_gather(self, mine: Float32s) -> list[Float32s]:
        """Every rank's array, in the order of the ranks."""

    def close(self) -> None:
        """Let go of the others; their next call fails."""


class SocketCollectives:
    """Between processes of one machine: each has a stream socket to every other one.

    LLC0868 where another process has gone, or has come to another exchange.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket]) -> None:
        self.rank = rank
        self.ranks = len(peers) + 1
        self._peers = dict(sorted(peers.items()))
        self._number = 0

    def all_reduce(self, mine: Float32s) -> Float32s:
        """As `Collectives` says."""
        total, *rest = self.all_gather(mine)
        total = total.copy()
        for part in rest:
            total += part
        return total

    def all_gather(self, mine: Float32s) -> list[Float32s]:
        """As `Collectives` says."""
        self._number += 1
        given = np.ascontiguousarray(mine, np.float32)
        found = {self.rank: given}
        # Pairs meet in one order everywhere, the lower rank speaking first: no two wait for each other to listen.
        for other, peer in self._peers.items():
            if self.rank < other:
                self._send(other, peer, given)
            found[other] = self._receive(other, peer, given)
            if self.rank > other:
                self._send(other, peer, given)
        return [found[rank] for rank in range(self.ranks)]

    def close(self) -> None:
        """As `Collectives` says."""
        for peer in self._peers.values():
            peer.close()

    def _send(self, other: int, peer: socket.socket, given: Float32s) -> None:
        try:
            peer.sendall(_HEADER.pack(self._number, given.nbytes))
            peer.sendall(given.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._gone(other, str(error.strerror or error)) from None

    def _receive(self, other: int, peer: socket.socket, like: Float32s) -> Float32s:
        number, nbytes = _HEADER.unpack(self._read(other, peer, bytearray(_HEADER.size)))
        if (number, nbytes) != (self._number, like.nbytes):
            reason = f"it is at exchange {number} of {nbytes} bytes, this one at {self._number} of {like.nbytes}"
            raise self._gone(other, reason)
        found = np.empty(like.shape, np.float32)
        self._read(other, peer, found.reshape(-1).view(np.uint8).data)
        return found

    def _read(self, other: int, peer: socket.socket, into: bytearray | memoryview) -> bytearray | memoryview:
        view, done = memoryview(into), 0
        while done < len(view):
            try:
                count = peer.recv_into(view[done:])
            except OSError as error:
                raise self._gone(other, str(error.strerror or error)) from None
            if not count:
                raise self._gone(other, "it has ended")
            done += count
        return into

    def _gone(self, other: int, reason: str) -> LlamacError:
        """The error; nobody shall wait for this rank any more."""
        self.close()
        return LlamacError("LLC0868", f"rank {other}", reason, "load the model again; look at what its process printed")


def socket_mesh(ranks: int) -> list[dict[int, socket.socket]]:
    """For each rank its sockets to the others, by their rank."""
    mesh: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
    for low in range(ranks):
        for high in range(low + 1, ranks):
            mesh[low][high], mesh[high][low] = socket.socketpair()
    return mesh
