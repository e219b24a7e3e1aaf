"""Models in evaluation mode for a while."""

import threading

import pytest
from torch import nn

from modeling_elmo.evaluation_mode import evaluation_mode


def test_each_part_is_put_back_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        1 / 0  # noqa: B018
    assert [module.training for module in model.modules()] == [True, True, False]
    with evaluation_mode(model.eval()):
        pass
    assert not model.training


def test_threads_share_a_model():
    model = nn.Dropout()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with evaluation_mode(model):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with evaluation_mode(model):
        thread.start()
        assert inside.wait(60)
    assert not model.training, "the other thread still evaluates it"
    leave.set()
    thread.join()
    assert model.training
