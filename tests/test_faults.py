"""train.py where things go wrong: stopped, killed, out of disk, out of numbers, resumed with something else."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import Forked, Torchrun, flags, forked, last_step, log_of, same_weights, timeless_log, wait_until

from modeling_elmo import pretraining
from modeling_elmo.checkpoints import STATE_FILE, check, checkpoints_of, load_checkpoint
from modeling_elmo.language_model import ElmoForPreTraining

STEPS = 60
# All that must go on where it was: dropout, resets of states, accumulated gradients, losses that wait for their line.
HARD = {"max_steps": STEPS, "logging_steps": 3, "state_reset_probability": 0.2, "gradient_accumulation_steps": 2}
NO_DROPOUT = {"config_overrides": "dropout=0.0"}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Callable[[int], Path]:
    """The folder of a run of the hard recipe on 1 or 2 processes that nothing happened to."""
    done: dict[int, Path] = {}

    def output(processes: int) -> Path:
        if processes not in done:
            done[processes] = tmp_path_factory.mktemp("whole") / "out"
            argv = flags(folder, done[processes], **HARD, per_device_train_batch_size=8 // processes)
            code, told = forked(argv, done[processes].with_name("told"), processes)
            assert code == 0, told
        return done[processes]

    return output


@pytest.fixture(scope="module")
def halfway(folder, tmp_path_factory) -> tuple[Path, Path]:
    """A run of 8 steps that ended, with its checkpoint of step 4; and the same run as if it had died behind step 4."""
    whole, half = (tmp_path_factory.mktemp("halfway") / name for name in ("whole", "half"))
    argv = flags(folder, whole, **NO_DROPOUT, save_steps=4, logging_steps=1)
    code, told = forked(argv, whole.with_name("told"))
    assert code == 0, told
    half.mkdir()
    shutil.copytree(whole / "checkpoint-4", half / "checkpoint-4")
    shutil.copy(whole / "log.jsonl", half)
    return whole, half


@pytest.fixture
def half(halfway, tmp_path) -> Path:
    """A copy of the run that died."""
    return shutil.copytree(halfway[1], tmp_path / "half")


def names_in(folder: Path, pattern: str) -> set[str]:
    return {path.name for path in folder.glob(pattern)}


# --- the same run on other processes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_words(tmp_path_factory) -> Path:
    """A text with a vocabulary far larger than what a batch touches of it."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    words = np.concatenate([np.arange(3000), 3000 * rng.random(6000) ** 4]).astype(int)
    sentences = [" ".join(f"w{word}" for word in part) for part in rng.permutation(words).reshape(-1, 15)]
    (folder / "train.txt").write_text("\n".join(sentences) + "\n")
    (folder / "validation.txt").write_text("\n".join(sentences[:20]) + "\n")
    config = {"model_type": "elmo", "char_embedding_dim": 4, "cnn_filters": [[1, 8], [3, 8]], "num_highway_layers": 1}
    config |= {"lstm_dim": 32, "projection_dim": 16, "dropout": 0.0, "num_negative_samples": 64, "cell_clip": 0.3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("optim", "learning_rate", "most"), [("adagrad", 0.2, 4), ("adamw", 0.003, 2), ("muon", 0.003, 2)]
)
def test_loss_curves_are_those_of_one_process(many_words, tmp_path, optim, learning_rate, most):
    recipe = {"optim": optim, "learning_rate": learning_rate, "max_steps": 50, "logging_steps": 5, "eval_steps": 25}
    logs = {}
    for processes in [n for n in (1, 2, 4) if n <= most]:
        output = tmp_path / str(processes)
        argv = flags(many_words, output, **recipe, per_device_train_batch_size=8 // processes)
        code, told = forked(argv, tmp_path / "told", processes)
        assert code == 0 and f"on {processes} x cpu" in told and "64 negatives" in told, told
        logs[processes] = log_of(output)
    one = logs.pop(1)
    assert one[-1]["eval_loss"] < np.log(3003) - 0.1 and 0 < one[-2]["clipped_cells"] < 1
    for log in logs.values():
        assert len(log) == len(one) == 12
        for line, expected in zip(log, one, strict=True):
            own = line.keys() - expected.keys()
            assert own == ({"softmax_gradient_bytes"} if "loss" in line else set())
            assert 0 < line.get("softmax_gradient_bytes", 1) < 3003 * 17 * 4 / 8  # of all rows, each 16 + 1 floats
            for name in expected.keys() - {"words_per_second"}:
                assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)


def test_a_validation_text_of_one_sentence_and_a_batch_of_one(folder, tmp_path):
    """Fewer sentences than processes to read them, and one lane for each process."""
    (tmp_path / "one.txt").write_text("w1 w2 w3\n")
    losses = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        more = {"validation_file": tmp_path / "one.txt", "per_device_train_batch_size": 2 // processes, **NO_DROPOUT}
        code, told = forked(flags(folder, output, **more), tmp_path / "told", processes)
        assert code == 0 and "validation: 1 sentences" in told, told
        losses.append(log_of(output)[-1]["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert forked(flags(folder, tmp_path / "single", per_device_train_batch_size=1), tmp_path / "told")[0] == 0


# --- stopped and killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_told_to_stop_goes_on_exactly(folder, tmp_path, whole, processes):
    output = tmp_path / "out"
    argv = flags(folder, output, **HARD, per_device_train_batch_size=8 // processes)
    with Forked(argv, tmp_path / "told") if processes == 1 else Torchrun(argv, tmp_path / "told") as started:
        wait_until(lambda: last_step(output) >= 15)
        os.kill(started.processes[0].pid if processes == 1 else started.agent.pid, signal.SIGTERM)
        code = started.wait()
    assert code == 143 if processes == 1 else code != 0, started.text()
    (checkpoint,) = checkpoints_of(output)
    step = check(checkpoint)["step"]
    assert 15 <= step < STEPS and f"stopped by SIGTERM at step {step};" in started.text()
    code, told = forked([*argv, "--resume_from_checkpoint", "last"], tmp_path / "told", processes)
    assert code == 0 and f"at step {step}\n" in told, told
    assert same_weights(whole(processes), output)
    assert timeless_log(whole(processes)) == timeless_log(output)


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(folder, tmp_path, whole):
    """Kills at random moments of a life: half of them anywhere, half of them while a checkpoint is being written."""
    expected, output, rng = whole(1), tmp_path / "out", random.Random(0)
    argv = flags(folder, output, **(HARD | {"save_steps": 2}), resume_from_checkpoint="auto")
    begin, life = time.monotonic(), Forked(argv, tmp_path / "told")
    wait_until(lambda: checkpoints_of(output))
    life.kill()
    to_first_checkpoint = time.monotonic() - begin
    lost = while_saving = 0
    for kill in range(20):
        begin, life = time.monotonic(), Forked(argv, tmp_path / "told")
        due = begin + rng.uniform(0, 1.5 * to_first_checkpoint)
        wait_until(lambda: not life.is_alive or time.monotonic() > due)  # noqa: B023
        if kill % 2:
            wait_until(lambda: not life.is_alive or names_in(output, "unfinished-checkpoint-*"))  # noqa: B023
            time.sleep(rng.uniform(0, 0.03))
        life.kill()
        while_saving += bool(names_in(output, "unfinished-checkpoint-*"))
        whole_ones = checkpoints_of(output)
        lost += last_step(output) > (check(whole_ones[-1])["step"] if whole_ones else 0)
        for checkpoint in whole_ones:
            check(checkpoint)
    code, told = forked(argv, tmp_path / "told")
    assert code == 0 and "damaged" not in told, told
    assert lost > 0 and while_saving >= 3
    assert same_weights(expected, output) and timeless_log(expected) == timeless_log(output)
    assert not names_in(output, "unfinished-*")


def test_a_killed_process_is_started_again_by_torchrun(folder, tmp_path, whole):
    output = tmp_path / "out"
    argv = flags(folder, output, **HARD, per_device_train_batch_size=4, save_steps=5, resume_from_checkpoint="auto")
    with Torchrun(argv, tmp_path / "told", "--max_restarts", "3") as started:
        wait_until(lambda: last_step(output) >= 12)
        started.workers()[1].kill()
        assert started.wait() == 0, started.text()
    assert "resumed from" in started.text()
    assert same_weights(whole(2), output) and timeless_log(whole(2)) == timeless_log(output)


def test_two_runs_do_not_share_a_folder(folder, tmp_path, whole):
    first = Forked(flags(folder, tmp_path / "out", **HARD), tmp_path / "first")
    wait_until(lambda: last_step(tmp_path / "out") >= 3)
    for way in (["--overwrite_output_dir"], ["--resume_from_checkpoint", "auto"]):
        code, told = forked(flags(folder, tmp_path / "out", **HARD) + way, tmp_path / "second")
        assert code == 2 and "another run is writing into" in told and "Traceback" not in told, told
    assert first.is_alive and first.wait() == 0
    assert same_weights(whole(1), tmp_path / "out") and timeless_log(whole(1)) == timeless_log(tmp_path / "out")


# --- no room on the disk ---------------------------------------------------------------------------------------------


def one_line_of(told: str) -> str:
    """The message of a run that ended by a user's trouble; nothing else went to standard error."""
    (line,) = [line for line in told.splitlines() if line.startswith("train.py: ")]
    assert "Traceback" not in told and "Exception ignored" not in told
    return line


@pytest.mark.parametrize(
    ("full_for", "processes"),
    [("lanes-0.safetensors", 1), ("model.safetensors", 1), ("optimizer.pt", 1), ("optimizer.pt", 2)],
)
def test_a_full_disk_costs_no_checkpoint(folder, halfway, half, tmp_path, full_for, processes):
    """No file can become as large as one of the checkpoint's, as if the disk became full there."""
    argv = flags(folder, half, **NO_DROPOUT, save_steps=4, logging_steps=1, resume_from_checkpoint="last")
    if processes == 2:
        argv += ["--per_device_train_batch_size", "4", "--resume_with_changes", "True"]
    size = (half / "checkpoint-4" / full_for).stat().st_size
    code, told = forked(argv, tmp_path / "told", processes, largest_file=size - 1)
    assert code == 2, told
    line = one_line_of(told)
    assert "checkpoint-8 could not be written" in line and "--resume_from_checkpoint auto" in line
    assert names_in(half, "*") >= {"checkpoint-4", "log.jsonl"} and not names_in(half, "unfinished-*")
    assert [path.name for path in checkpoints_of(half)] == ["checkpoint-4"]
    code, told = forked(argv, tmp_path / "told", processes)
    assert code == 0, told
    assert processes == 2 or same_weights(halfway[0], half)


def test_a_full_disk_for_the_finished_model_and_for_the_log(folder, halfway, half, tmp_path):
    argv = flags(folder, half, **NO_DROPOUT, logging_steps=1, resume_from_checkpoint="last")
    size = (half / "checkpoint-4/model.safetensors").stat().st_size
    code, told = forked(argv, tmp_path / "told", largest_file=size - 1)
    assert code == 2 and "the finished model could not be written into" in one_line_of(told), told
    assert not names_in(half, "unfinished-*") and not (half / "model.safetensors").exists()
    code, told = forked(argv, tmp_path / "told", largest_file=(half / "log.jsonl").stat().st_size - 100)
    assert code == 2 and "log.jsonl cannot be written" in one_line_of(told), told
    assert forked(argv, tmp_path / "told")[0] == 0
    assert same_weights(halfway[0], half) and timeless_log(halfway[0]) == timeless_log(half)


def test_a_full_disk_for_the_tokenised_text(folder, tmp_path):
    cache = tmp_path / "cache"
    argv = flags(folder, tmp_path / "out", data_cache_dir=cache)
    code, told = forked(argv, tmp_path / "told", largest_file=4000)
    assert code == 2 and "--data_cache_dir" in one_line_of(told), told
    assert all(path.suffix == ".lock" for path in cache.iterdir())
    (cache / f"unfinished-{next(cache.glob('*.lock')).stem}").mkdir()  # as a process leaves it that was killed
    code, told = forked(argv, tmp_path / "told")
    assert code == 0 and not names_in(cache, "unfinished-*"), told


# --- resumed with something else -------------------------------------------------------------------------------------


def test_another_text_is_refused_unless_asked_for(folder, half, run, tmp_path, capsys):
    """The same sentences in another order, so that the vocabulary stays."""
    lines = (folder / "train.txt").read_text().splitlines(keepends=True)
    (tmp_path / "train.txt").write_text("".join(reversed(lines)))
    more = {"train_file": tmp_path / "train.txt", "resume_from_checkpoint": "last", **NO_DROPOUT}
    assert run(*flags(folder, half, **more)) == 2
    assert "checkpoint-4 was written with text = " in capsys.readouterr().err
    assert run(*flags(folder, half, **more), "--resume_with_changes") == 0
    assert "at step 4; other than it: text\n" in capsys.readouterr().out


def test_another_batch_size_is_refused_unless_asked_for(folder, half, run, capsys):
    more = {"per_device_train_batch_size": 5, "resume_from_checkpoint": "last", "logging_steps": 1, **NO_DROPOUT}
    assert run(*flags(folder, half, **more)) == 2
    assert "was written with lanes = 8, but now it is 5" in capsys.readouterr().err
    assert run(*flags(folder, half, **more), "--resume_with_changes") == 0
    assert "at step 4; other than it: lanes\n" in capsys.readouterr().out
    assert [line["step"] for line in log_of(half) if "loss" in line] == [*range(1, 9)]


def test_with_other_batches_the_text_is_read_as_often(folder, run, tmp_path, capsys):
    """Epochs are epochs, whatever a step is; the log counts the words that were read."""
    more = {"max_steps": -1, "num_train_epochs": 0.25, "save_steps": 4, "save_total_limit": 99, **NO_DROPOUT}
    assert run(*flags(folder, tmp_path / "whole", **more)) == 0
    lines = [line for line in log_of(tmp_path / "whole") if "loss" in line]
    for lanes in (4, 16):
        output = shutil.copytree(tmp_path / "whole", tmp_path / str(lanes))
        for checkpoint in output.glob("checkpoint-*"):
            if checkpoint.name != "checkpoint-4":
                shutil.rmtree(checkpoint)
        again = {**more, "per_device_train_batch_size": lanes, "resume_from_checkpoint": "last"}
        assert run(*flags(folder, output, **again), "--resume_with_changes") == 0
        after = [line for line in log_of(output) if "loss" in line]
        assert after[-1]["epoch"] == pytest.approx(lines[-1]["epoch"], abs=lanes * 5 / lines[-1]["words"])
        words = [line["words"] for line in after]
        steps = [line["step"] for line in after]
        assert words == sorted(words) and words[-1] == 4 * 8 * 5 + (steps[-1] - 4) * lanes * 5
        assert "steps of" in capsys.readouterr().out


def test_on_other_processes_the_lanes_go_on(folder, halfway, half, tmp_path):
    more = {"per_device_train_batch_size": 4, "resume_from_checkpoint": "last", "logging_steps": 1, **NO_DROPOUT}
    code, told = forked(flags(folder, half, **more), tmp_path / "told", 2)
    assert code == 2 and "was written with processes = 1, but now it is 2" in one_line_of(told)
    code, told = forked([*flags(folder, half, **more), "--resume_with_changes"], tmp_path / "told", 2)
    assert code == 0, told
    for line, expected in zip(log_of(half), log_of(halfway[0]), strict=True):
        for name in expected.keys() - {"words_per_second"}:
            assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)


def test_taking_up_an_older_checkpoint_gives_up_the_later_ones(folder, run, tmp_path):
    """Else the older course would pass for the last state, and its checkpoints would push out the new ones."""
    output = tmp_path / "out"
    assert run(*flags(folder, output, save_steps=2, save_total_limit=4)) == 0
    again = {"save_steps": 3, "max_steps": 5, "learning_rate": 0.1, "resume_from_checkpoint": output / "checkpoint-2"}
    assert run(*flags(folder, output, **again), "--resume_with_changes") == 0
    assert [path.name for path in checkpoints_of(output)] == ["checkpoint-3", "checkpoint-5"]


# --- no numbers any more ---------------------------------------------------------------------------------------------


def spoil(monkeypatch, batch: int, harm: Callable):
    """Have `harm` change what the model gives in its training batch of that number, counted from 1."""
    forward, seen = ElmoForPreTraining.forward, []

    def spoilt(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        seen.extend([None] * self.training)
        return harm(output) if self.training and len(seen) == batch else output

    monkeypatch.setattr(ElmoForPreTraining, "forward", spoilt)


def assert_checkpoints_are_good(output: Path, *steps: int):
    assert [check(path)["step"] for path in checkpoints_of(output)] == [*steps]
    for path in checkpoints_of(output):
        weights, optimizer_state, lanes, _ = load_checkpoint(path)
        tensors = [*weights.values(), *lanes.values()]
        tensors += [value for state in optimizer_state["optimizer"]["state"].values() for value in state.values()]
        assert all(tensor.isfinite().all() for tensor in tensors if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize(("accumulation", "logging_steps"), [(1, 2), (2, 2), (2, 50)])
def test_a_loss_that_is_no_number_ends_the_run(folder, run, tmp_path, monkeypatch, capsys, accumulation, logging_steps):
    """In the last batch of step 7, which is looked at behind step 8."""

    def lose(output):
        output.loss, output.word_losses = output.loss * torch.nan, output.word_losses * torch.nan
        return output

    spoil(monkeypatch, 7 * accumulation, lose)
    more = {"gradient_accumulation_steps": accumulation, "save_steps": 2, "save_total_limit": 9, "max_steps": 20}
    assert run(*flags(folder, tmp_path / "out", **more, logging_steps=logging_steps)) == 2
    error = one_line_of(capsys.readouterr().err)
    assert f"the loss became nan forward and nan backward in batch {accumulation} of step 7:" in error
    assert_checkpoints_are_good(tmp_path / "out", 2, 4, 6)


@pytest.mark.parametrize("last", [6, 20])
def test_a_gradient_that_is_no_number_gets_into_no_checkpoint(folder, run, tmp_path, monkeypatch, capsys, last):
    """The loss of its batch is fine, the weights behind it are not, and then a checkpoint is due, or the end."""

    def lose(output):
        output.loss.register_hook(lambda gradient: gradient * torch.nan)
        return output

    spoil(monkeypatch, 6, lose)
    assert run(*flags(folder, tmp_path / "out", save_steps=3, max_steps=last)) == 2
    assert "the gradient of step 6 has a norm of nan" in one_line_of(capsys.readouterr().err)
    assert_checkpoints_are_good(tmp_path / "out", 3)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_validation_loss_beyond_all_bounds_ends_the_run(folder, run, tmp_path, capsys):
    """One step too wide, behind which nothing is trained that would tell."""
    assert run(*flags(folder, tmp_path / "out", max_steps=1, learning_rate=1e6, save_steps=1)) == 2
    assert "the validation loss became" in one_line_of(capsys.readouterr().err)
    assert not checkpoints_of(tmp_path / "out")


# --- the best one ----------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_stays_beside_the_last(folder, run, tmp_path, monkeypatch, capsys):
    judgements = iter([3.0, 2.0, 2.5, 2.6, 2.6, 2.6])
    evaluate = pretraining.evaluate
    monkeypatch.setattr(pretraining, "evaluate", lambda *args: {**evaluate(*args), "eval_loss": next(judgements)})
    argv = flags(folder, tmp_path / "out", eval_steps=2, save_steps=2, save_total_limit=1)
    assert run(*argv) == 0
    kept = checkpoints_of(tmp_path / "out")
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-8"]
    assert [json.loads((path / STATE_FILE).read_text())["eval_loss"] for path in kept] == [2.0, 2.6]
    assert same_weights(tmp_path / "out", kept[1]) and not same_weights(tmp_path / "out", kept[0])
    told, way_out = capsys.readouterr().out, ["--resume_from_checkpoint", "last", "--load_best_model_at_end", "true"]
    assert "perplexity was 7.4 at step 4 and is 13.5 now: more dropout" in told
    assert f"{' '.join(way_out)} takes the best checkpoint, checkpoint-4\n" in told
    assert run(*argv, *way_out) == 0
    assert same_weights(tmp_path / "out", kept[0])
    (kept[0] / "model.safetensors").write_bytes(b"")
    assert run(*argv, *way_out) == 2
    assert "checkpoint-4 is damaged (model.safetensors is not what was written): delete it" in capsys.readouterr().err


def test_the_best_checkpoint_is_the_finished_model(folder, run, tmp_path, monkeypatch, capsys):
    judgements = iter([3.0, 2.0, 2.5, 2.6])
    evaluate = pretraining.evaluate
    monkeypatch.setattr(pretraining, "evaluate", lambda *args: {**evaluate(*args), "eval_loss": next(judgements)})
    options = {"load_best_model_at_end": True, "save_total_limit": 1, "eval_steps": 2}
    assert run(*flags(folder, tmp_path / "out", save_steps=2, **options)) == 0
    best, last = checkpoints_of(tmp_path / "out")
    assert same_weights(tmp_path / "out", best) and not same_weights(tmp_path / "out", last)
    (of_best,) = [line for line in log_of(tmp_path / "out") if line.get("eval_loss") == 2.0]
    assert "the finished model is that of step 4: validation perplexity 7.4\n" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{of_best['eval_forward_perplexity']:.2f}" in card and "| `steps` | `4` |" in card
    assert run(*flags(folder, tmp_path / "other", save_steps=3, **options)) == 2
    assert "load_best_model_at_end needs eval_steps and save_steps" in one_line_of(capsys.readouterr().err)
