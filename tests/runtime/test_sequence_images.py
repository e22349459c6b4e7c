"""Pictures among the positions of a sequence: what each row sees or takes, and what two prompts share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamac.errors import LlamacError
from llamac.runtime.images.loaded import LoadedPicture
from llamac.runtime.images.mllama_spans import visible_tokens
from llamac.runtime.images.placed import PromptImage, SequenceImages
from llamac.runtime.images.tiles import TiledImage
from llamac.runtime.kv import CachedSequence, PagePool, window_pages
from llamac.runtime.pictures import pictures_of

IMAGE = 9


def loaded(name: int) -> LoadedPicture:
    return LoadedPicture(TiledImage(np.full((1, 3, 2, 2), name, np.float32), 1, 1), bytes([name]))


def seen(at: int, tokens: int, name: int = 0) -> PromptImage:
    """A picture that stands at one position and has vision tokens."""
    return PromptImage(at, at + 1, loaded(name), vision_tokens=tokens)


def merged(at: int, name: int = 0) -> PromptImage:
    """A picture of two patches with a separator before and after them."""
    return PromptImage(at, at + 4, loaded(name), np.array([-1, 0, 1, -1], np.int32))


@given(st.lists(st.sampled_from([1, 2, IMAGE]), min_size=1, max_size=12), st.data())
def test_ranges_are_those_of_the_whole_prompt(ids: list[int], data: st.DataObject) -> None:
    places = [t for t, token in enumerate(ids) if token == IMAGE]
    sizes = [data.draw(st.integers(1, 5)) for _ in places]
    images = SequenceImages()
    for place, size in zip(places, sizes, strict=True):
        images.add(seen(place, size), None)
    start, stop = visible_tokens(ids, IMAGE, sizes)
    low = data.draw(st.integers(0, len(ids)))
    first, end = images.ranges(low, len(ids))
    assert (end == stop[low:]).all()
    assert (first[end > first] == start[low:][end > first]).all()
    assert ((first < end) == (start < stop)[low:]).all()
    later, last = images.ranges(len(ids), len(ids) + 2)
    assert (last == stop[-1]).all() and (later[last > later] == start[-1]).all()


def test_rows_count_over_all_pictures_that_a_piece_touches() -> None:
    images = SequenceImages()
    for at, value in ((2, 1.0), (8, 2.0), (12, 3.0)):
        images.add(merged(at), np.full((2, 3), value, np.float32))
    rows, parts = images.rows(0, 16)
    assert rows.tolist() == [-1, -1, -1, 0, 1, -1, -1, -1, -1, 2, 3, -1, -1, 4, 5, -1]
    assert [part[0, 0] for part in parts] == [1.0, 2.0, 3.0]
    rows, parts = images.rows(4, 10)
    assert rows.tolist() == [1, -1, -1, -1, -1, 2] and len(parts) == 2
    rows, parts = images.rows(6, 8)
    assert rows.tolist() == [-1, -1] and parts == []


def test_embeddings_go_when_they_have_been_fed() -> None:
    images = SequenceImages()
    for at in (0, 6):
        images.add(merged(at), np.zeros((2, 3), np.float32))
    images.fed(5)
    assert [placed.embeddings is None for placed in images.placed] == [True, False]
    assert [images.resumable(n) for n in range(12)] == [0, 0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11]
    images.truncate(6)
    assert len(images.placed) == 1


@pytest.mark.parametrize(
    ("images", "agreeing"),
    [
        ([merged(2), merged(8, 1)], 20),
        ([merged(2), merged(8, 2)], 8),
        ([merged(2, 3), merged(8, 1)], 2),
        ([merged(2)], 8),
        ([merged(2), merged(8, 1), merged(14)], 14),
        ([], 2),
    ],
)
def test_two_prompts_agree_up_to_the_first_other_picture(images: list[PromptImage], agreeing: int) -> None:
    mine = SequenceImages()
    for image in (merged(2), merged(8, 1)):
        mine.add(image, None)
    assert mine.agreeing(images, 20) == agreeing
    assert mine.agreeing(images, 1) == 1


def cached(*pools: PagePool, ids: int = 0) -> CachedSequence:
    sequence = CachedSequence(*pools)
    sequence.ids = list(range(ids))
    return sequence


def test_a_sequence_goes_back_to_the_beginning_of_a_picture_it_cut() -> None:
    sequence = cached(PagePool(4, 4), ids=10)
    sequence.images.add(merged(3), np.zeros((2, 3), np.float32))
    sequence.truncate(5)
    assert len(sequence) == 5, "its embeddings are still there"
    sequence.images.fed(7)
    sequence.truncate(5)
    assert len(sequence) == 3 and sequence.images.placed == []


def test_a_chunk_that_begins_inside_a_picture() -> None:
    """Pages behind a chunk are gone: back to the chunk's first position, and from there to the picture's."""
    pool = PagePool(window_pages(8, 4, 4), 4, 8, 4)
    sequence = cached(pool, ids=14)
    sequence.reserve(14)
    for stop in (4, 8, 12, 14):
        sequence.ids = list(range(stop - 4 if stop > 4 else 0))
        sequence.cover(stop)
    sequence.ids = list(range(14))
    sequence.images.add(PromptImage(6, 12, loaded(0), np.array([-1, 0, 1, 2, 3, -1], np.int32)), None)
    sequence.truncate(10)
    assert len(sequence) == 0 and sequence.images.placed == []  # 10 -> 6, whose chunk has lost its pages -> 0


def test_vision_tokens_have_pages_of_their_own() -> None:
    text, vision = PagePool(4, 4), PagePool(3, 4, cross=True)
    sequence = cached(text, vision)
    sequence.reserve(5, 6)
    assert (text.free_pages, vision.free_pages) == (2, 1) and sequence.takes_vision_tokens
    sequence.cover_vision(6)
    sequence.images.add(seen(0, 6), None)
    sequence.cover(5)
    assert len(sequence.pages) == 2 and len(sequence.vision_pages) == 2
    with pytest.raises(LlamacError, match=r"LLC0839 images: 2 more pages of 4 vision tokens are needed, 1 are free"):
        sequence.reserve(9, 16)
    assert text.free_pages == 2, "nothing was taken"
    assert sequence.missing_pages(9, 12) == [1, 1]
    sequence.ids = [1, 2, 3]
    sequence.truncate(0)
    sequence.trim()
    assert vision.free_pages == 3 and sequence.vision_pages == []
    sequence.close()
    assert text.free_pages == 4


def test_what_a_step_shows() -> None:
    plain, with_picture = cached(PagePool(4, 4)), cached(PagePool(4, 4))
    assert pictures_of([(plain, 2), (with_picture, 3)]) is None
    with_picture.images.add(merged(1), np.full((2, 3), 7.0, np.float32))
    shown = pictures_of([(plain, 2), (with_picture, 3)])
    assert shown is not None and shown.image_rows is not None and shown.image_embeddings is not None
    assert shown.image_rows.tolist() == [-1, -1, -1, -1, 0] and shown.image_embeddings.shape == (2, 3)
    with_picture.ids = [0] * 6
    assert pictures_of([(with_picture, 2)]) is None, "its rows lie before the step"
    pools = PagePool(4, 4), PagePool(4, 4, cross=True)
    first, second = cached(*pools), cached(*pools)
    second.images.add(seen(1, 3), None)
    shown = pictures_of([(first, 1), (second, 3)])
    assert shown is not None and shown.vision_start is not None and shown.vision_stop is not None
    assert shown.vision_start.tolist() == [0, 0, 0, 0] and shown.vision_stop.tolist() == [0, 0, 3, 3]
    assert pictures_of([(first, 1), (second, 1)]) is None, "nobody sees anything yet"
