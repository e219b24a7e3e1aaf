"""Linear-chain conditional random fields over a batch of padded texts: exact, in float32, a loop over words only.

Lafferty, McCallum and Pereira 2001, "Conditional Random Fields"; on top of a bidirectional LSTM as in Lample et al.
2016 (arXiv 1603.01360, section 2.2). A chain of labels y of n words has the score

    start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t, y_t+1] + end[y_n].

Here `emissions` are (batch, words, labels) and `mask` is (batch, words) bool, true for the words of each chain and then
false; a chain may be empty, and what is behind it does not count.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

# The score of what must not be: below any other, and yet a finite number, whose gradients and sums are finite too.
IMPOSSIBLE = -1e30
LOWEST = math.log(torch.finfo(torch.float32).tiny)  # -87.3
# The prefixes of labels for parts of a chunk, by scheme: begin, inside and, in the other two, last and single.
SCHEMES = {"IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}


class ChainSteps(NamedTuple):
    """Scores of what a chain begins with, of each step from label (row) to label (column), and of its last label; or,
    as bool, whether they are allowed."""

    start: Tensor  # (labels,)
    transitions: Tensor  # (labels, labels)
    end: Tensor  # (labels,)

    def restricted(self, allowed: "ChainSteps") -> "ChainSteps":
        """The scores, with those `IMPOSSIBLE` that are not allowed."""
        pairs = zip(self, allowed, strict=True)
        return ChainSteps(*(scores.masked_fill(~mask.to(scores.device), IMPOSSIBLE) for scores, mask in pairs))


class LinearChainCrf(nn.Module):
    """The learned scores of a chain's steps. Calling it gives them in float32, however they are stored."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.start = nn.Parameter(torch.empty(num_labels))
        self.transitions = nn.Parameter(torch.empty(num_labels, num_labels))
        self.end = nn.Parameter(torch.empty(num_labels))

    def forward(self) -> ChainSteps:
        # Copies, since FSDP frees the parameters when this ends.
        return ChainSteps(*(_precise(scores).clone() for scores in (self.start, self.transitions, self.end)))


def free_steps(num_labels: int, like: Tensor) -> ChainSteps:
    """The steps of labels that do not know of each other: all scores are 0."""
    return ChainSteps(*(like.new_zeros(shape) for shape in [(num_labels,), (num_labels, num_labels), (num_labels,)]))


# ---------------------------------------------------------------------------------------------------------------------
# Inference


def log_partition(emissions: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """Log of the sum over all chains of the exponential of their scores, (batch,); 0 for an empty chain."""
    messages = _sum_messages(_word_scores(emissions, mask, steps), steps.transitions, mask)
    return (torch.logsumexp(messages[:, :1], 2) * mask[:, :1]).sum(1)


def log_likelihood(emissions: Tensor, labels: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """Log-probability of chains of which some labels may be unknown: that of all chains which agree with the known.

    Args:
        labels: (batch, words) integers, -100 for unknown.

    Returns:
        (batch,), at most 0 but for rounding; 0 for an empty chain and for one without known labels.
    """
    known = (labels != -100) & mask  # (batch, words)
    if torch.equal(known, mask):
        agreeing = _chain_score(_word_scores(emissions, mask, steps), labels, mask, steps)
    else:
        others = labels[..., None] != torch.arange(emissions.shape[2], device=labels.device)  # (batch, words, labels)
        restricted = _precise(emissions).masked_fill(known[..., None] & others, IMPOSSIBLE)
        agreeing = log_partition(restricted, mask, steps)
    return agreeing - log_partition(emissions, mask, steps)


def log_marginals(emissions: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """Log-probability of each label at each word given the text, by forward-backward: (batch, words, labels).

    None is below -87.3, the smallest of which the exponential is not 0. Rows of padding have no meaning.
    """
    scores = _word_scores(emissions, mask, steps)
    # What is before a word is the same sum as what is behind it, with everything turned around; both in one loop.
    transitions = torch.stack([steps.transitions, steps.transitions.T]).repeat_interleave(len(scores), 0)
    both = _sum_messages(torch.cat([scores, scores.flip(1)]), transitions, torch.cat([mask, mask.flip(1)]))
    onward, backward = both.chunk(2)
    through = torch.log_softmax(onward + backward.flip(1) - scores, 2)
    return torch.log_softmax(through.clamp(min=LOWEST), 2)


@torch.compiler.disable  # it would unroll the words, anew for each length
@torch.no_grad()
def viterbi(emissions: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """The chain with the highest score, (batch, words) int64, -100 at padding (Viterbi 1967)."""
    scores = _word_scores(emissions, mask, steps)
    onward = scores[:, -1:].sum(1)  # (batch, labels): the best score from a word to the end
    best_next: list[Tensor] = []
    for word in reversed(range(scores.shape[1] - 1)):
        values, following = (steps.transitions + onward[:, None]).max(2)  # (batch, labels)
        best_next.append(following)
        onward = scores[:, word] + values.where(mask[:, word + 1, None], 0.0)
    best: list[Tensor] = []
    for _ in range(scores.shape[1]):
        best.append(best_next.pop().gather(1, best[-1]) if best else onward.argmax(1, keepdim=True))
    labels = torch.cat(best, 1) if best else mask.long()
    return labels.masked_fill(~mask, -100)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _word_scores(emissions: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """Emissions with the scores of start and end added to those of the first and the last word; 0 at padding."""
    is_last = mask.clone()
    is_last[:, :-1] &= ~mask[:, 1:]
    is_first = mask.clone()
    is_first[:, 1:] = False
    scores = _precise(emissions).masked_fill(~mask[..., None], 0.0)
    scores = scores + steps.start.where(is_first[..., None], 0.0)
    return scores + steps.end.where(is_last[..., None], 0.0)  # (batch, words, labels)


def _chain_score(scores: Tensor, labels: Tensor, mask: Tensor, steps: ChainSteps) -> Tensor:
    """The scores of whole chains, (batch,)."""
    labels = labels.where(mask, 0)  # (batch, words)
    stepped = steps.transitions[labels[:, :-1], labels[:, 1:]] * mask[:, 1:]  # (batch, words - 1)
    return scores.gather(2, labels[..., None]).sum((1, 2)) + stepped.sum(1)


@torch.compiler.disable  # it would unroll the words, anew for each length
def _sum_messages(scores: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """For each word and label, the log-sum of all ways to go on from there to the end, its own score included.

    Args:
        scores: (batch, words, labels), 0 where the mask is false.
        transitions: (labels, labels), or (batch, labels, labels).
        mask: (batch, words) bool, also false and then true.

    Returns:
        (batch, words, labels).
    """
    messages: list[Tensor] = []
    for word in reversed(range(scores.shape[1])):
        message = scores[:, word]
        if messages:
            onward = torch.logsumexp(transitions + messages[-1][:, None], 2)  # (batch, labels)
            message = message + onward.where(mask[:, word + 1, None], 0.0)
        messages.append(message)
    return torch.stack(messages[::-1], 1) if messages else scores


# ---------------------------------------------------------------------------------------------------------------------
# Labels of chunks


def tag_scheme(labels: Sequence[str]) -> str | None:
    """The scheme of labels such as O, B-PER, I-PER: "IOB2", "IOBES", "BILOU", or `None` if they are no parts of chunks.

    Labels tell no more than that: IOB1 has those of IOB2. A scheme without B-, such as IO, has no constraints: `None`.
    """
    prefixes = {label.partition("-")[0] for label in labels} - {"O"}
    if "B" not in prefixes:
        return None
    return next((name for name, parts in SCHEMES.items() if prefixes <= set(parts)), None)


@torch.compiler.disable  # it passes by the cache, with a warning
def allowed_transitions(labels: Sequence[str]) -> ChainSteps:
    """Which steps make well-formed chunks, as bool: what goes on or ends a chunk follows one of its own type.

    A type without B- is free. Everything is allowed for labels of no scheme (see `tag_scheme`), and
    for those of which no chain of one word could be made.

    Args:
        labels: their names, in the order of their ids.
    """
    return ChainSteps(*(mask.clone() for mask in _allowed_transitions(tuple(labels))))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # its results are kept, and gradients may pass by them
def _allowed_transitions(labels: tuple[str, ...]) -> ChainSteps:
    scheme = tag_scheme(labels)
    parts = [label.partition("-")[::2] if label != "O" else ("O", None) for label in labels]
    begun = {kind for prefix, kind in parts if prefix == "B"}
    same_type = torch.tensor([[one == other for _, other in parts] for _, one in parts])  # (labels, labels)
    is_open = torch.tensor([prefix in ("B", "I") and kind in begun for prefix, kind in parts])
    goes_on = torch.tensor([prefix in ("I", "E", "L") and kind in begun for prefix, kind in parts])
    must_go_on = is_open if scheme in ("IOBES", "BILOU") else torch.zeros_like(is_open)
    continued = is_open[:, None] & goes_on & same_type
    steps = ChainSteps(~goes_on, torch.where(goes_on, continued, ~must_go_on[:, None]), ~must_go_on)
    alone = steps.start & steps.end & steps.transitions.diagonal()
    if scheme is None or not alone.any():
        return ChainSteps(*(torch.ones_like(mask) for mask in steps))
    return steps
