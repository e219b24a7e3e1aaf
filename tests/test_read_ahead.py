"""Items made ahead in a thread are the same in the same order, and nothing outlives who takes them."""

import itertools
import threading
import time

import pytest

from modeling_elmo.read_ahead import read_ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_same_items_in_their_order(number):
    assert list(read_ahead(iter(range(20)), number)) == list(range(20))
    assert list(read_ahead([], number)) == []
    assert not threads()


def made_after_taking(number: int) -> int:
    """How many items are made, at most, when one of an endless stream was taken."""
    made: list[int] = []

    def items():
        for item in itertools.count():
            made.append(item)
            yield item

    stream = read_ahead(items(), number)
    next(stream)
    deadline = time.monotonic() + 5
    while len(made) < number + 2 and number and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # for those that must not be made
    stream.close()
    return len(made)


@pytest.mark.parametrize("number", [1, 3])
def test_so_many_are_made_ahead_and_no_more(number):
    assert made_after_taking(number) == number + 2  # one was taken, and one waits to be put where they lie
    assert not threads(), "closed: the thread has ended"


def test_none_is_made_ahead_where_none_is_wanted():
    assert made_after_taking(0) == 1


@pytest.mark.parametrize("number", [0, 2])
def test_what_goes_wrong_is_told_where_the_item_would_have_been_taken(number):
    def items():
        yield 1
        yield 2
        raise ValueError("no third one")

    stream = read_ahead(items(), number)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="no third one"):
        next(stream)
    assert not threads()


def test_what_is_no_exception_is_told_too():
    """Such as a panic of the Rust tokenizer: whoever waits for the next item would else wait for ever."""

    class Panic(BaseException):
        pass

    def items():
        yield 1
        raise Panic

    raised = []

    def take():
        try:
            list(read_ahead(items(), 2))
        except Panic:
            raised.append(True)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    taker.join(5)
    assert raised and not threads()


def test_nothing_is_made_before_the_first_is_asked_for():
    """A run that is resumed says where it goes on after the stream was made."""
    start = [0]

    def items():
        yield from range(start[0], start[0] + 3)

    stream = read_ahead(items(), 2)
    start[0] = 7
    assert list(stream) == [7, 8, 9]
