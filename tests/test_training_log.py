"""What the log sees of processes other than its own; what a run writes is tested in test_pretraining.py."""

from types import SimpleNamespace

import pytest
import torch

from modeling_elmo.training_log import TrainingLog


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
