"""An iterator run in a thread, some items ahead of its reader."""

from collections.abc import Generator, Iterator
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
_POLL_SECONDS = 0.1


class Ahead(Generic[Item]):
    """Starts at once; holds at most ``depth`` items; the stream's error surfaces at the reader."""

    def __init__(self, stream: Iterator[Item], depth: int = 2) -> None:
        self._stream = stream
        self._queue: Queue[Item | BaseException] = Queue(maxsize=depth)
        self._closed = Event()
        self._thread = Thread(target=self._pump, daemon=True)
        self._thread.start()

    def __iter__(self) -> "Ahead[Item]":
        return self

    def __next__(self) -> Item:
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the thread and the stream, however far they are."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=_POLL_SECONDS)  # makes room for what the thread is about to put
            except Empty:
                continue

    def _pump(self) -> None:
        try:
            for item in self._stream:
                self._queue.put(item)
                if self._closed.is_set():
                    break
            self._queue.put(StopIteration())
        except BaseException as error:  # handed to the reader, which raises it
            self._queue.put(error)
        finally:
            if isinstance(self._stream, Generator):
                self._stream.close()
