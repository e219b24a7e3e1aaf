"""FSDP2 on two CPU processes against training without it. Accelerate shards on GPUs only; torch can on gloo, too."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from training_runs import flags, forked, log_of, same_weights

from modeling_elmo import sharding

# As configs/accelerate/fsdp2.yaml has the launcher set them.
LAUNCHER = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "ElmoLstmLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def shard_on_the_cpu():
    """Have Accelerate shard on the CPU."""
    os.environ.update(LAUNCHER)
    original = Accelerator.__init__

    def sharded(self, *args, **kwargs):
        original(self, *args, **kwargs)
        # Each AcceleratorState copies the type from PartialState.
        PartialState._shared_state["distributed_type"] = self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = sharding.fsdp_plugin()

    Accelerator.__init__ = sharded


def only_the_launcher():
    os.environ.update(LAUNCHER)


def train(folder: Path, output: Path, is_sharded: bool, **more: object) -> None:
    processes = 2 if is_sharded else 1
    values = {"config_overrides": "dropout=0.0", "learning_rate": 0.02, "save_steps": 3, "max_steps": 6} | more
    argv = flags(folder, output, per_device_train_batch_size=8 // processes, **values)
    code, text = forked(argv, output.with_suffix(".txt"), processes, prepare=shard_on_the_cpu if is_sharded else None)
    assert code == 0, text


@pytest.fixture(scope="module", params=["adagrad", "adamw"])
def runs(request, folder, tmp_path_factory) -> tuple[Path, Path, dict]:
    """The same run without and with shards."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    more = {"optim": request.param}
    if request.param == "adamw":
        more |= {"gradient_accumulation_steps": 2}
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    train(folder, plain, False, **more)
    train(folder, sharded, True, **more)
    return plain, sharded, more


def test_a_sharded_run_has_the_losses_of_one_that_is_not(runs):
    plain, sharded, _ = runs
    for expected, found in zip(log_of(plain), log_of(sharded), strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "forward_perplexity", "clipped_cells"):
            assert (name in expected) == (name in found)
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_what_it_writes_looks_as_if_it_had_not_been_sharded(runs):
    plain, sharded, _ = runs
    assert json.loads((plain / "config.json").read_text()) == json.loads((sharded / "config.json").read_text())
    for place in (".", "checkpoint-3"):
        names = [{file.name for file in (run / place).glob("*.py")} for run in (plain, sharded)]
        assert names[0] == names[1]
        expected, found = (load_file(run / place / "model.safetensors") for run in (plain, sharded))
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    files = [run / "checkpoint-3/optimizer.pt" for run in (plain, sharded)]
    states = [torch.load(file, weights_only=True)["optimizer"]["state"] for file in files]
    shapes = [{n: {k: v.shape for k, v in values.items()} for n, values in state.items()} for state in states]
    assert shapes[0] == shapes[1]


def test_it_goes_on_exactly_from_a_checkpoint(runs, folder):
    _, sharded, more = runs
    again = sharded.with_name("again")
    train(folder, again, True, **more, resume_from_checkpoint=sharded / "checkpoint-3")
    assert same_weights(again, sharded)


def test_one_process_goes_on_from_a_sharded_checkpoint(runs, folder):
    plain, sharded, more = runs
    again = sharded.with_name("alone")
    checkpoint = sharded / "checkpoint-3"
    train(folder, again, False, **more, resume_from_checkpoint=checkpoint, resume_with_changes=True)
    assert log_of(again)[-1]["eval_loss"] == pytest.approx(log_of(plain)[-1]["eval_loss"], rel=1e-5)


def test_sharding_without_gpus_is_refused(folder, tmp_path):
    code, text = forked(flags(folder, tmp_path / "out"), tmp_path / "told", prepare=only_the_launcher)
    assert code == 2 and "sharding needs GPUs" in text and "Traceback" not in text
