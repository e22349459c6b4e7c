"""Loads a code member as a shared library straight from the artifact's bytes, and declares its functions.

On Linux the bytes go to an anonymous memory file and are opened as `/proc/self/fd/N`: nothing touches the disk. The
descriptor is never closed: if its number were reused, `dlopen` would silently return the first library again.
Elsewhere, or where the kernel forbids executable memory files, a private temporary file serves.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, cast

from llamac.errors import LlamacError

from .ranked import TopOutput

ABI_VERSION = 3
"""The native interface this runtime speaks: `llamac_abi_version()` of every code member must answer it."""

_POINTER, _U32, _U64, _INT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int


EXCHANGE = ctypes.CFUNCTYPE(_INT, _POINTER, _U32, _POINTER, _POINTER, _POINTER, _U64, _U64)
"""`llamac_exchange`: how a rank of a divided model meets the others within a step."""


class KvMemory(ctypes.Structure):
    """`llamac_kv_memory`: the memory of one cache."""

    _fields_: ClassVar = [("base", _POINTER), ("bytes", _U64), ("pages", _U32)]


class StepInput(ctypes.Structure):
    """`llamac_step_input`: what a step runs."""

    _fields_: ClassVar = [
        *((name, _U32) for name in ("tokens", "sequences", "pages_per_sequence", "logit_count")),
        *((name, _POINTER) for name in ("token_ids", "positions", "sequence_of_token", "page_tables", "logit_rows")),
        ("logits", _POINTER),
        ("image_rows", _POINTER),
        ("image_embeddings", _POINTER),
        ("image_count", _U32),
        ("vision_start", _POINTER),
        ("vision_stop", _POINTER),
    ]


class ImageInput(ctypes.Structure):
    """`llamac_image_input`: what the image encoder runs."""

    _fields_: ClassVar = [
        ("tiles", _U32),
        ("aspect_ratio", _U32),
        *((name, _POINTER) for name in ("pixels", "embeddings", "pages")),
        ("page_count", _U32),
        ("first", _U32),
    ]


class OpInfo(ctypes.Structure):
    """`llamac_op`: what an op of the code is, and the work that a call of it does."""

    _fields_: ClassVar = [
        *((name, ctypes.c_char_p) for name in ("function", "kind", "name", "detail")),
        *((name, _U64) for name in ("weight_bytes", "token_bytes", "key_bytes", "operations")),
        *((name, _U32) for name in ("per", "unit", "cache", "experts", "chosen")),
    ]


class OpTimes(ctypes.Structure):
    """`llamac_profile_row`: what an op took."""

    _fields_: ClassVar = [("calls", _U64), ("nanoseconds", _U64), ("waited", _U64)]


_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "llamac_abi_version": (_U32, []),
    "llamac_create": (
        _INT,
        [ctypes.POINTER(_POINTER), _POINTER, _U64, ctypes.POINTER(KvMemory), _U32, _POINTER, _U64, _U32],
    ),
    "llamac_destroy": (None, [_POINTER]),
    "llamac_step": (_INT, [_POINTER, ctypes.POINTER(StepInput)]),
    "llamac_expert_counts": (_U64, [_POINTER, _POINTER, _U64]),
    "llamac_status_text": (ctypes.c_char_p, [_INT]),
}
"""Function -> (result, arguments) of the C interface; `docs/` has the header that says what each argument means."""

_OPTIONAL: dict[str, tuple[type | None, list[type]]] = {
    "llamac_ops": (_U32, [ctypes.POINTER(ctypes.POINTER(OpInfo))]),
    "llamac_profile": (None, [_POINTER, _INT, ctypes.POINTER(OpTimes), _U32]),
    "llamac_peak": (ctypes.c_double, [_POINTER, _U32]),
    "llamac_pin": (_INT, [_POINTER, ctypes.POINTER(_U32)]),
    "llamac_copy": (None, [_POINTER, _POINTER, _POINTER, _U64]),
    "llamac_set_group": (_INT, [_POINTER, _U32, _U32, EXCHANGE, _POINTER]),
}
"""The same for functions that running needs only when asked for what they do."""


class NativeLibrary:
    """The functions of one loaded code member."""

    def __init__(self, library: ctypes.CDLL, where: str) -> None:
        self.where = where
        self._library = library
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise LlamacError("LLC0803", where, f"the code has no function {name}", "compile it again") from None
            function.restype, function.argtypes = result, arguments
        self._check_version()
        self.encode_image = self._encoder()
        self.most_top, self.step_top = self._ranking()
        self.create = cast("Callable[..., int]", library.llamac_create)
        self.destroy = cast("Callable[..., None]", library.llamac_destroy)
        self.step = cast("Callable[..., int]", library.llamac_step)
        self.expert_counts = cast("Callable[..., int]", library.llamac_expert_counts)

    def _encoder(self) -> Callable[..., int] | None:
        """The image encoder, which only models that take pictures have."""
        function = getattr(self._library, "llamac_encode_image", None)
        if function is not None:
            function.restype, function.argtypes = _INT, [_POINTER, ctypes.POINTER(ImageInput)]
        return cast("Callable[..., int] | None", function)

    def _ranking(self) -> tuple[int, Callable[..., int] | None]:
        """The longest list of best logits, and the step that ranks them; 0 and None for code that does not."""
        function = getattr(self._library, "llamac_step_top", None)
        if function is None:
            return 0, None
        function.restype, function.argtypes = _INT, [_POINTER, ctypes.POINTER(StepInput), ctypes.POINTER(TopOutput)]
        most = self._library.llamac_most_top
        most.restype, most.argtypes = _U32, []
        return int(most()), cast("Callable[..., int]", function)

    def optional(self, name: str) -> Callable[..., Any]:
        """A function that not all code has; LLC0803 when this code has not."""
        function = getattr(self._library, name, None)
        if function is None:
            raise LlamacError("LLC0803", self.where, f"the code has no function {name}", "compile it again")
        function.restype, function.argtypes = _OPTIONAL[name]
        return cast("Callable[..., Any]", function)

    def _check_version(self) -> None:
        found = self._library.llamac_abi_version()
        if found != ABI_VERSION:
            reason = f"the code speaks native interface {found}, this llamac speaks {ABI_VERSION}"
            raise LlamacError("LLC0804", self.where, reason, "compile the model again, or use the llamac that made it")

    def status_text(self, status: int) -> str:
        """The code's own words for a status other than 0."""
        text = self._library.llamac_status_text(status)
        return f"status {status}" if text is None else f"{text.decode('utf-8', 'replace')} (status {status})"


def load_library(code: bytes, where: str) -> NativeLibrary:
    """Load the shared library whose bytes are `code`; `where` (the member's name) appears in errors.

    Raises LLC0803 when the system refuses it and LLC0804 when it speaks another interface.
    """
    try:
        library = _load_from_memory(code, where)
    except OSError:
        library = _load_from_file(code, where)
    return NativeLibrary(library, where)


def _load_from_memory(code: bytes, where: str) -> ctypes.CDLL:
    if not hasattr(os, "memfd_create"):
        raise OSError("no memory files on this system")
    descriptor = os.memfd_create(where)
    try:
        _write_all(descriptor, code)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")  # the descriptor stays open on purpose, see above
    except OSError:
        os.close(descriptor)
        raise


def _write_all(descriptor: int, code: bytes) -> None:
    rest = memoryview(code)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _load_from_file(code: bytes, where: str) -> ctypes.CDLL:
    import tempfile  # 12 ms that the usual way does not need

    name = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix="llamac-", suffix=".so")
        with open(descriptor, "wb") as file:
            file.write(code)
        return ctypes.CDLL(name)
    except OSError as error:
        hint = "set TMPDIR to a folder from which code may be executed"
        raise LlamacError("LLC0803", where, f"the system does not load the code: {error}", hint) from error
    finally:
        with suppress(OSError):  # some systems keep a library that is loaded
            os.unlink(name)
