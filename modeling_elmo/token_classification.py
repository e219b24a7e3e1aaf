"""Tags for words: a bidirectional LSTM on ELMo, with a conditional random field (CRF) over the tags.

The tagger of Lample et al. 2016 (arXiv 1603.01360, section 2), which the ELMo paper uses for named entities (Peters et
al. 2018, arXiv 1802.05365: CRF loss, and decoding that ensures a valid sequence of tags), with one LSTM layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .char_rows import BEGIN_OF_SENTENCE, END_OF_SENTENCE
from .crf import ChainSteps, LinearChainCrf, allowed_transitions, free_steps, log_likelihood, log_marginals, viterbi
from .task_layers import BiRecurrent, ElmoFeatures, ElmoTaskModel, check_labels, feature_dim

DEFAULT_DIM = 200


class ElmoForTokenClassification(ElmoTaskModel):
    """ELMo with a head for a label for each word.

    `config.head` is "recurrent" for a bidirectional LSTM, "linear" for one linear layer over the features;
    `config.use_crf` says whether labels are scored as a chain or one by one. Sentence boundaries have no place in the
    chain. If the labels are those of chunks (B-PER, I-PER, O and the like, see `allowed_transitions`), then in
    evaluation mode only well-formed chains have a probability. The network is that of Lample et al. 2016 (arXiv
    1603.01360, section 2), with one LSTM layer.

    Args:
        config: an `ElmoConfig` with `id2label`; `head`, `head_dim`, `head_dropout` and `feature_layers` shape the head.
    """

    accepts_loss_kwargs = True  # tells Trainer that the loss is right when gradients are accumulated

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.features = ElmoFeatures(config)
        self.reader, width = None, feature_dim(config)
        if config.head == "recurrent":
            dim = config.head_dim or DEFAULT_DIM
            self.reader, width = BiRecurrent(width, dim, config.head_dropout), 2 * dim
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(width, config.num_labels)
        self.crf = LinearChainCrf(config.num_labels) if config.use_crf else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, LinearChainCrf):
            for parameter in module.parameters():
                init.zeros_(parameter)
        super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
        labels: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Label words.

        Args:
            input_ids: (batch, words, row_length) integer character ids, as for `ElmoModel`.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, vectors of characters or words, as for `ElmoModel`.
            hidden_states: instead of ids, the biLM's layers, (batch, words, layers, hidden_size): see
                `ElmoTaskModel.bilm_layers`.
            labels: (batch, words) label ids, -100 for none. In a chain they may be unknown here and there.
            special_tokens_mask: (batch, words), 1 for sentence boundaries. By default they are known from rows of
                characters; from anything else they cannot be told, and every word is in the chain.
            output_hidden_states: whether to return the layers that the head mixed.
            num_items_in_batch: labelled words that the loss is divided by, if not those of this batch.

        Returns:
            `logits` (batch, words, num_labels) float32: log-probabilities of each word's labels given the text; with a
            CRF by forward-backward. With `labels` a `loss`: the mean over labelled words of the negative
            log-likelihood, without constraints; in training mode it includes the scalar mix's L2 pull.
            `hidden_states`: a tuple of (batch, words, hidden_size).

        Raises:
            ValueError: as for `ElmoModel`; labels out of range; labels or special_tokens_mask of another shape.
        """
        layers, mask = self.bilm_layers(input_ids, attention_mask, token_type_ids, inputs_embeds, hidden_states)
        emissions = self._emissions(layers, mask)
        in_chain = self._chain_mask(mask, input_ids, special_tokens_mask)
        logits, loss = emissions, None
        if self.crf is not None:
            order, chain = _chains_first(in_chain)
            marginals = log_marginals(_reorder(emissions, order), chain, self._steps(emissions, not self.training))
            logits = torch.where(in_chain[..., None], _put_back(marginals, order), emissions)
        if labels is not None:
            loss = self._loss(emissions, labels.to(emissions.device), in_chain, num_items_in_batch)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=layers.unbind(2) if output_hidden_states else None
        )

    @torch.no_grad()
    def decode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """The most probable well-formed chain of labels. Arguments and errors are those of `forward`.

        Returns:
            (batch, words) label ids, -100 at sentence boundaries and padding.
        """
        layers, mask = self.bilm_layers(input_ids, attention_mask, token_type_ids, inputs_embeds, hidden_states)
        order, chain = _chains_first(self._chain_mask(mask, input_ids, special_tokens_mask))
        emissions = _reorder(self._emissions(layers, mask), order)
        return _put_back(viterbi(emissions, chain, self._steps(emissions, constrained=True)), order)

    def _emissions(self, layers: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities of labels for each word by itself, at least float32: (batch, words, num_labels)."""
        vectors = self.features(layers)
        if self.reader is not None:
            vectors = self.reader(vectors, mask)
        scores = self.classifier(self.dropout(vectors))
        return torch.log_softmax(scores, 2, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _chain_mask(self, mask: Tensor, input_ids: Tensor | None, special_tokens_mask: Tensor | None) -> Tensor:
        """Which positions have a label to predict, (batch, words) bool."""
        if special_tokens_mask is not None:
            if special_tokens_mask.shape != mask.shape:
                raise ValueError(
                    f"special_tokens_mask must be of shape (batch, words) = {tuple(mask.shape)}, "
                    f"not {tuple(special_tokens_mask.shape)}"
                )
            return mask & (special_tokens_mask.to(mask.device) == 0)
        if input_ids is None or input_ids.dim() != 3:
            return mask
        first = input_ids[..., 1].long()  # the character behind begin-of-word
        return mask & (first != BEGIN_OF_SENTENCE) & (first != END_OF_SENTENCE)

    def _steps(self, emissions: Tensor, constrained: bool) -> ChainSteps:
        steps = free_steps(self.num_labels, emissions) if self.crf is None else self.crf()
        if not constrained:
            return steps
        # Keys may be text, as in JSON.
        names = {int(label): name for label, name in (self.config.id2label or {}).items()}
        return steps.restricted(allowed_transitions([names[label] for label in range(self.num_labels)]))

    def _loss(self, emissions: Tensor, labels: Tensor, in_chain: Tensor, num_items: Tensor | int | None) -> Tensor:
        if labels.shape != in_chain.shape:
            raise ValueError(
                f"labels must be of shape (batch, words) = {tuple(in_chain.shape)}, not {tuple(labels.shape)}"
            )
        check_labels(labels, self.num_labels)
        labels = labels.long().masked_fill(~in_chain, -100)
        num_labelled = (labels != -100).sum()
        if self.crf is None:
            loss = F.nll_loss(emissions.flatten(0, 1), labels.flatten(), reduction="sum")
        else:
            order, chain = _chains_first(in_chain)
            steps = self._steps(emissions, constrained=False)
            loss = -log_likelihood(_reorder(emissions, order), labels.gather(1, order), chain, steps).sum()
        # Where gradients are accumulated, the parts of a batch share the penalty as they share the labels.
        divisor = num_labelled if num_items is None else torch.as_tensor(num_items)
        return (loss + num_labelled * self.penalty()) / divisor.clamp(min=1)


def _chains_first(in_chain: Tensor) -> tuple[Tensor, Tensor]:
    """The order (batch, words) in which the words of the chain come first, and the mask in that order."""
    order = in_chain.int().argsort(dim=1, descending=True, stable=True)
    return order, in_chain.gather(1, order)


def _reorder(values: Tensor, order: Tensor) -> Tensor:
    """(batch, words, labels) in another order of words."""
    return values.gather(1, order[..., None].expand_as(values))


def _put_back(values: Tensor, order: Tensor) -> Tensor:
    """Undo `_reorder`, for values (batch, words) or (batch, words, labels)."""
    index = order if values.dim() == 2 else order[..., None].expand_as(values)
    return torch.empty_like(values).scatter(1, index, values)
