"""The language model: softmax over words, sampled softmax for training, losses and perplexity of both directions.

Peters et al. 2018 (arXiv 1802.05365), section 3.1. The sampled softmax is that of Jean et al. 2015 (arXiv 1412.2007)
with the log-uniform candidates of TensorFlow's `log_uniform_candidate_sampler`, which the original was trained with.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .gpu_softmax import exponentials, takes_softmax
from .lstm import ElmoState
from .modeling_elmo import ElmoModel, ElmoPreTrainedModel
from .packing import Packing, unpack
from .products import is_hooked, linear, weight_gradient

IGNORE_INDEX = -100
# Logits of a full softmax that are held at once where no gradient is wanted: of so many words of the vocabulary, and in
# all. Few enough to stay in the caches: 2.3 times as fast as all logits of some words (1,280 words x 59,718, dim 128).
VOCABULARY_BLOCK, MAX_LOGITS = 1024, 2**21
# Logits of a sampled softmax on a processor that are worked on at once.
CACHED_LOGITS = 2**20


class Negatives(NamedTuple):
    """One draw of negatives: `ids` (samples,) int64, all different, and how many `tries` it took to find them."""

    ids: Tensor
    tries: int


class LogUniformSampler:
    """Draws word ids with P(k) = log((k + 2) / (k + 1)) / log(vocab_size + 1): Zipf's law for ids by falling frequency.

    Args:
        vocab_size: words that there are.
        num_samples: different words of a draw.

    Raises:
        ValueError: more samples wanted than there are words; a draw has no word twice.
    """

    def __init__(self, vocab_size: int, num_samples: int):
        if num_samples > vocab_size:
            raise ValueError(
                f"cannot draw {num_samples} different negatives from a vocabulary of {vocab_size} words: lower "
                "num_negative_samples or use the full softmax"
            )
        self.vocab_size = vocab_size
        self.num_samples = num_samples

    def draw(self, generator: torch.Generator | None = None) -> Negatives:
        """Draw until `num_samples` different ids are found; the ids come in the order in which they were found.

        Random numbers are taken on the CPU from `generator` (default: torch's own), so that a saved random state
        gives the same draw again on every device.
        """
        ids = np.empty(0, dtype=np.int64)
        found_at = np.empty(self.vocab_size, dtype=np.int64)  # the try that found an id, of those found
        log_range = math.log(self.vocab_size + 1)
        while True:
            uniform = torch.rand(2 * self.num_samples, dtype=torch.float64, generator=generator)
            more = (torch.exp(uniform * log_range) - 1).long().clamp(max=self.vocab_size - 1)
            ids = np.concatenate([ids, more.numpy()])
            tries = np.arange(len(ids))
            found_at[ids[::-1]] = tries[::-1]  # of equal ids the last one written stays: the first that was found
            first_tries = np.flatnonzero(found_at[ids] == tries)  # (different ids,) when each was found
            if len(first_tries) >= self.num_samples:
                found = first_tries[: self.num_samples]
                return Negatives(torch.from_numpy(ids[found]), int(found[-1]) + 1)

    def expected_count(self, ids: Tensor, tries: int) -> Tensor:
        """How often each id is expected in a draw that took `tries`: 1 - (1 - P)^tries, of the shape of `ids`.

        Float64. A draw without a repetition has tries * P instead, as in TensorFlow's sampler.
        """
        probability = torch.log1p(1 / (ids.double() + 1)) / math.log(self.vocab_size + 1)
        if tries == self.num_samples:
            return tries * probability
        return -torch.expm1(tries * torch.log1p(-probability))


class _SparseRows(torch.autograd.Function):
    """Rows of a table, with a sparse gradient: one as large as the rows, not as the table."""

    @staticmethod
    def forward(ctx, table, ids):
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return table[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_rows):
        (ids,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(ids[None], d_rows, ctx.shape, check_invariants=False), None


def sampled_softmax_loss(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    negatives: Negatives,
    sampler: LogUniformSampler,
    sparse: bool = False,
) -> Tensor:
    """Loss of each word over its target and the shared negatives, corrected by their expected counts.

    A negative that is a word's own target is taken out for that word.

    Args:
        hidden: (words, projection_dim), what the softmax reads.
        targets: (words,) ids in the LM vocabulary.
        weight: (lm_vocab_size, projection_dim).
        bias: (lm_vocab_size,).
        negatives: the draw.
        sampler: where it comes from.
        sparse: give `weight` and `bias` sparse gradients, of the rows that were looked up.

    Returns:
        (words,) float32.
    """
    ids = negatives.ids.to(targets.device, non_blocking=True)
    # Looked up together, since each look-up may have a gradient as large as the vocabulary.
    both = torch.cat([targets, ids])  # (words + samples,)
    both_rows = _SparseRows.apply(weight, both) if sparse else F.embedding(both, weight)
    both_biases = _SparseRows.apply(bias, both) if sparse else bias[both]
    rows = both_rows.split([len(targets), len(ids)])
    biases = (both_biases - sampler.expected_count(both, negatives.tries).log().float()).split([len(targets), len(ids)])
    target_logits = (hidden * rows[0]).sum(1) + biases[0]  # (words,)
    return _SharedSoftmax.apply(hidden, rows[1].to(hidden.dtype), biases[1], target_logits, find_in(targets, ids))


def find_in(targets: Tensor, ids: Tensor) -> Tensor:
    """Where each target is in `ids`, whose entries differ, and -1 where it is not: (words,), (samples,) -> (words,)."""
    ordered, order = ids.sort()
    place = torch.searchsorted(ordered, targets).clamp(max=len(ids) - 1)
    return torch.where(ordered[place] == targets, order[place], -1)


class _SharedSoftmax(torch.autograd.Function):
    """Loss over a logit of each word's own and logits that all words share, with one matrix in memory and few passes.

    The gradient of the shared logits is softmax times the loss's gradient, which is multiplied into the small matrices
    instead of the large one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, target_logits, own):
        own_logits = target_logits.float()
        with torch.autocast(hidden.device.type, enabled=False):
            exps, top, total = _shared_exps(hidden, weight, bias, own_logits, own)
        ctx.dtypes = bias.dtype, target_logits.dtype
        target_exps = (own_logits - top).exp()
        ctx.save_for_backward(hidden, weight, exps, target_exps, total)
        return total.log() + top - own_logits

    @staticmethod
    @once_differentiable
    def backward(ctx, d_losses):
        hidden, weight, exps, target_exps, total = ctx.saved_tensors
        scale = d_losses / total  # (words,)
        rows = scale[:, None].to(hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return (
                linear(exps, weight.T) * rows,
                weight_gradient(exps, hidden * rows),
                (exps.T @ rows)[:, 0].to(ctx.dtypes[0]),
                (target_exps * scale - d_losses).to(ctx.dtypes[1]),
                None,
            )


def _shared_exps(
    hidden: Tensor, weight: Tensor, bias: Tensor, own_logits: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - top) of the shared logits (words, samples), without each word's own target; the highest logit and the
    sum of all exponentials of each word, its own logit's included, (words,) each."""
    if takes_softmax(hidden, len(weight)):
        exps = linear(hidden, weight)
        return exps, *exponentials(exps, bias.float(), own, own_logits)
    top, total = torch.empty_like(own_logits), torch.empty_like(own_logits)
    exps = hidden.new_empty(len(hidden), len(weight))
    # On a processor, as many words at a time as stay in the caches.
    size = max(1, CACHED_LOGITS // len(weight)) if hidden.device.type == "cpu" else max(1, len(hidden))
    for first in range(0, len(hidden), size):
        part = slice(first, first + size)
        if bias.dtype == hidden.dtype:
            logits = linear(hidden[part], weight, bias).float()  # (words of the part, samples)
        else:  # half precision is for the product only
            logits = linear(hidden[part], weight).float().add_(bias)
        place = own[part, None].clamp(min=0)  # (words of the part, 1)
        logits.scatter_(1, place, logits.gather(1, place).masked_fill_(own[part, None] >= 0, -torch.inf))
        torch.maximum(logits.amax(1), own_logits[part], out=top[part])
        logits.sub_(top[part, None]).exp_()
        torch.sum(logits, 1, out=total[part])
        exps[part] = logits
    total += (own_logits - top).exp()
    return exps, top, total


def full_softmax_loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Loss of each word over the whole vocabulary: (words, projection_dim), (words,) -> (words,) float32."""
    if torch.is_grad_enabled():
        return F.cross_entropy(linear(hidden, weight, bias).float(), targets, reduction="none")
    size = max(1, MAX_LOGITS // VOCABULARY_BLOCK)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([_full_softmax_loss_in_blocks(part, ids, weight, bias) for part, ids in parts])


def _full_softmax_loss_in_blocks(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same, its sum over the vocabulary taken block by block (Milakov and Gimelshein 2018, arXiv 1805.02867)."""
    top = torch.full(targets.shape, -torch.inf, device=hidden.device)  # (words,) the highest logit so far
    total = torch.zeros_like(top)  # (words,) sum of exp(logit - top)
    own = torch.zeros_like(top)  # (words,) logit of the target, rounded as in the sum, or its loss could be negative
    for first in range(0, len(weight), VOCABULARY_BLOCK):
        block = slice(first, first + VOCABULARY_BLOCK)
        logits = linear(hidden, weight[block], bias[block]).float()  # (words, words of the block)
        place = targets - first
        is_here = (place >= 0) & (place < logits.shape[1])
        own = torch.where(is_here, logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], own)
        higher = torch.maximum(top, logits.amax(1))
        total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(1)
        top = higher
    return top + total.log() - own


@dataclass
class ElmoForPreTrainingOutput(ModelOutput):
    """Output of `ElmoForPreTraining`.

    Attributes:
        loss: () float32, mean of both directions' losses, in nats per predicted word.
        logits: (batch, words, lm_vocab_size), without labels only: at each word, the scores of the next one.
        backward_logits: (batch, words, lm_vocab_size), likewise: at each word, the scores of the previous one.
        forward_loss: () float32, the forward direction's mean.
        backward_loss: () float32, the backward direction's mean.
        num_targets: (2,) int64, words predicted by each direction.
        word_losses: (2, batch, words) float32, forward and backward: at each word the loss of predicting the one read
            next, 0 where nothing is predicted. For scores of sentences.
        state: the LSTM state, to be passed on; `None` for pairs.
        hidden_states: with `output_hidden_states=True`, as in `ElmoModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    backward_logits: Tensor | None = None
    forward_loss: Tensor | None = None
    backward_loss: Tensor | None = None
    num_targets: Tensor | None = None
    word_losses: Tensor | None = None
    state: ElmoState | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @property
    def forward_perplexity(self) -> float:
        """exp of the forward direction's loss."""
        return math.exp(self.forward_loss.item())  # type: ignore[union-attr]

    @property
    def backward_perplexity(self) -> float:
        """exp of the backward direction's loss."""
        return math.exp(self.backward_loss.item())  # type: ignore[union-attr]

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of both directions: the number that the paper reports."""
        return math.exp(self.loss.item())  # type: ignore[union-attr]


class ElmoLMHead(nn.Module):
    """The softmax that both directions share.

    Attributes:
        weight: (lm_vocab_size, projection_dim).
        bias: (lm_vocab_size,).
        sparse: as in `torch.nn.Embedding`; where the loss is sampled, gradients are sparse tensors, for optimizers that
            take them (`torch.optim.Adagrad`, `SGD`, `SparseAdam`).
    """

    sparse = False

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.lm_vocab_size, config.projection_dim))
        self.bias = nn.Parameter(torch.empty(config.lm_vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., projection_dim) -> (..., lm_vocab_size) logits."""
        return linear(hidden, self.weight, self.bias)


class ElmoForPreTraining(ElmoPreTrainedModel):
    """ELMo with its softmax: the model that is pretrained (Peters et al. 2018, arXiv 1802.05365, section 3.1).

    In training mode the loss is a sampled softmax with `config.num_negative_samples` negatives for each direction;
    in evaluation mode, and when the vocabulary is not more than twice as large as the negatives, it is the full one.

    Args:
        config: an `ElmoConfig` with `lm_vocab_size`.

    Raises:
        ValueError: a config without `lm_vocab_size`.
    """

    # Where gradients are accumulated, Trainer divides the losses: these are means over a part of the batch.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        if config.lm_vocab_size is None:
            raise ValueError("ElmoForPreTraining needs config.lm_vocab_size, the number of words that it predicts")
        self.elmo = ElmoModel(config, add_scalar_mix=False)
        self.lm_head = ElmoLMHead(config)
        self.sampler = None
        if config.lm_vocab_size > 2 * config.num_negative_samples:
            self.sampler = LogUniformSampler(config.lm_vocab_size, config.num_negative_samples)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ElmoLMHead):
            init.normal_(module.weight, std=math.sqrt(1 / module.weight.shape[1]))
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_output_embeddings(self) -> None:
        """None: the softmax is over words while the inputs are characters, so the two cannot be tied or resized."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: ElmoState | None = None,
        reversed_input_ids: Tensor | None = None,
        distinct_words: Tensor | None = None,
        next_targets: Tensor | None = None,
        previous_targets: Tensor | None = None,
        negatives: tuple[Negatives, Negatives] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ElmoForPreTrainingOutput:
        """Predict the next and the previous words.

        Texts: `labels` holds each word's own id, as `ElmoTokenizer(..., return_lm_labels=True)` gives it; the targets
        are made from it here (the forward direction predicts nothing at a text's last word, the backward direction
        nothing at its first).

        Lanes (truncated back-propagation over an endless stream, as in bilm-tf): `input_ids` is a window of the
        forward stream and `reversed_input_ids` one of the backward stream, in the order in which that direction
        reads; `next_targets` and `previous_targets` are the targets at each of their words.

        Args:
            input_ids: (batch, words, row_length) integer character ids, as for `ElmoModel`; in lanes the forward
                stream.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, vectors of characters or words, as for `ElmoModel`.
            labels: (batch, words) ids in the LM vocabulary; -100 is not predicted.
            state: the `state` of an earlier output. Default: the one that texts begin in.
            reversed_input_ids: (batch, words, row_length), in lanes the backward stream.
            distinct_words: as for `ElmoModel`; in lanes of both streams: `reversed_input_ids` are places, too. On a GPU
                nothing is checked then that the host would have to wait for.
            next_targets: (batch, words) ids that the forward direction predicts in lanes; -100 is not predicted.
            previous_targets: (batch, words) ids that the backward direction predicts.
            negatives: the draw for each direction; by default a new one when the loss is sampled.
            output_hidden_states: whether to return all layers; not in lanes.

        Returns:
            With targets the losses, in nats per predicted word, otherwise the logits; and the state. With
            `return_dict=False` a tuple of them.

        Raises:
            ValueError: labels out of range or that do not fit the inputs; and what `ElmoModel` raises.
        """
        elmo = self.elmo
        inputs, mask, packing = elmo.prepare(
            input_ids, inputs_embeds, attention_mask, token_type_ids, state, distinct_words
        )
        is_pair = len(packing.order) > len(mask)
        if negatives is not None and self.sampler is None:
            raise ValueError("negatives were given, but with so small a vocabulary the full softmax is used")
        lanes = reversed_input_ids is not None
        if lanes and is_pair:
            raise ValueError("lanes have no token_type_ids: each lane is one endless text")
        if lanes != (next_targets is not None):
            raise ValueError("reversed_input_ids, next_targets and previous_targets go together; labels are for texts")
        if reversed_input_ids is not None:
            if distinct_words is None:
                reversed_input_ids = elmo.check_ids(reversed_input_ids)
            else:
                reversed_input_ids = elmo.check_places(reversed_input_ids, distinct_words)
            reversed_input_ids = self._check_shape("reversed_input_ids", reversed_input_ids, inputs).flatten(0, 1)

        layers, state = elmo.encode(inputs.flatten(0, 1), packing, state, reversed_input_ids, distinct_words)
        top = F.dropout(layers[-1], self.config.dropout, self.training)  # (2, packed, projection_dim)
        output = ElmoForPreTrainingOutput()  # its fields are set in their order, which is that of a tuple of them
        targets = self._targets(packing, mask, labels, next_targets, previous_targets, distinct_words is not None)
        if targets is not None:
            losses = [self._losses(top[side], targets[side], negatives and negatives[side]) for side in (0, 1)]
            num_targets = torch.stack([(side != IGNORE_INDEX).sum() for side in targets])  # (2,)
            means = [side.sum() / count.clamp(min=1) for side, count in zip(losses, num_targets, strict=True)]
            output.loss = (means[0] + means[1]) / 2
            output.forward_loss, output.backward_loss = means
            output.num_targets = num_targets
            output.word_losses = self._unpack_losses(losses, packing, mask, lanes)
        else:
            both = unpack(top, packing, mask.shape)  # (batch, words, hidden_size)
            output.logits, output.backward_logits = (self.lm_head(side) for side in both.chunk(2, dim=-1))
        output.state = None if is_pair else state
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            if lanes:
                raise ValueError("lanes have no hidden_states: their two directions read different texts")
            output.hidden_states = tuple(unpack(layer, packing, mask.shape) for layer in layers)
        return output

    def _targets(
        self, packing: Packing, mask: Tensor, labels: Tensor | None, following: Tensor | None, previous: Tensor | None,
        trusted: bool,
    ) -> tuple[Tensor, Tensor] | None:  # fmt: skip
        """(packed,) targets of each direction, or `None` without labels."""
        if (following is None) != (previous is None) or (labels is not None and following is not None):
            raise ValueError("give either labels, or both next_targets and previous_targets")
        if following is not None and previous is not None:
            following, previous = (self._check_labels(side, mask, wait=not trusted) for side in (following, previous))
            return following[packing.forward_index], previous[packing.forward_index]
        if labels is None:
            return None
        labels = F.pad(self._check_labels(labels, mask), (1, 1), value=IGNORE_INDEX)  # shifted by one place
        return (
            labels[packing.forward_index + 2].masked_fill(packing.is_last, IGNORE_INDEX),
            labels[packing.backward_index].masked_fill(packing.is_last, IGNORE_INDEX),
        )

    def _check_labels(self, labels: Tensor, mask: Tensor, wait: bool = True) -> Tensor:
        """Labels (batch * words,), checked; on a GPU only if the host may `wait` for it."""
        labels = self._check_shape("labels", labels, mask).flatten().long()
        size = self.config.lm_vocab_size
        wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= size))
        if (wait or labels.device.type == "cpu") and wrong.any():
            raise ValueError(
                f"labels must be -100 or between 0 and lm_vocab_size - 1 = {size - 1}, but there is "
                f"{int(labels[wrong][0])}: take the tokenizer that belongs to this model"
            )
        return labels

    @staticmethod
    def _check_shape(name: str, tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.shape != like.shape or tensor.is_floating_point():
            raise ValueError(
                f"{name} must be integers of shape {tuple(like.shape)}, not {tensor.dtype} {tuple(tensor.shape)}"
            )
        return tensor

    def _losses(self, hidden: Tensor, targets: Tensor, negatives: Negatives | None) -> Tensor:
        """Loss of each word of one direction, 0 where nothing is predicted: (packed, dim), (packed,) -> (packed,)."""
        is_target = targets != IGNORE_INDEX
        weight, bias, sparse = self.lm_head.weight, self.lm_head.bias, self.lm_head.sparse
        is_sampled = self.sampler is not None and (negatives is not None or self.training)
        # To leave places out, the host would wait for a GPU to count them.
        takes_all = is_sampled and targets.device.type != "cpu"
        if takes_all:
            targets = targets.clamp(min=0)
        else:
            hidden, targets = hidden[is_target], targets[is_target]
        if is_sampled:
            negatives = negatives or self.sampler.draw()
            losses = sampled_softmax_loss(hidden, targets, weight, bias, negatives, self.sampler, sparse)
        elif is_hooked(self.lm_head):  # offloaded weights come where the module is called
            losses = F.cross_entropy(self.lm_head(hidden).float(), targets, reduction="none")
        else:
            losses = full_softmax_loss(hidden, targets, weight, bias)
        if takes_all:
            return losses.masked_fill(~is_target, 0)
        return losses.new_zeros(is_target.shape).masked_scatter(is_target, losses)

    @staticmethod
    def _unpack_losses(losses: list[Tensor], packing: Packing, mask: Tensor, lanes: bool) -> Tensor:
        """Two times (packed,) -> (2, batch, words): each loss at the word behind which the prediction was made."""
        if lanes:  # both streams lie in the order in which they are read
            packing = packing._replace(backward_index=packing.forward_index)
        return unpack(torch.stack(losses)[..., None], packing, mask.shape).movedim(2, 0)
