"""Agreement between processes, where one of them has something else to tell than the others."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from modeling_elmo import processes
from modeling_elmo.arguments import ArgumentsError
from modeling_elmo.processes import any_process, check_launch, on_all, on_main


@pytest.mark.parametrize(("mine", "others", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_one_that_is_told_is_enough(mine, others, expected):
    """With three processes, of which the other two have the same."""
    accelerator = SimpleNamespace(num_processes=3, device="cpu", reduce=lambda flags, _: flags + 2 * others)
    assert any_process(accelerator, bool(mine), True) == [expected, True]


def test_an_error_of_another_process_is_raised_here_too(monkeypatch):
    assert on_all(lambda: "all went well here") == "all went well here"
    monkeypatch.setattr(processes, "gather_object", lambda mine: [*mine, ValueError("of another")])
    with pytest.raises(ValueError, match="of another"):
        on_all(lambda: "all went well here")


def test_an_error_of_the_main_process_reaches_the_others(monkeypatch):
    assert on_main(lambda: "all went well") == "all went well"
    sent = []
    monkeypatch.setattr(processes, "broadcast_object_list", sent.extend)
    with pytest.raises(ValueError, match="of the main one"):
        on_main(Mock(side_effect=ValueError("of the main one")))
    assert isinstance(sent[1], ValueError)


@pytest.mark.parametrize(
    ("number", "told"), [(1, []), (1, ["MASTER_ADDR", "RANK"]), (3, ["MASTER_ADDR"])], ids=["alone", "torchrun", "mpi"]
)
def test_a_launcher_that_starts_one_process_of_several_is_told(monkeypatch, number, told):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ArgumentsError, match="start several with torchrun"):
        check_launch(SimpleNamespace(num_processes=1))
    monkeypatch.delenv("MASTER_ADDR")
    for name in told:
        monkeypatch.setenv(name, "0")
    check_launch(SimpleNamespace(num_processes=number))
