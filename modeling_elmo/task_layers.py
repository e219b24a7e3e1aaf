"""What the task models share: the biLM's layers as features, and the blocks that heads are made of.

Heads work on padded texts (batch, words, dim) with a boolean mask (batch, words), true for words. Padding stands on
the right and never changes what is computed for words.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .lstm_ops import fused_lstm
from .modeling_elmo import ElmoModel, ElmoPreTrainedModel, ElmoScalarMix
from .packing import pack, places_turned_around, text_lengths, unpack
from .products import is_hooked, is_traced


class ElmoFeatures(nn.Module):
    """ELMo as a head reads it: the scalar mix of the biLM's layers (equation 1) with dropout (section 3.4).

    Args:
        config: an `ElmoConfig`; its `concat_word_vectors` puts each word's vector without context before the mix, x_k
            in [x_k; ELMo_k] of section 3.3.
        is_input: whether this is what a head reads first. Where a head reads a mix once more, it stands alone.
    """

    def __init__(self, config, is_input: bool = True):
        super().__init__()
        self.scalar_mix = ElmoScalarMix(config, len(used_layers(config)))
        self.dropout = nn.Dropout(config.feature_dropout)
        self.word_dim = feature_dim(config) - config.hidden_size if is_input else 0
        self.word_layer = used_layers(config).index(0) if self.word_dim else None

    def forward(self, layers: Tensor) -> Tensor:
        """(batch, words, layers, hidden_size) -> (batch, words, hidden_size), or (batch, words, projection_dim +
        hidden_size) with word vectors."""
        features = self.scalar_mix(layers.unbind(2))
        if self.word_dim:
            words = layers[:, :, self.word_layer, : self.word_dim]  # layer 0 has each twice
            words = F.layer_norm(words, words.shape[-1:]) if self.scalar_mix.layer_norm else words
            features = torch.cat([words, features], dim=2)
        return self.dropout(features)

    def penalty(self) -> Tensor:
        """Square of the mix's weights before their softmax: the L2 pull towards an average (section 3.4), a scalar."""
        return self.scalar_mix.weights.square().sum()


class ElmoTaskModel(ElmoPreTrainedModel):
    """A biLM under a head: what all task models do about the biLM.

    A subclass makes its `ElmoFeatures` and blocks, reads `bilm_layers`, and adds `penalty` to its training loss.
    A biLM without trainable parameters computes without gradients and without dropout, also in training mode.
    """

    # Where gradients are accumulated, Trainer divides the losses: these are means over a part of the batch.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.elmo = ElmoModel(config, add_scalar_mix=False)
        self.elmo.requires_grad_(not config.freeze_bilm)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading puts new parameters in the place of the frozen ones.
        model.elmo.requires_grad_(not model.config.freeze_bilm)
        return loaded

    @property
    def bilm_is_frozen(self) -> bool:
        """Whether nothing in the biLM is trained, adapters included."""
        return self.elmo.is_frozen

    def bilm_layers(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The layers that the head mixes, computed or as given.

        Args:
            input_ids: (batch, words, row_length) integer character ids, as for `ElmoModel`.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them.
            token_type_ids: (batch, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, vectors of characters or words, as for `ElmoModel`.
            hidden_states: instead of ids, layers that were computed before: (batch, words, layers, hidden_size) with
                as many layers as the head mixes. They need an `attention_mask`.

        Returns:
            (batch, words, layers, hidden_size), zeros at padding, and the mask (batch, words) bool.

        Raises:
            ValueError: as for `ElmoModel`; `hidden_states` of another shape, together with ids or without a mask.
        """
        if hidden_states is not None:
            return self._check_layers(hidden_states, attention_mask, token_type_ids, input_ids, inputs_embeds)
        trains = not self.bilm_is_frozen or (inputs_embeds is not None and inputs_embeds.requires_grad)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            inputs, mask, _ = self.elmo.prepare(input_ids, inputs_embeds, attention_mask, token_type_ids, None)
            if used_layers(self.config) == [0]:
                words = self.elmo.word_vectors(inputs[mask])  # (words, projection_dim)
                vectors = words.new_zeros(*mask.shape, words.shape[1]).masked_scatter(mask[..., None], words)
                return torch.cat([vectors, vectors], 2)[:, :, None], mask
            output = self.elmo(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                output_hidden_states=True,
                return_dict=True,
            )
        layers = torch.stack([output.hidden_states[layer] for layer in used_layers(self.config)], dim=2)
        return layers, mask

    def _check_layers(
        self, hidden_states, attention_mask, token_type_ids, input_ids, inputs_embeds
    ) -> tuple[Tensor, Tensor]:
        expected = (len(used_layers(self.config)), self.config.hidden_size)
        if input_ids is not None or inputs_embeds is not None:
            raise ValueError("give either input_ids, inputs_embeds or hidden_states, and only one of them")
        if hidden_states.shape[2:] != expected:
            raise ValueError(
                f"hidden_states must be of shape (batch, words, layers, hidden_size) = (batch, words, {expected[0]}, "
                f"{expected[1]}), not {tuple(hidden_states.shape)}"
            )
        if attention_mask is None or attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError("hidden_states need an attention_mask of shape (batch, words)")
        mask = attention_mask != 0
        text_lengths(mask, token_type_ids)  # for its errors
        return hidden_states.to(self.dtype), mask

    def penalty(self) -> Tensor | float:
        """What the training loss gains: `config.scalar_mix_l2` times the squared mix weights; 0 in evaluation mode."""
        if not self.training:
            return 0.0
        mixes = [module for module in self.modules() if isinstance(module, ElmoFeatures)]
        # PEFT keeps the ones from before beside those it trains.
        trained = [mix for mix in mixes if any(weight.requires_grad for weight in mix.parameters())]
        return self.config.scalar_mix_l2 * sum(mix.penalty() for mix in trained)

    def layer_weights(self) -> dict[str, list[float]]:
        """For each scalar mix by name, what each of `used_layers` counts for: its softmax weights, which sum to 1."""
        mixes = {name: module for name, module in self.named_modules() if isinstance(module, ElmoScalarMix)}
        return {name: torch.softmax(mix.weights.detach().float(), 0).tolist() for name, mix in mixes.items()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            _init_lstm(module)
        super()._init_weights(module)  # behind, since linear layers of the biLM have initial values of their own


def _init_lstm(module: nn.LSTM):
    for name, parameter in module.named_parameters():
        if getattr(parameter, "_is_hf_initialized", False):
            continue  # a slice of it would lose the mark
        if name.startswith("weight_ih"):
            init.xavier_uniform_(parameter)
        elif name.startswith("weight_hh"):
            for gate in parameter.split(module.hidden_size):
                init.orthogonal_(gate)
        else:
            init.zeros_(parameter)
            if name.startswith("bias_ih"):
                init.ones_(parameter[module.hidden_size : 2 * module.hidden_size])  # the forget gate


def used_layers(config) -> list[int]:
    """The numbers of the layers that heads mix."""
    return list(range(config.num_hidden_layers + 1)) if config.feature_layers is None else list(config.feature_layers)


def feature_dim(config) -> int:
    """Width of what heads read first: the mix of the layers, and before it the word vectors of layer 0 if the config
    says so and the mix is more than them."""
    layers = used_layers(config)
    has_words = config.concat_word_vectors and 0 in layers and len(layers) > 1
    return config.hidden_size + (config.projection_dim if has_words else 0)


class BiRecurrent(nn.Module):
    """A bidirectional `nn.LSTM` over padded texts of any lengths, with dropout on its input.

    Each direction reads a text's words and then its padding, which cannot change them. Packed sequences of torch would
    leave the padding out, but their backward pass on the CPU takes time that grows with the square of the length.
    There it runs as the biLM does, packed in its own way.
    """

    def __init__(self, input_dim: int, dim: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.forward_rnn = nn.LSTM(input_dim, dim, batch_first=True)
        self.backward_rnn = nn.LSTM(input_dim, dim, batch_first=True)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """(batch, words, input_dim), (batch, words) -> (batch, words, 2 * dim), zeros at padding."""
        if mask.numel() == 0:
            return inputs.new_zeros(*mask.shape, 2 * self.forward_rnn.hidden_size)
        inputs = self.dropout(inputs)
        are_plain = all(type(side) is nn.LSTM and not is_hooked(side) for side in (self.forward_rnn, self.backward_rnn))
        if inputs.device.type == "cpu" and are_plain and not is_traced():
            return self._read_packed(inputs, mask)
        places = places_turned_around(mask)[..., None]  # (batch, words, 1)
        turned = inputs.gather(1, places.expand_as(inputs))
        ahead, back = self.forward_rnn(inputs)[0], self.backward_rnn(turned)[0]  # (batch, words, dim) each
        back = back.gather(1, places.expand_as(back))
        return torch.cat([ahead, back], dim=2) * mask[..., None]

    def _read_packed(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """`forward` on the CPU by the biLM's own recurrence: both directions at once, and no padding."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        sides = [dict(side.named_parameters()) for side in (self.forward_rnn, self.backward_rnn)]
        # Both biases are added before they are stacked: gradients of stacked ones would share memory, and a second
        # backward pass would add to both at once.
        bias = torch.stack([side["bias_ih_l0"] + side["bias_hh_l0"] for side in sides]).to(dtype)
        weight_ih, weight_hh = (
            torch.stack([side[name] for side in sides]).to(dtype) for name in ("weight_ih_l0", "weight_hh_l0")
        )
        packing = pack(torch.arange(len(mask)) * mask.shape[1], mask.sum(1))
        words = inputs.to(dtype).flatten(0, 1)
        words = torch.stack([words[packing.forward_index], words[packing.backward_index]])  # (2, packed, input_dim)
        hidden = words.new_zeros(2, len(mask), self.forward_rnn.hidden_size)
        cell = hidden.to(torch.promote_types(dtype, torch.float32))
        outputs, _, _ = fused_lstm(
            words, weight_ih, weight_hh, bias, None, hidden, cell, packing.batch_sizes,
            cell_clip=None, proj_clip=None,
        )  # fmt: skip
        return unpack(outputs, packing, mask.shape)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where the mask is true, in float32; zeros where it is true nowhere."""
    scores = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min)
    return torch.softmax(scores, dim=-1) * mask


def attend(scores: Tensor, mask: Tensor, vectors: Tensor) -> Tensor:
    """Weighted sums: scores (batch, queries, words), mask (batch, words), vectors (batch, words, dim) -> (batch,
    queries, dim)."""
    return masked_softmax(scores, mask[:, None]).to(vectors.dtype) @ vectors


class AttentivePooling(nn.Module):
    """A text as a vector: maximum, mean, minimum and self-attentive sum over its words (McCann et al. 2017, 3.3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention = nn.Linear(dim, 1, bias=False)  # a bias would not change a softmax

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """(batch, words, dim), (batch, words) -> (batch, 4 * dim), zeros for an empty text."""
        scores = self.attention(vectors).transpose(1, 2)  # (batch, 1, words)
        attended = attend(scores, mask, vectors)[:, 0]
        return torch.cat([*masked_extremes(vectors, mask), masked_mean(vectors, mask), attended], dim=1)


def masked_mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """(batch, words, dim), (batch, words) -> (batch, dim), zeros for an empty text."""
    return (vectors * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]


def masked_extremes(vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and minimum over words, (batch, dim) each, zeros for an empty text."""
    if mask.shape[1] == 0:
        return (vectors.new_zeros(len(vectors), vectors.shape[2]),) * 2
    padding, is_empty = ~mask[..., None], ~mask.any(1)[:, None]
    highest = vectors.masked_fill(padding, -torch.inf).amax(1).masked_fill(is_empty, 0.0)
    lowest = vectors.masked_fill(padding, torch.inf).amin(1).masked_fill(is_empty, 0.0)
    return highest, lowest


def split_pair(vectors: Tensor, mask: Tensor, token_type_ids: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """The two texts of each row, each padded (batch, its words, dim) and with its mask; one text where all are single.

    In a batch of pairs a row without a second text has its first one twice.
    """
    second = mask & (token_type_ids == 1) if token_type_ids is not None else torch.zeros_like(mask)  # (batch, words)
    if not second.any():
        return [(vectors, mask)]
    lengths = mask.sum(1), second.sum(1)  # (batch,)
    firsts = lengths[0] - lengths[1]
    is_pair = lengths[1] > 0
    starts = torch.where(is_pair, firsts, 0)
    seconds = torch.where(is_pair, lengths[1], firsts)
    return [cut_out(vectors, torch.zeros_like(starts), firsts), cut_out(vectors, starts, seconds)]


def cut_out(vectors: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """From each row the words from `starts` on: (batch, longest, dim), zeros at padding, and the mask."""
    steps = torch.arange(int(lengths.max()), device=vectors.device)
    mask = steps < lengths[:, None]  # (batch, longest)
    places = (starts[:, None] + steps).clamp(max=vectors.shape[1] - 1)
    cut = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[2]))
    return cut * mask[..., None], mask


def problem_type_of(labels: Tensor, num_labels: int) -> str:
    """What every classifier of transformers takes such labels for."""
    if num_labels == 1 or (labels.is_floating_point() and labels.dim() == 1):
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def classification_loss(logits: Tensor, labels: Tensor, num_labels: int, problem_type: str) -> Tensor:
    """The loss that `problem_type` names, as in every classifier of transformers.

    Args:
        logits: (batch, num_labels).
        labels: (batch,) or (batch, 1) class ids or numbers, or (batch, num_labels) for regression of several numbers
            and for labels that do not exclude each other.

    Raises:
        ValueError: a class id out of range; numbers that are not as many as the logits.
    """
    logits = logits.float()
    if problem_type == "regression":
        if labels.numel() != logits.numel():
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: make the "
                "model with num_labels=1 for one number a text, or give labels of shape (batch, num_labels)"
            )
        return F.mse_loss(logits.view(labels.shape), labels.float())
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    check_labels(labels, num_labels)
    return F.cross_entropy(logits, labels.long().flatten())


def check_labels(labels: Tensor, num_labels: int):
    """Raise a `ValueError` for class ids that are neither in range nor -100, which means "no label"."""
    wrong = (labels != -100) & ((labels < 0) | (labels >= num_labels))
    if wrong.any():
        raise ValueError(
            f"labels must be between 0 and num_labels - 1 = {num_labels - 1}, or -100 for none, but there is "
            f"{int(labels[wrong][0])}: make the model with num_labels=..., or id2label=..."
        )
