"""Which memory has been touched since the last barrier, and whether an op must wait for one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Region:
    """A range of a named memory; no size means all of it. `columns` narrows it to a strip of every row."""

    memory: str
    start: int = 0
    size: int = 0
    columns: tuple[int, int] | None = None

    def overlaps(self, other: Region) -> bool:
        """Whether the two can share a byte."""
        if self.memory != other.memory:
            return False
        if not self.size or not other.size:
            return True
        if self.columns and other.columns and (self.start, self.size) == (other.start, other.size):
            return self.columns[0] < other.columns[1] and other.columns[0] < self.columns[1]
        return self.start < other.start + other.size and other.start < self.start + self.size


@dataclass
class Hazards:
    """Regions read and written since the last barrier. `everything` after a call, whose accesses are not listed."""

    read: list[Region] = field(default_factory=list)
    written: list[Region] = field(default_factory=list)
    everything: bool = False

    def conflicts(self, reads: list[Region], writes: list[Region]) -> bool:
        """Whether reading or writing these now would race: read after write, write after read, write after write."""
        if self.everything:
            return True
        after_write = any(a.overlaps(b) for a in [*reads, *writes] for b in self.written)
        return after_write or any(a.overlaps(b) for a in writes for b in self.read)

    def add(self, reads: list[Region], writes: list[Region]) -> None:
        """Remember accesses."""
        self.read += reads
        self.written += writes

    def clear(self) -> None:
        """A barrier: everything before it has happened."""
        self.read.clear()
        self.written.clear()
        self.everything = False
