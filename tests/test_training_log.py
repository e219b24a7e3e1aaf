"""What the log sees of processes other than its own; what a run writes is tested in test_pretraining.py."""

import math
from types import SimpleNamespace

import pytest
import torch

from modeling_elmo.training_log import TrainingLog, lane_perplexities


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


def test_lost_lanes_show_beside_the_median():
    perplexities = lane_perplexities(torch.tensor([[1.0, 2.0, 9.0], [900.0, 4.0, 900.0]]), "eval_")
    assert perplexities == pytest.approx({
        "eval_forward_median_lane": math.exp(2), "eval_forward_worst_lane": math.exp(9),
        "eval_backward_median_lane": math.exp(700), "eval_backward_worst_lane": math.exp(700),
    })  # fmt: skip
