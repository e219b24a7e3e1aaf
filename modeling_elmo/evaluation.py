"""Perplexity of a text read in lanes, as pretraining watches it: full softmax, both directions, the state carried."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from .corpus import Corpus
from .evaluation_mode import evaluation_mode
from .lanes import FORWARD, TypeTable, read_in_order
from .training_log import HIGHEST_LOSS, lane_perplexities


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: torch.nn.Module, corpus: Corpus, table: TypeTable, num_lanes: int, steps: int
) -> dict[str, float]:
    """Loss and perplexity of each direction over a text, full softmax, state carried over the whole of each lane.

    Called by every process; each reads its own lanes. `steps` words of a lane are read at once, which does not change
    the result. Carried for long, a lane's cells may latch at the clip and spoil the mean, so the perplexities of the
    median and the worst lane stand beside it.

    Args:
        model: an `ElmoForPreTraining`, prepared by the accelerator or not.

    Raises:
        FloatingPointError: a loss is not a number, or beyond all bounds.
    """
    num_lanes = max(min(num_lanes, corpus.num_sentences), accelerator.num_processes)
    mine = range(accelerator.process_index, num_lanes, accelerator.num_processes)
    sums = torch.zeros(3, num_lanes, dtype=torch.float64)  # forward loss, backward loss, words
    state: Any = None
    with evaluation_mode(model):
        for window in read_in_order(corpus, num_lanes, steps, mine):
            batch = send_to_device(table.batch(window), accelerator.device, non_blocking=True)
            with accelerator.autocast():
                output = model(**batch, state=state)
            state = output.state
            chosen = slice(mine.start, None, mine.step)
            sums[:2, chosen] += output.word_losses.sum(2).cpu()
            sums[2, chosen] += torch.from_numpy((window.targets[FORWARD] >= 0).sum(1))
    sums = accelerator.reduce(sums.float().to(accelerator.device)).double().cpu()
    forward, backward = (sums[:2].sum(1) / sums[2].sum()).tolist()
    if not (forward < HIGHEST_LOSS and backward < HIGHEST_LOSS):  # a comparison with NaN is false
        raise FloatingPointError(
            f"the validation loss became {forward:g} forward and {backward:g} backward: lower the learning rate, and "
            "go on with --resume_from_checkpoint last --resume_with_changes"
        )
    return {
        "eval_loss": (forward + backward) / 2,
        "eval_perplexity": math.exp((forward + backward) / 2),
        "eval_forward_perplexity": math.exp(forward),
        "eval_backward_perplexity": math.exp(backward),
        **lane_perplexities((sums[:2] / sums[2])[:, sums[2] > 0], "eval_"),
    }
