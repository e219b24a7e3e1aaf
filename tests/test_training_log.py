"""What the log sees of processes other than its own; what a run writes is tested in test_pretraining.py."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_elmo.training_log import TrainingLog, lane_perplexities


def start(folder: Path, step: int, max_steps: int) -> TrainingLog:
    """The log of a run of one process that has done `step` steps of ten words."""
    accelerator = SimpleNamespace(is_main_process=True, gather=lambda losses: losses, log=lambda values, step: None)
    return TrainingLog(accelerator, folder, step, None, max_steps, words_per_step=10, words_per_epoch=40)


def test_a_loss_that_is_no_number_in_another_process_ends_the_run_in_this_one(tmp_path):
    others = torch.zeros(2, 2)  # batches, directions
    accelerator = SimpleNamespace(
        num_processes=2, is_main_process=False, reduce=lambda means, how: means + others, device="cpu"
    )
    log = TrainingLog.__new__(TrainingLog)
    log.accelerator, log.losses = accelerator, [torch.ones(2, 3), torch.ones(2, 3)]
    log.check(8)
    others[1, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss became nan forward and 1 backward in batch 1 of step 8"):
        log.check(8)
    others[1, 0], log.losses[0][1, 2] = 0, torch.inf  # in a lane other than the first
    with pytest.raises(FloatingPointError, match="the loss became 1 forward and inf backward in batch 1 of step 7"):
        log.check(8)


@pytest.mark.parametrize(("max_steps", "number"), [(6, 4), (4, 3)])
def test_lines_up_to_the_step_that_a_run_goes_on_from_stay(tmp_path, max_steps, number):
    """But for the last evaluation, which comes again."""
    lines = [json.dumps({"step": step, name: 1.0}) + "\n" for step in (2, 4, 6) for name in ("loss", "eval_loss")]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    start(tmp_path, 4, max_steps)
    assert (tmp_path / "log.jsonl").read_text() == "".join(lines[:number])


def test_a_line_tells_of_the_steps_since_the_last_one(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr("modeling_elmo.training_log.time", SimpleNamespace(monotonic=lambda: clock.now))
    log = start(tmp_path, 2, 8)
    for step, seconds, losses in ((6, 2.0, [[1.0, 2.0], [3.0, 5.0]]), (7, 4.0, [[1.0, 1.0], [2.0, 2.0]])):
        log.add(torch.tensor(losses))
        clock.now += seconds
        log.training_line(step)
    first, second = map(json.loads, log.file.read_text().splitlines())
    assert (first["loss"], first["words_per_second"]) == (2.75, 4 * 10 / 2)
    assert (second["loss"], second["words_per_second"]) == (1.5, 10 / 4)
    assert first["backward_perplexity"] == pytest.approx(math.exp(4)) and first["epoch"] == 1.5


def test_lost_lanes_show_beside_the_median():
    perplexities = lane_perplexities(torch.tensor([[1.0, 2.0, 9.0], [900.0, 4.0, 900.0]]), "eval_")
    assert perplexities == pytest.approx({
        "eval_forward_median_lane": math.exp(2), "eval_forward_worst_lane": math.exp(9),
        "eval_backward_median_lane": math.exp(700), "eval_backward_worst_lane": math.exp(700),
    })  # fmt: skip
