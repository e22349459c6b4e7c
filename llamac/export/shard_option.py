"""`--option shard=5G`: the size that a file of weights should not exceed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamac.errors import LlamacError

SHARD = "shard"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SIZE = re.compile(r"([1-9]\d{0,15})([KMG]?)B?", re.IGNORECASE)


def shard_bytes(options: Mapping[str, str]) -> int:
    """The wanted size in bytes; LLC0950 for what is none."""
    text = options.get(SHARD, "5G")
    match = _SIZE.fullmatch(text)
    if match is None:
        raise LlamacError("LLC0950", f"--option {SHARD}", f"'{text[:40]}' is no size", "write 500M, 2G or 5000000000")
    return int(match.group(1)) * _UNITS[match.group(2).upper()]
