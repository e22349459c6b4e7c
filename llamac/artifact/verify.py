"""Verifies every byte of an artifact without running anything from it.

Headers, padding and directory must be what the writer would have written, the manifest must be canonical and match its
hash, and all data must match SHA-256 and CRC-32.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from llamac.errors import LlamacError

from .directory import read_members
from .integrity import Finding, Progress, data_findings, header_findings
from .read import read_manifest
from .source_file import SourceFile

_NOT_A_FINDING = "LLC0704"


def verify_file(path: str | Path, progress: Progress | None = None) -> list[Finding]:
    """Everything that is wrong with the file: headers first, then data; an empty list for a sound artifact.

    A file that cannot be opened or read (LLC0704) is raised, not reported. When container or manifest are too damaged
    to go on, that is the only finding. progress: called with (bytes done, bytes in all).
    """
    findings: list[Finding] = []
    try:
        with closing(SourceFile(path)) as source:
            members = read_members(source)
            manifest = read_manifest(source, members, check_hash=True)
            findings += header_findings(source, members)
            findings += data_findings(source, members, manifest, progress)
    except LlamacError as error:
        if error.code == _NOT_A_FINDING:
            raise
        member = error.where.removeprefix(str(Path(path))).removeprefix(":")
        findings.append(Finding(error.code, error.reason, member))
    return findings
