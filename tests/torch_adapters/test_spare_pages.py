"""Pages that one side keeps and another could use: asked for without waiting, for two would wait for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.loader import load
from llamac.torch.prefixes import Prefixes


def test_two_sides_without_pages_do_not_wait_for_each_other(toy_artifact: Path) -> None:
    with load(toy_artifact) as model:
        sides: list[Prefixes] = []
        first = Prefixes(model.session, 4, lambda: sides[1].spare())
        second = Prefixes(model.session, 4, lambda: sides[0].spare())
        sides += [first, second]
        room, other = model.context, model.session.open()
        other.reserve(room - 8)
        ids, both_inside = np.arange(20).reshape(1, 20), threading.Barrier(2, timeout=20)
        refused: list[str] = []

        def use(side: Prefixes) -> None:
            with side._lock:  # as in a call that has begun
                both_inside.wait()
                try:
                    side.logits(ids, np.ones(ids.shape, bool), 1)
                except LlamacError as error:
                    refused.append(error.code)
                both_inside.wait()

        threads = [threading.Thread(target=use, args=(side,), daemon=True) for side in sides]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert refused == ["LLC0808"] * 2
        other.close()


def test_what_is_kept_is_given_where_nobody_is_at_work(toy_artifact: Path) -> None:
    with load(toy_artifact) as model:
        first = Prefixes(model.session)
        second = Prefixes(model.session, 4, first.spare)
        ids = np.arange(100).reshape(1, 100)
        found = first.logits(ids, np.ones(ids.shape, bool), 1)
        np.testing.assert_array_equal(second.logits(ids, np.ones(ids.shape, bool), 1), found)
        assert not first.spare(), "it was needed"
        with pytest.raises(LlamacError, match="LLC0809"):
            second.logits(np.zeros((1, 161), np.int64), np.ones((1, 161), bool), 1)
        second.close()
        assert model.session.pools[0].free_pages == model.session.pools[0].page_count
