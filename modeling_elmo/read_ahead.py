"""Batches made in a thread of their own while the device works on earlier ones."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LOOKS = 0.1


def read_ahead(items: Iterable[Item], number: int) -> Generator[Item, None, None]:
    """The same items in the same order, up to `number` of them made before they are asked for; 0: none.

    What making one raises is raised where it would have been taken. The thread ends with the items, or when this
    iterator is closed.
    """
    if number < 1:
        yield from items
        return
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(number)
    closed = threading.Event()

    def put(is_item: bool, content: Any):
        while not closed.is_set():
            try:
                return made.put((is_item, content), timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                pass

    def make():
        try:
            for item in items:
                put(True, item)
                if closed.is_set():
                    return
            put(False, None)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=make, name="read_ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, content = made.get()
            if not is_item:
                if content is not None:
                    raise content
                return
            yield content
    finally:
        closed.set()
        thread.join()
