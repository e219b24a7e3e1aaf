"""What benchmarks/ measures runs: its opponents have to keep up with the models whose places they take."""

import itertools
import subprocess
import sys
from pathlib import Path

import finetune_table
import pytest
import torch
from conftest import TINY
from opponents import Products, TorchLstm, plain_training_model, with_every_word
from timing import interleaved, lanes

from modeling_elmo import ElmoConfig, ElmoForPreTraining

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
SENTENCES = [["one", "sentence", "of", "six", "words", "."], ["and", "another"]] * 20


@pytest.mark.parametrize("every_word", [False, True])
def test_a_training_step_of_the_opponents(every_word):
    config = ElmoConfig(**TINY)
    batch = lanes(SENTENCES, config, num_lanes=4, steps=5)
    if every_word:
        ours, distinct, batch = ElmoForPreTraining(config).eval(), batch, with_every_word(batch, config)
        torch.testing.assert_close(ours(**batch).loss, ours(**distinct).loss)
    model = plain_training_model(config, every_word)
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite() and all(weight.grad.any() for weight in model.elmo.lstm.parameters())


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("opponent", [TorchLstm, pytest.param(Products, marks=needs_onednn)])
def test_the_opponents_of_the_lstm_run(opponent):
    runs = {"it": opponent(ElmoConfig(**TINY), 3, 4, torch.float32)}
    assert interleaved(runs, rounds=1)["it"] > 0


def told(program: str) -> str:
    """What a new process prints, beside the benchmarks."""
    command, folder = [sys.executable, "-c", program], Path(__file__).parents[1] / "benchmarks"
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_peak_memory_is_that_of_the_process_alone():
    """`ru_maxrss` of Linux would begin with what this one has, which has imported torch."""
    assert 0 < int(told("from peak_memory import peak_bytes; print(peak_bytes())")) < 100 * 2**20


def test_the_benchmark_of_memory_imports_nothing_large():
    """It would count in the memory of the processes that it starts."""
    program = "import memory, sys; memory.peak_of = print; memory.write_validation(*map(memory.Path, 'ab'))"
    assert told(f"{program}; print('torch' in sys.modules)").splitlines()[-1] == "False"


@pytest.mark.parametrize("code", [0, 2])
def test_a_table_whose_runs_fail_says_so(code, tmp_path, monkeypatch):
    """Whatever its folders are called."""
    commands = []
    run = lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, code)  # noqa: E731
    monkeypatch.setattr(finetune_table.subprocess, "run", run)
    paths = [str(tmp_path / name) for name in ("my model", "my data", "new/table.v1")]
    cell = ["--tasks", "wnut17", "--features", "+ ELMo", "--run"]
    monkeypatch.setattr(sys, "argv", ["finetune_table.py", *paths, *cell])
    assert finetune_table.main() == (code != 0)
    given = dict(itertools.pairwise(commands[0]))
    assert given["--model_name_or_path"] == paths[0] and given["--output_dir"] == f"{paths[2]}/wnut17/elmo"
    assert given["--train_file"] == f"{paths[1]}/wnut17/train.jsonl.gz"
    assert (tmp_path / "new" / "table.v1.log").is_file()
