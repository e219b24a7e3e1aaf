"""Extractive question answering: which words of a context answer a question, or that none do.

The network of Clark and Gardner 2017 (arXiv 1710.10723), which the ELMo paper uses for SQuAD: bidirectional attention
(Seo et al. 2017, arXiv 1611.01603) and self-attention between recurrent layers. These are LSTMs, as in Seo et al., for
which we have a fast kernel, in the place of GRUs. As in the ELMo paper (section 4 and appendix), a second mix of the
biLM's layers stands beside the output of the first one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .products import Linear
from .task_layers import BiRecurrent, ElmoFeatures, ElmoTaskModel, attend, cut_out, feature_dim, masked_softmax

logger = logging.get_logger(__name__)

DEFAULT_DIM = 100
# The score of places that can hold no answer: finite, so that a sum of two of them is still a number in half precision.
LOWEST_SCORE = -1e4


class TrilinearScores(nn.Module):
    """How much each word of one text says about each word of another: w1 h + w2 q + w3 (h * q) (Seo et al. 2017)."""

    def __init__(self, dim: int):
        super().__init__()
        self.first = nn.Linear(dim, 1, bias=False)
        self.second = nn.Linear(dim, 1, bias=False)
        self.product = nn.Linear(dim, 1, bias=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(batch, first words, dim), (batch, second words, dim) -> (batch, first words, second words)."""
        # The third term scales one side and is then a matrix product: no (batch, words, words, dim) is made. The layer
        # is called to tell its weights, for an adapter on it may add to them.
        scale = self.product(torch.eye(first.shape[2], dtype=first.dtype, device=first.device))[:, 0]  # (dim,)
        products = (first * scale) @ second.transpose(1, 2)
        return self.first(first) + self.second(second).transpose(1, 2) + products


class ContextReader(nn.Module):
    """The words of the context in the light of the question and of each other (Clark and Gardner 2017)."""

    def __init__(self, config):
        super().__init__()
        dim, dropout = config.head_dim or DEFAULT_DIM, config.head_dropout
        width = 2 * dim + config.hidden_size
        self.dropout = nn.Dropout(dropout)
        self.encoder = BiRecurrent(feature_dim(config), dim, 0.0)  # the features had their dropout
        self.attention = TrilinearScores(width)
        self.merge = Linear(4 * width, 2 * dim)
        self.self_encoder = BiRecurrent(2 * dim, dim, dropout)
        self.self_attention = TrilinearScores(2 * dim)
        self.self_merge = Linear(6 * dim, 2 * dim)
        self.output_dim = 2 * dim

    def forward(self, inputs: list[Tensor], besides: list[Tensor], masks: list[Tensor]) -> Tensor:
        """For question and context the input of the first LSTM and what stands beside its output, (batch, words,
        feature_dim) and (batch, words, hidden_size), and the mask (batch, words) -> (batch, context words, 2 * dim)."""
        question, context = (
            torch.cat([self.dropout(self.encoder(vectors, mask)), beside], dim=2)
            for vectors, beside, mask in zip(inputs, besides, masks, strict=True)
        )
        read = torch.relu(self.merge(self.attend_both_ways(question, context, *masks)))
        return read + torch.relu(self.self_merge(self.attend_to_itself(read, masks[1])))

    def attend_both_ways(
        self, question: Tensor, context: Tensor, question_mask: Tensor, context_mask: Tensor
    ) -> Tensor:
        """(batch, question words, width), (batch, context words, width) -> (batch, context words, 4 * width)."""
        scores = self.attention(context, question)  # (batch, context words, question words)
        to_question = attend(scores, question_mask, question)  # (batch, context words, width)
        highest = scores.masked_fill(~question_mask[:, None], LOWEST_SCORE).amax(2)  # (batch, context words)
        to_context = attend(highest[:, None], context_mask, context)  # (batch, 1, width)
        return torch.cat([context, to_question, context * to_question, to_context * to_question], dim=2)

    def attend_to_itself(self, read: Tensor, mask: Tensor) -> Tensor:
        """(batch, words, 2 * dim) -> (batch, words, 6 * dim). No word attends to itself."""
        vectors = self.dropout(self.self_encoder(read, mask))
        others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # (words, words)
        weights = masked_softmax(self.self_attention(vectors, vectors), mask[:, None] & others)
        attended = weights.to(vectors.dtype) @ vectors
        return torch.cat([vectors, attended, vectors * attended], dim=2)


class BoundaryScores(nn.Module):
    """How well an answer would start, or end, at each word, and how well there would be none.

    That of none is a linear function of the words' vectors, weighted by the softmax of their scores: like the no-answer
    option of Clark and Gardner (2017), it sees what the best answers look like.
    """

    def __init__(self, input_dim: int, dim: int, dropout: float):
        super().__init__()
        self.encoder = BiRecurrent(input_dim, dim, dropout)
        self.score = nn.Linear(2 * dim, 1)
        self.no_answer = nn.Linear(2 * dim, 1)

    def forward(self, vectors: Tensor, mask: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, words, input_dim), which are there and which may be in an answer, both (batch, words) -> the LSTM's
        outputs (batch, words, 2 * dim), the scores of words (batch, words) and those of no answer (batch,)."""
        states = self.encoder(vectors, mask)
        scores = self.score(states)[..., 0]
        return states, scores, self.no_answer(attend(scores[:, None], is_word, states))[:, 0, 0]


class Pairs:
    """Where the texts of a batch are: `<S> question </S> <S> context </S>`, then padding.

    Attributes:
        masks: of question and context as `cut` returns them, (batch, its words) bool each.
        is_word: (batch, words) bool, the words of contexts without their boundaries: where answers may be.
        is_cut_word: the same as `cut` returns it, (batch, context words).
    """

    def __init__(self, mask: Tensor, token_type_ids: Tensor | None):
        is_second = mask & (token_type_ids == 1) if token_type_ids is not None else torch.zeros_like(mask)
        seconds = is_second.sum(1)  # (batch,)
        firsts = mask.sum(1) - seconds
        self.starts, self.lengths = (torch.zeros_like(firsts), firsts), (firsts, seconds)
        places = torch.arange(mask.shape[1], device=mask.device)
        # A recurrence needs a step, also where all contexts are empty.
        self.masks = [places[: max([1, *length.tolist()])] < length[:, None] for length in self.lengths]
        self.is_word = self._is_inside(places - firsts[:, None])
        self.is_cut_word = self._is_inside(places[: self.masks[1].shape[1]])

    def _is_inside(self, steps: Tensor) -> Tensor:
        return (steps > 0) & (steps < self.lengths[1][:, None] - 1)

    def cut(self, vectors: Tensor) -> list[Tensor]:
        """(batch, words, dim) -> question and context, each (batch, its words, dim), with their boundaries. A row
        without a second text has an empty context."""
        return [
            cut_out(vectors, start, length.clamp(min=1))[0]
            for start, length in zip(self.starts, self.lengths, strict=True)
        ]


class RecurrentSpans(nn.Module):
    """The network of the module's docstring."""

    def __init__(self, config):
        super().__init__()
        dim, dropout = config.head_dim or DEFAULT_DIM, config.head_dropout
        self.attention_mix = ElmoFeatures(config, is_input=False)
        self.reader = ContextReader(config)
        width = self.reader.output_dim
        self.start = BoundaryScores(width, dim, dropout)
        self.end = BoundaryScores(width + 2 * dim, dim, dropout)

    def forward(self, features: Tensor, layers: Tensor, pairs: Pairs) -> Tensor:
        """(batch, words, feature_dim), (batch, words, layers, hidden_size) -> (batch, words, 2), scores as start and
        as end; at position 0 those of no answer, and anything where no answer may be."""
        besides = pairs.cut(self.attention_mix(layers))
        read = self.reader(pairs.cut(features), besides, pairs.masks)  # (batch, context words, 2 * dim)
        states, starts, no_start = self.start(read, pairs.masks[1], pairs.is_cut_word)
        _, ends, no_end = self.end(torch.cat([states, read], dim=2), pairs.masks[1], pairs.is_cut_word)
        scores = starts.new_zeros(*pairs.is_word.shape, 2)
        found = torch.stack([starts, ends], dim=2)[pairs.is_cut_word]  # (all words, 2)
        scores = scores.masked_scatter(pairs.is_word[..., None], found)
        return torch.cat([torch.stack([no_start, no_end], dim=1)[:, None], scores[:, 1:]], dim=1)


class LinearSpans(nn.Module):
    """The plain head: a linear layer over each word, and over the first `<S>` for no answer.

    A word's ELMo vector knows nothing of the other text of a pair, so this head scores what looks like an answer.
    """

    def __init__(self, config):
        super().__init__()
        self.output = nn.Linear(feature_dim(config), 2)

    def forward(self, features: Tensor, layers: Tensor, pairs: Pairs) -> Tensor:
        """As `RecurrentSpans.forward`."""
        return self.output(features)


def boundary_loss(logits: Tensor, positions: Tensor, may_be: Tensor) -> Tensor:
    """Mean cross-entropy in float32 over the rows whose position may be an answer's; 0 if there is none.

    Args:
        logits: (batch, words).
        positions: (batch,) or (batch, 1).
        may_be: (batch, words) bool: where answers may be. Other positions are left out, as those beyond the words are
            in all models of transformers: their run_qa.py gives a padding position to the last word of a context.
    """
    if not logits.numel():
        return logits.float().sum()
    targets = positions.to(logits.device).long().view(-1)
    inside = (targets >= 0) & (targets < logits.shape[1])
    found = may_be.gather(1, (targets * inside)[:, None])[:, 0] & inside
    if not found.any():
        logger.warning_once("a batch has no answer in its contexts: encode pairs of (question, context), in this order")
    losses = F.cross_entropy(logits.float(), targets.masked_fill(~found, -100), ignore_index=-100, reduction="sum")
    return losses / found.sum().clamp(min=1)


class ElmoForQuestionAnswering(ElmoTaskModel):
    """ELMo with a head that finds the answer to a question in a context.

    `config.head` is "recurrent" for the network of Clark and Gardner 2017 (arXiv 1710.10723), "linear" for one linear
    layer over each word.

    Args:
        config: an `ElmoConfig`; `head`, `head_dim`, `head_dropout` and `feature_layers` shape the head.
    """

    def __init__(self, config):
        super().__init__(config)
        self.features = ElmoFeatures(config)
        self.spans = LinearSpans(config) if config.head == "linear" else RecurrentSpans(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Score the words of contexts as the first and the last word of the answer.

        Args:
            input_ids: (batch, words, row_length) integer character ids of pairs of a question and a context, as the
                tokenizer makes them.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, words), 0 for the question and 1 for the context.
            inputs_embeds: instead of `input_ids`, vectors of characters or words, as for `ElmoModel`.
            hidden_states: instead of ids, the biLM's layers, (batch, words, layers, hidden_size): see
                `ElmoTaskModel.bilm_layers`.
            start_positions: (batch,) where in the pair the answer's first word stands; 0 for no answer. A position
                that can hold no answer, such as -100 or one of padding, is left out.
            end_positions: (batch,) the same for its last word.
            output_hidden_states: whether to return the layers that the head mixed.

        Returns:
            `start_logits` and `end_logits` (batch, words): a score for each word of the context, at position 0 that of
            no answer, and -10,000 at all other positions. With both positions a `loss`: the mean of the two
            cross-entropies; in training mode it includes the scalar mixes' L2 pull. `hidden_states`: a tuple of
            (batch, words, hidden_size).

        Raises:
            ValueError: as for `ElmoModel`.
        """
        layers, mask = self.bilm_layers(input_ids, attention_mask, token_type_ids, inputs_embeds, hidden_states)
        pairs = Pairs(mask, token_type_ids)
        may_be = pairs.is_word | (torch.arange(mask.shape[1], device=mask.device) == 0)  # (batch, words)
        scores = layers.new_zeros(*mask.shape, 2)
        if mask.numel():
            scores = self.spans(self.features(layers), layers, pairs)
        start_logits, end_logits = scores.masked_fill(~may_be[..., None], LOWEST_SCORE).unbind(2)
        loss = None
        if start_positions is not None and end_positions is not None:
            starts = boundary_loss(start_logits, start_positions, may_be)
            loss = (starts + boundary_loss(end_logits, end_positions, may_be)) / 2 + self.penalty()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=layers.unbind(2) if output_hidden_states else None,
        )
