"""One caller at a time at a device, whatever threads and processes do with the model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamac.errors import LlamacError
from llamac.runtime.conversation import Conversation
from llamac.runtime.kv import CachedSequence
from llamac.runtime.loader import load
from llamac.runtime.run_plan import CachePlan, MemoryPlan
from llamac.runtime.session import Feed, Session


class OrderedDevice:
    """As a divided model's: a step is ordered from others and then done, which two callers must not mix."""

    plan = MemoryPlan(0, 4, (CachePlan(0, (0,), 64),), "f32", 8, 0, 0)
    vocab_size = 5
    page_counts = (1000,)

    def __init__(self) -> None:
        self.inside = 0
        self.most_inside = 0

    def _work(self) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.001)
        self.inside -= 1

    def step(self, *arguments: Any) -> None:
        """One step."""
        self._work()
        arguments[5][:] = 0

    def copy_page(self, cache: int, source: int, to: int) -> None:
        """One copy."""
        self._work()


def test_steps_and_copies_of_several_threads_do_not_mix() -> None:
    device = OrderedDevice()
    session = Session(device, 100)

    def use(number: int) -> None:
        sequence = session.open()
        for token in range(4):
            session.step([Feed(sequence, [token])])
            fork = session.fork(sequence)
            session.step([Feed(fork, [token])])
            fork.close()
        sequence.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))
    assert device.most_inside == 1
    assert session.pools[0].free_pages == 1000


def in_a_fork(work: Callable[[], object]) -> str:
    """What `work` raises in a forked process, as its text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = f"gave {work()!r}"
        except BaseException as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_forked_process_is_told_instead_of_waiting_for_threads_that_it_has_not(toy_artifact: Path) -> None:
    with load(toy_artifact) as model:
        said = in_a_fork(lambda: model.generate("ab", max_new_tokens=2))
        assert said.startswith("LLC0819 model: the process was forked"), said
        stream = model.stream("ab", max_new_tokens=9)
        next(stream)
        # Neither closing a stream nor the model waits for whoever held a lock in the other process.
        with model.session.turns.of(), model._device._lock:
            assert in_a_fork(lambda: (stream.close(), model.close())) == "gave (None, None)"
        stream.close()
        assert model.generate("ab", max_new_tokens=2).text == "cd"


AT_EXIT = """
import sys, threading, time
import atexit
import numpy as np
from llamac.errors import LlamacError
from llamac.runtime.cpu_settings import CpuSettings
from llamac.runtime.device_cpu import CpuDevice
from llamac.runtime.run_plan import CachePlan, MemoryPlan

class Library:
    where, most_top = "toy", 0
    def create(self, model, *rest):
        model._obj.value = 1
        return 0
    def destroy(self, model):
        sys.stdout.write("destroyed ")
    def step(self, *rest):
        begun.set()
        time.sleep(0.1)
        sys.stdout.write("stepped ")
        sys.stdout.flush()
        return 0

atexit.register(lambda: device.close())
plan = MemoryPlan(64, 4, (CachePlan(0, (0,), 64),), "f32", 8, 0, 0)
device = CpuDevice(Library(), plan, 5, np.zeros(64, np.uint8), [4], CpuSettings(1))
begun, one = threading.Event(), np.zeros(1, np.int32)

def steps():
    try:
        while True:
            device.step(one, one, one, np.zeros((1, 1, 1), np.int32), one, np.zeros((1, 5), np.float32))
    except LlamacError as error:
        assert error.code == "LLC0815"

threading.Thread(target=steps, daemon=True).start()
begun.wait()
"""


def test_the_end_of_the_process_waits_for_the_step_of_a_daemon_thread() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, set(done.stdout.split()), done.stderr) == (0, {"stepped"}, "")


def test_one_text_at_a_time_in_a_sequence(toy_artifact: Path) -> None:
    with load(toy_artifact) as model:
        conversation = Conversation(model, max_new_tokens=4)
        first = conversation.say("a")
        next(first)
        with pytest.raises(LlamacError, match=r"LLC0820.*another text is being written"):
            list(conversation.say("b"))
        first.close()
        assert len("".join(conversation.say("b"))) == 4
        assert [row["content"] for row in conversation.messages[::2]] == ["a", "b"]
        conversation.close()


def test_a_batch_waits_for_pages_that_another_thread_took_in_between(
    toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that were free when a text was looked at are gone when it takes them: nothing is lost, it waits."""
    with load(toy_artifact, sequences=2) as model:
        other, plain = model.session.open(), CachedSequence.reserve
        calls: list[int] = []

        def raced(sequence: CachedSequence, *wanted: int) -> None:
            calls.append(sequence.tables[0].owned)
            if calls.count(0) == 2 and calls[-1] == 0:  # the second text of the batch
                plain(other, model.session.pools[0].free_pages * 4)
            elif len(calls) == 8:
                other.close()
            plain(sequence, *wanted)

        monkeypatch.setattr(CachedSequence, "reserve", raced)
        outcomes = model.generate_batch([[1], [2]], max_new_tokens=10)
        assert [row.token_ids[0] for row in outcomes] == [2, 3]
        assert other.closed and model.session.pools[0].free_pages == model.session.pools[0].page_count


def test_threads_and_streams_share_a_model(toy: Any) -> None:
    """Streams that are left standing, closed, or collected give their pages back beside texts of other threads."""
    with load(toy.make(), sequences=6) as model:
        left = model.stream([7], max_new_tokens=40)
        next(left)
        errors: list[BaseException] = []

        def use(number: int) -> None:
            try:
                stream = model.stream([number], max_new_tokens=30)
                next(stream)
                if number % 2:
                    stream.close()
                assert model.generate([number], max_new_tokens=5).token_ids == list(range(number + 1, number + 6))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert np.array_equal(left.outcome.token_ids, np.arange(8, 48))
        assert model.session.pools[0].free_pages == model.session.pools[0].page_count
