"""What benchmarks/ measures runs: its opponents have to keep up with the models whose places they take."""

import pytest
import torch
from conftest import TINY
from opponents import Products, TorchLstm, plain_training_model, with_every_word
from timing import interleaved, lanes

from modeling_elmo import ElmoConfig

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SENTENCES = [["one", "sentence", "of", "six", "words", "."], ["and", "another"]] * 20


@pytest.mark.parametrize("every_word", [False, True])
def test_a_training_step_of_the_opponents(every_word):
    config = ElmoConfig(**TINY)
    batch = lanes(SENTENCES, config, num_lanes=4, steps=5)
    if every_word:
        batch = with_every_word(batch, config)
    model = plain_training_model(config, every_word)
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and all(weight.grad.any() for weight in model.elmo.lstm.parameters())


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("opponent", [TorchLstm, pytest.param(Products, marks=needs_onednn)])
def test_the_opponents_of_the_lstm_run(opponent):
    runs = {"it": opponent(ElmoConfig(**TINY), 3, 4, torch.float32)}
    assert interleaved(runs, rounds=1)["it"] > 0
