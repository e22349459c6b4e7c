"""The process of a rank other than the first: `python -m llamac.runtime.rank_process START`, started by rank 0."""

from __future__ import annotations

import json
import signal
import sys


def main() -> None:
    """Serve rank 0 until it closes the connection; Ctrl-C is for rank 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .device_ranks import RankStart, serve

    fields = json.loads(sys.argv[1])
    fields["sockets"] = {int(rank): number for rank, number in fields["sockets"].items()}
    if fields["settings"]["pinned"] is not None:
        fields["settings"]["pinned"] = tuple(fields["settings"]["pinned"])
    serve(RankStart(**fields))


if __name__ == "__main__":
    main()
