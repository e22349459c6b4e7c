"""Streaming: never half a character, nothing of a stop string, and in the end exactly the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.text.stream import StopStrings, StreamDecoder
from llamac.runtime.text.tokenizer import TokenizerBase


class Bytes(TokenizerBase):
    """Ids 0..255 are bytes; 256 and 257 are control tokens; 258 is a whole word with a broken end."""

    def __init__(self, leading_space: bool = False) -> None:
        super().__init__(vocab_size=259, special_ids={"<s>": 256, "é</s>": 257}, bos_id=256, eos_id=257, add_bos=True)
        self.leading_space = leading_space

    def _piece_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else " wörd\N{GRINNING FACE}".encode()[:-2]


ANY_IDS = st.lists(
    st.integers(0, 260) | st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x82, 0xAC, 0xC3, 0x20]), max_size=30
)


@settings(max_examples=400, deadline=None)
@given(ids=ANY_IDS, skip=st.booleans(), continuation=st.booleans(), leading=st.booleans())
def test_the_pieces_are_the_whole(ids: list[int], skip: bool, continuation: bool, leading: bool) -> None:
    tokenizer = Bytes(leading)
    stream = StreamDecoder(tokenizer, skip_special=skip, continuation=continuation)
    pieces = [stream.feed(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip, continuation=continuation)


@given(text=st.text(max_size=20))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    stream = StreamDecoder(Bytes())
    shown = ""
    for place, byte in enumerate(data := text.encode(), start=1):
        shown += stream.feed(byte)
        assert shown == data[:place].decode("utf-8", "ignore")
    assert stream.finish() == ""


def test_invalid_bytes_show_as_soon_as_they_are_certain() -> None:
    stream = StreamDecoder(Bytes())
    assert [stream.feed(byte) for byte in (0xFF, 0xE2, 0x82, 0x41, 0xF0)] == ["\ufffd", "", "", "\ufffdA", ""]
    assert stream.finish() == "\ufffd"


def test_a_control_token_inside_a_character_does_not_break_it() -> None:
    stream = StreamDecoder(Bytes())
    assert [stream.feed(i) for i in (0xC3, 256, 0xA9)] == ["", "", "é"]


STOPS = st.lists(st.text("ab\u00e9", min_size=1, max_size=4), min_size=1, max_size=3)


def letter_by_letter(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the first place at which some stop string is complete; of those, the longest."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.text("ab\u00e9", max_size=5), max_size=8), stops=STOPS)
def test_stop_strings_do_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown, found = "", None
    for piece in pieces:
        text, stop = matcher.feed(piece)
        shown += text
        found = found or stop
    assert (shown + matcher.finish(), found) == letter_by_letter("".join(pieces), stops)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=3), max_size=8), stops=STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    shown = seen = ""
    for piece in pieces:
        text, stop = matcher.feed(piece)
        shown, seen = shown + text, seen + piece
        if stop:
            return
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_after_the_stop_nothing_is_shown() -> None:
    matcher = StopStrings(["\n\n", "END"])
    assert matcher.feed("one\n") == ("one", None)
    assert matcher.feed("two E") == ("\ntwo ", None)
    assert matcher.feed("ND more") == ("", "END")
    assert (matcher.feed("x"), matcher.finish()) == (("", None), "")


def test_no_stop_strings_hold_nothing_back() -> None:
    assert StopStrings([]).feed("abc") == ("abc", None)


@pytest.mark.parametrize("stops", ["text", [""], [1]])
def test_bad_stop_strings(stops: list[str]) -> None:
    with pytest.raises(LlamacError, match="LLC0852"):
        StopStrings(stops)
