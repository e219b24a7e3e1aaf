"""Classification and regression of texts and pairs of texts: a biattentive network on ELMo.

The biattentive classification network (BCN) of McCann et al. 2017 (arXiv 1708.00107, section 3), which the ELMo paper
uses for sentiment. Between attention and the second LSTM stand the projection and the matching features of ESIM (Chen
et al. 2017, arXiv 1609.06038), which it uses for entailment. Two things differ from both, since with them a head that
sees some thousand pairs learns which words the texts share: shortcuts lead past both LSTMs (Nie and Bansal 2017, arXiv
1708.02312), and attention goes by cosine (Wang et al. 2017, arXiv 1702.03814).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import MultipleChoiceModelOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .products import Linear
from .task_layers import (
    AttentivePooling,
    BiRecurrent,
    ElmoFeatures,
    ElmoTaskModel,
    attend,
    classification_loss,
    feature_dim,
    masked_mean,
    problem_type_of,
    split_pair,
)

DEFAULT_DIM = 300
ATTENTION_SCALE = 10.0  # of cosines: a word that stands out gets most of the weight in a text of 20, too


class BiattentiveEncoder(nn.Module):
    """A pair of texts as vectors, each read in the light of the other; a single text in the light of itself."""

    def __init__(self, config):
        super().__init__()
        dim, dropout = config.head_dim or DEFAULT_DIM, config.head_dropout
        self.reduce = Linear(feature_dim(config), dim)
        self.encoder = BiRecurrent(dim, dim, dropout)
        self.project = Linear(12 * dim, dim)
        self.integrator = BiRecurrent(dim, dim, dropout)
        self.pooling = AttentivePooling(3 * dim)
        self.output_dim = 12 * dim

    def forward(self, texts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """One or two texts, each (batch, words, feature_dim) and its mask -> as many vectors (batch, 12 * dim)."""
        read = [(_beside(torch.relu(self.reduce(vectors)), mask, self.encoder), mask) for vectors, mask in texts]
        # Each text with the one it attends to; a single one is both.
        return [self._integrate(*text, *other) for text, other in zip(read, read[::-1], strict=True)]

    def _integrate(self, text: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor) -> Tensor:
        """(batch, words, 3 * dim) of a text and of the other one -> (batch, 12 * dim)."""
        # The usual 1e-12 is 0 in float16, and padding would be divided by it.
        eps = max(1e-12, torch.finfo(text.dtype).tiny)
        text_units, other_units = (F.normalize(vectors, dim=2, eps=eps) for vectors in (text, other))
        cosines = text_units @ other_units.transpose(1, 2)  # (batch, words, other words)
        context = attend(ATTENTION_SCALE * cosines, other_mask, other)  # (batch, words, 3 * dim)
        compared = torch.cat([text, context, text - context, text * context], dim=2)  # (batch, words, 12 * dim)
        return self.pooling(_beside(torch.relu(self.project(compared)), mask, self.integrator), mask)


def _beside(words: Tensor, mask: Tensor, layer: BiRecurrent) -> Tensor:
    """Each word by itself, beside what the LSTMs make of it in its text: (batch, words, dim) -> (batch, words, 3 *
    dim)."""
    return torch.cat([words, layer(words, mask)], dim=2)


class MeanEncoder(nn.Module):
    """A text as the mean of its words: the plain head."""

    def __init__(self, config):
        super().__init__()
        self.output_dim = feature_dim(config)

    def forward(self, texts: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """One or two texts, each (batch, words, feature_dim) and its mask -> as many vectors (batch, feature_dim)."""
        return [masked_mean(vectors, mask) for vectors, mask in texts]


class ElmoClassificationHead(nn.Module):
    """From ELMo features to a score a label. Both vectors, their distance and their product, as in Conneau et al. 2017
    (arXiv 1705.02364), go through a hidden layer; a single text stands for both, so one model serves both forms."""

    def __init__(self, config, num_labels: int):
        super().__init__()
        is_linear = config.head == "linear"
        self.encoder = MeanEncoder(config) if is_linear else BiattentiveEncoder(config)
        dim = config.head_dim or DEFAULT_DIM
        width = 4 * self.encoder.output_dim
        self.dropout = nn.Dropout(config.head_dropout)
        self.hidden = nn.Identity() if is_linear else nn.Sequential(Linear(width, dim), nn.ReLU(), self.dropout)
        self.output = nn.Linear(width if is_linear else dim, num_labels)

    def forward(self, features: Tensor, mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(batch, words, feature_dim), (batch, words) and 0 and 1 for the texts of pairs -> (batch, num_labels)."""
        vectors = self.encoder(split_pair(features, mask, token_type_ids))
        first, second = vectors[0], vectors[-1]
        joined = torch.cat([first, second, (first - second).abs(), first * second], dim=1)
        return self.output(self.hidden(self.dropout(joined)))


class ElmoForSequenceClassification(ElmoTaskModel):
    """ELMo with a head for a label or a number for a text or a pair of texts.

    `config.head` is "recurrent" for a biattentive network (McCann et al. 2017, arXiv 1708.00107; for pairs with the
    matching features of Chen et al. 2017, arXiv 1609.06038), "linear" for one linear layer over the mean of the words.

    Args:
        config: an `ElmoConfig` with `num_labels` and, if labels do not tell, `problem_type`; `head`, `head_dim`,
            `head_dropout` and `feature_layers` shape the head.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.features = ElmoFeatures(config)
        self.classifier = ElmoClassificationHead(config, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify texts or pairs.

        Args:
            input_ids: (batch, words, row_length) integer character ids, as for `ElmoModel`.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, vectors of characters or words, as for `ElmoModel`.
            hidden_states: instead of ids, the biLM's layers, (batch, words, layers, hidden_size): see
                `ElmoTaskModel.bilm_layers`.
            labels: (batch,) class ids; numbers for regression (`num_labels=1`); (batch, num_labels) of 0 and 1 for
                `problem_type="multi_label_classification"`.
            output_hidden_states: whether to return the layers that the head mixed.

        Returns:
            `logits` (batch, num_labels), with `labels` a `loss`: in training mode it includes the scalar mix's L2
            pull. `hidden_states`: a tuple of (batch, words, hidden_size).

        Raises:
            ValueError: as for `ElmoModel`; labels out of range.
        """
        layers, mask = self.bilm_layers(input_ids, attention_mask, token_type_ids, inputs_embeds, hidden_states)
        logits = self.classifier(self.features(layers), mask, token_type_ids)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            problem_type = self.config.problem_type or problem_type_of(labels, self.num_labels)
            loss = classification_loss(logits, labels, self.num_labels, problem_type) + self.penalty()
            if self.config.problem_type is None:  # for the saved model: pipelines squash scores by it
                self.config.problem_type = problem_type  # type: ignore[assignment]
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=layers.unbind(2) if output_hidden_states else None
        )


class ElmoForMultipleChoice(ElmoTaskModel):
    """ELMo with a head that picks one of several texts, or of several pairs: the one that gets the highest score.

    The head is that of `ElmoForSequenceClassification` with one score.

    Args:
        config: an `ElmoConfig`; `head`, `head_dim`, `head_dropout` and `feature_layers` shape the head.
    """

    def __init__(self, config):
        super().__init__(config)
        self.features = ElmoFeatures(config)
        self.classifier = ElmoClassificationHead(config, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """Score the choices.

        Args:
            input_ids: (batch, choices, words, row_length) integer character ids, or (batch, choices, words *
                row_length), as `DataCollatorForMultipleChoice` makes them.
            attention_mask: (batch, choices, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, choices, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, vectors of characters or words with the same dimension of choices.
            hidden_states: instead of ids, the biLM's layers, (batch, choices, words, layers, hidden_size).
            labels: (batch,) the number of the right choice.
            output_hidden_states: whether to return the layers that the head mixed.

        Returns:
            `logits` (batch, choices), with `labels` a `loss`. `hidden_states`: a tuple of (batch, choices, words,
            hidden_size).

        Raises:
            ValueError: as for `ElmoModel`; no dimension of choices; labels out of range.
        """
        has_choices = attention_mask is not None and attention_mask.dim() == 3
        if input_ids is not None and input_ids.dim() == 3 and has_choices and self.config.cnn_filters:
            input_ids = input_ids.unflatten(2, (-1, self.config.row_length))
        tensors = [input_ids, attention_mask, token_type_ids, inputs_embeds, hidden_states]
        given = [tensor for tensor in (input_ids, inputs_embeds, hidden_states, attention_mask) if tensor is not None]
        if not given:
            raise ValueError("give input_ids, inputs_embeds or hidden_states")
        sizes = given[0].shape[:2]  # (batch, choices)
        flat = [None if tensor is None else tensor.flatten(0, 1) for tensor in tensors]
        layers, mask = self.bilm_layers(*flat)
        logits = self.classifier(self.features(layers), mask, flat[2]).view(sizes)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels.to(logits.device), sizes[1], "single_label_classification")
            loss = loss + self.penalty()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return MultipleChoiceModelOutput(
            loss=loss,
            logits=logits,
            hidden_states=layers.unflatten(0, sizes).unbind(3) if output_hidden_states else None,
        )
