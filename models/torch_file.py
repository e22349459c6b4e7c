"""The container of torch.save: a bounds-checked reading of which tensors a `.pth` file holds, and where.

The file is a ZIP archive of stored members: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` are their bytes.
torch is not needed, and the pickle is read as data (`torch_pickle`).
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from llamac.errors import LlamacError

from .input_files import check_not_lfs_pointer
from .torch_pickle import ITEM_BYTES, REPAIR, TensorRecord, read_pickle

ENCODINGS = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "e4m3fn",
    "int8": "i8",
    "uint8": "u8",
    "int32": "i32",
}
"""torch dtype -> encoding of a `StoredTensor`."""
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_LIMIT = 64 << 20
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
ENCRYPTED = 1


@dataclass(frozen=True)
class TorchTensor:
    """One tensor of a file: its first element lies at `offset` of the file, `strides` count elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: Path
    offset: int

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class TorchFile:
    """The tensors of a file by name, and the names of what else it holds, which is never looked into."""

    path: Path
    tensors: dict[str, TorchTensor]
    others: tuple[str, ...]


def read_torch_file(path: Path) -> TorchFile:
    """Parse the archive and its pickle; no tensor data is touched, nothing is executed.

    Raises LLC0202 (git-lfs pointer), LLC0203 (truncated), LLC0210 (older format, TorchScript), LLC0220 (damaged) or
    LLC0221 (a pickle that asks for anything but tensors).
    """
    try:
        check_not_lfs_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            _check_is_archive(path, file.read(4))
            with zipfile.ZipFile(file) as archive:
                members = _members(path, archive, size)
                prefix, described = _description(path, archive, members)
            return _tensors(path, file, members, prefix, described, size)
    except OSError as error:
        raise LlamacError("LLC0201", path.name, f"cannot be read: {error.strerror}", "check its permissions") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, RuntimeError) as error:
        reason = f"not a whole archive of torch.save: {str(error)[:100]}"
        raise LlamacError("LLC0203", path.name, reason, REPAIR) from None


def _check_is_archive(path: Path, magic: bytes) -> None:
    if magic == ZIP_MAGIC:
        return
    if magic[:1] == b"\x80":
        reason = "this is a plain pickle, the format of torch before 1.6: only running it would show what it holds"
        hint = "save it again: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
        raise LlamacError("LLC0210", path.name, reason, hint)
    raise LlamacError("LLC0220", path.name, f"starts with {magic!r}, which no torch.save writes", REPAIR)


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        if name.endswith("/constants.pkl"):
            reason = "this is a TorchScript archive: code, not a file of weights"
            raise LlamacError("LLC0210", path.name, reason, "pass the weights of the model")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
            _damaged(path, f"the member {name[:80]!r} is compressed or encrypted")
        if name in members:
            _damaged(path, f"the member {name[:80]!r} appears twice")
        if member.file_size != member.compress_size or member.header_offset + member.file_size > size:
            _damaged(path, f"the member {name[:80]!r} does not fit the file")
        members[name] = member
    return members


def _description(
    path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> tuple[str, Mapping[object, object]]:
    """The folder inside the archive, and the dict of the file's tensors by name."""
    found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        _damaged(path, f"it has {len(found)} descriptions of tensors (data.pkl), expected one")
    prefix = found[0].removesuffix("data.pkl")
    if members[found[0]].file_size > PICKLE_LIMIT:
        _damaged(path, f"its data.pkl is larger than {PICKLE_LIMIT} bytes")
    stated = members.get(f"{prefix}byteorder")
    if stated is not None and stated.file_size > len("little"):
        _damaged(path, f"its byteorder has {stated.file_size} bytes")
    order = b"little" if stated is None else archive.read(stated)
    if order != b"little":
        raise LlamacError("LLC0210", path.name, "it was written on a big-endian machine", "save it on another machine")
    described = read_pickle(archive.read(found[0]), path.name)
    if not isinstance(described, dict):
        _damaged(path, "it holds no dict of tensors")
    return prefix, described


def _tensors(
    path: Path,
    file: BufferedReader,
    members: Mapping[str, zipfile.ZipInfo],
    prefix: str,
    described: Mapping[object, object],
    size: int,
) -> TorchFile:
    starts: dict[str, int] = {}
    tensors: dict[str, TorchTensor] = {}
    others: list[str] = []
    for name, record in described.items():
        if not isinstance(record, TensorRecord):
            others.append(str(name)[:120])
            continue
        member = members.get(f"{prefix}data/{record.storage.key}")
        if member is None:
            _damaged(path, f"the data of {str(name)[:80]!r} is missing")
        _check_bounds(path, str(name), record, member.file_size)
        if member.filename not in starts:
            starts[member.filename] = _data_start(path, file, member, size)
        offset = starts[member.filename] + record.offset * ITEM_BYTES[record.dtype]
        tensors[str(name)] = TorchTensor(str(name), record.dtype, record.shape, record.strides, path, offset)
    return TorchFile(path, tensors, tuple(others))


def _check_bounds(path: Path, name: str, record: TensorRecord, nbytes: int) -> None:
    """Every element of the tensor must lie inside its storage."""
    if record.dtype not in ITEM_BYTES:
        _damaged(path, f"{name[:80]!r} has the unknown dtype {record.dtype[:40]!r}")
    count = nbytes // ITEM_BYTES[record.dtype]
    last = record.offset + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides, strict=True))
    if 0 not in record.shape and last >= count:
        _damaged(path, f"{name[:80]!r} of shape {list(record.shape)} reaches beyond its {count} stored elements")


def _data_start(path: Path, file: BufferedReader, member: zipfile.ZipInfo, size: int) -> int:
    """Where the bytes of a member start: its local header has a name and padding of its own length."""
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != ZIP_MAGIC:
        _damaged(path, f"the member {member.filename[:80]!r} has no header")
    fields = LOCAL_HEADER.unpack(header)
    start: int = member.header_offset + LOCAL_HEADER.size + fields[9] + fields[10]
    if start + member.file_size > size:
        _damaged(path, f"the member {member.filename[:80]!r} reaches beyond the end of the file")
    return start


def _damaged(path: Path, reason: str) -> NoReturn:
    raise LlamacError("LLC0220", path.name, reason, REPAIR)
