"""ElmoModel: words in context, as a weighted sum of the layers of a bidirectional language model.

Peters et al. 2018, "Deep contextualized word representations" (arXiv 1802.05365), section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_elmo import ElmoConfig
from .lstm import ElmoLstm, ElmoLstmLayer, ElmoState
from .packing import Packing, pack_full, pack_texts, places_turned_around, unpack
from .word_encoder import ElmoHighway, ElmoWordEncoder


@dataclass
class ElmoModelOutput(ModelOutput):
    """Output of `ElmoModel`. Rows of padding are zeros.

    Attributes:
        last_hidden_state: (batch, words, hidden_size), the top layer, forward and backward side by side; with
            `config.mix_last_hidden_state` the same as `scalar_mix`.
        scalar_mix: (batch, words, hidden_size), the weighted sum of all layers (equation 1): the ELMo vector.
        state: the LSTM state behind each text, to be passed on as `state`. `None` for pairs.
        hidden_states: with `output_hidden_states=True`, a tuple of `num_hidden_layers + 1` tensors like the first two;
            its first is the word vector twice, independent of context.
        attentions: `None`; `EncoderDecoderModel` asks for them.
    """

    last_hidden_state: Tensor | None = None
    scalar_mix: Tensor | None = None
    state: ElmoState | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # behind the state, as other models have it: [-1] in flair
    attentions: None = None


class ElmoScalarMix(nn.Module):
    """gamma * sum_j softmax(weights)_j * layer_j (equation 1 of the paper), each layer normalised first on request.

    Args:
        config: an `ElmoConfig`; its `scalar_mix_layer_norm` says whether layers are normalised, each word by itself.
        num_layers: how many layers there are to mix. Default: all.

    Attributes:
        weights: (num_layers,), before their softmax; zeros at first, which is the average.
        gamma: (), the factor before the sum; 1 at first.
    """

    def __init__(self, config, num_layers: int | None = None):
        super().__init__()
        self.layer_norm = config.scalar_mix_layer_norm
        self.weights = nn.Parameter(torch.empty(num_layers or config.num_hidden_layers + 1))
        self.gamma = nn.Parameter(torch.empty(()))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """`num_layers` tensors (..., hidden_size) -> (..., hidden_size); `num_hidden_layers + 1` by default."""
        if self.layer_norm:
            layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
        weights = self.gamma * torch.softmax(self.weights, dim=0)  # (layers,)
        mixed = weights[0] * layers[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            mixed = torch.addcmul(mixed, weight, layer)
        return mixed


class ElmoPreTrainedModel(PreTrainedModel):
    """What all ELMo models share: configuration, names and the initial weights of the original trainer (bilm-tf)."""

    config_class = ElmoConfig
    base_model_prefix = "elmo"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ElmoLstmLayer", "ElmoWordEncoder"]  # noqa: RUF012 - the type that transformers declares
    # The mix has initial values that are as good as any, and models for pretraining have none. Their softmax is of no
    # use to other models, nor has a state to begin in, where texts are to begin in zeros (`initial_state=False`).
    _keys_to_ignore_on_load_missing = [r"scalar_mix\."]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"scalar_mix\.", r"lm_head\.", r"lstm\.initial_"]  # noqa: RUF012

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Three texts of five words, as transformers' own models have them for whoever runs one to look at it."""
        row = (self.config.row_length,) if self.config.cnn_filters else ()
        return {"input_ids": torch.ones(3, 5, *row, dtype=torch.long, device=self.device)}

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # Custom code is taken for done where a module has no parameter of its own, but ours fills its children's.
        super()._initialize_weights(module)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args, **kwargs
    ) -> nn.Embedding:
        size = self.get_input_embeddings().num_embeddings
        if self.config.cnn_filters and (new_num_tokens not in (None, size) or pad_to_multiple_of):
            raise ValueError(
                f"this model spells words in characters, of which its table always has {size}: new words need no place "
                "there, so leave resize_token_embeddings out"
            )
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, *args, **kwargs)
        if not self.config.cnn_filters:  # a table of words, whose size has a name of its own
            self.config.word_vocab_size = embedding.num_embeddings
        return embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ElmoWordEncoder):
            self._init_word_encoder(module)
        elif isinstance(module, ElmoHighway):
            for linear, bias in ((module.transform, 0.0), (module.carry, -2.0)):
                init.normal_(linear.weight, std=math.sqrt(1 / linear.in_features))
                init.constant_(linear.bias, bias)
        elif isinstance(module, ElmoLstmLayer):
            # Glorot bounds of the original's joint (input + projection, gates) kernel.
            _, projection_dim, dim = module.weight_hr.shape
            bound = math.sqrt(6 / (2 * projection_dim + 4 * dim))
            init.uniform_(module.weight_ih, -bound, bound)
            init.uniform_(module.weight_hh, -bound, bound)
            bound = math.sqrt(6 / (projection_dim + dim))
            init.uniform_(module.weight_hr, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, ElmoLstm):
            for buffer in module.buffers(recurse=False):  # of a state that no file has
                init.zeros_(buffer)
        elif isinstance(module, ElmoScalarMix):
            init.zeros_(module.weights)
            init.ones_(module.gamma)

    def _init_word_encoder(self, module: ElmoWordEncoder):
        if not module.has_characters:
            self._init_embedding(module.word_embedding)
            return
        self._init_embedding(module.char_embedding)
        if module.has_word_column:
            self._init_embedding(module.word_embedding)
        for convolution in module.convolutions:
            if module.activation is F.relu:
                init.uniform_(convolution.weight, -0.05, 0.05)
            else:
                init.normal_(convolution.weight, std=math.sqrt(1 / convolution.weight[0].numel()))
            init.zeros_(convolution.bias)
        if module.projection is not None:
            init.normal_(module.projection.weight, std=math.sqrt(1 / module.projection.in_features))
            init.zeros_(module.projection.bias)

    @staticmethod
    def _init_embedding(embedding: nn.Embedding):
        if getattr(embedding.weight, "_is_hf_initialized", False):
            return
        init.uniform_(embedding.weight, -1.0, 1.0)
        init.zeros_(embedding.weight[0])  # the mask


class ElmoModel(ElmoPreTrainedModel):
    """The bidirectional language model without its softmax: all layers, and their learned mix (Peters et al. 2018,
    arXiv 1802.05365, sections 3.1 and 3.2).

    Stateless and deterministic: a text has the same vectors alone, in any batch and in any order. State is an
    argument and an output. Pairs are encoded as two separate texts, since the model never saw two in one.
    Where nothing but the mix is trained, there is no dropout in training mode either, as in AllenNLP; freeze it before
    `train()`.

    Args:
        config: an `ElmoConfig`.
        add_scalar_mix: whether to have the weighted sum of the layers; off in models that do not use it.
    """

    def __init__(self, config, add_scalar_mix: bool = True):
        super().__init__(config)
        self.word_encoder = ElmoWordEncoder(config)
        self.lstm = ElmoLstm(config)
        self.scalar_mix = ElmoScalarMix(config) if add_scalar_mix else None
        self.post_init()

    @property
    def is_frozen(self) -> bool:
        """Whether nothing but the mix is trained, adapters included."""
        parts = (self.word_encoder, self.lstm)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def train(self, mode: bool = True):
        super().train(mode)
        if mode and self.is_frozen:
            self.lstm.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        encoder = self.word_encoder
        return encoder.char_embedding if encoder.has_characters else encoder.word_embedding

    def set_input_embeddings(self, value: nn.Module):
        name = "char_embedding" if self.word_encoder.has_characters else "word_embedding"
        setattr(self.word_encoder, name, value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: ElmoState | None = None,
        output_hidden_states: bool | None = None,
        distinct_words: Tensor | None = None,
        **kwargs,
    ) -> ElmoModelOutput:
        """Encode texts.

        Args:
            input_ids: (batch, words, row_length) integer character ids, 0 for padding, and the word's id behind them
                with `config.word_embedding_dim`; (batch, words) word ids for a model without characters. For a model
                on a GPU they may stay on the CPU: then the host need not wait for the GPU to know what it looks at.
            attention_mask: (batch, words), 1 for words and 0 for padding behind them. By default all rows of
                `input_ids` that are not all zero are words.
            token_type_ids: (batch, words), 0 for the first text of a pair and 1 for the second.
            inputs_embeds: instead of `input_ids`, (batch, words, max_word_length, char_embedding_dim) character
                vectors, or (batch, words, projection_dim) word vectors for a model without characters.
            state: the `state` of an earlier output. Default: the one that texts begin in.
            output_hidden_states: whether to return all layers.
            distinct_words: (distinct, up to row_length) character ids of different words, the columns behind the
                longest one left out or not; `input_ids` are then (batch, words) places among them. Fewer bytes, and no
                equal words to be found.

        Returns:
            The layers, their mix and the state, in the dtype of the weights; the cell state is float32 at least. With
            `return_dict=False` a tuple of them.

        Raises:
            ValueError: ids out of range, shapes that do not fit, a mask that is not padded on the right, or `state`
                together with pairs.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if torch.compiler.is_exporting():
            if token_type_ids is not None or state is not None or distinct_words is not None:
                raise ValueError("an exported ELMo encodes single texts from their start: leave out other arguments")
            hidden_states = self.encode_padded(*self._check_inputs(input_ids, inputs_embeds, attention_mask))
        else:
            inputs, mask, packing = self.prepare(
                input_ids, inputs_embeds, attention_mask, token_type_ids, state, distinct_words
            )
            layers, final = self.encode(inputs.flatten(0, 1), packing, state, distinct_words=distinct_words)
            hidden_states = [unpack(layer, packing, mask.shape) for layer in layers]
            state = final if len(packing.order) == len(mask) else None
        mix = self.scalar_mix(hidden_states) if self.scalar_mix is not None else None
        return ElmoModelOutput(
            last_hidden_state=mix if self.config.mix_last_hidden_state and mix is not None else hidden_states[-1],
            scalar_mix=mix,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            state=state,
        )

    @torch.compiler.disable  # it would unroll the steps, anew for each batch
    def encode(
        self,
        inputs: Tensor,
        packing: Packing,
        state: ElmoState | None = None,
        reversed_inputs: Tensor | None = None,
        distinct_words: Tensor | None = None,
    ) -> tuple[list[Tensor], ElmoState]:
        """Run the model over packed words, each direction in its own reading order: what `forward` is made of.

        Args:
            inputs: (batch * words, ...) ids or vectors of words, padding included.
            packing: where the words are.
            state: the state before the first word. Default: the one that texts begin in.
            reversed_inputs: (batch * words, ...) the backward direction's own stream, in the order in which it reads,
                for pretraining on lanes. By default the backward direction reads `inputs` from the end.
            distinct_words: (distinct, up to row_length) character ids of different words, into which `inputs` and
                `reversed_inputs` then point: (batch * words,) each.

        Returns:
            `num_hidden_layers + 1` tensors (2, packed, projection_dim), and the final state.
        """
        if reversed_inputs is None:
            place = torch.empty(len(inputs), dtype=torch.long, device=inputs.device)
            place[packing.forward_index] = torch.arange(len(packing.forward_index), device=inputs.device)
            vectors = self.word_vectors(inputs[packing.forward_index], distinct_words)  # (packed, projection_dim)
            vectors = torch.stack([vectors, vectors[place[packing.backward_index].to(vectors.device)]])
        else:
            both = torch.cat([inputs[packing.forward_index], reversed_inputs[packing.forward_index]])
            vectors = self.word_vectors(both, distinct_words).unflatten(0, (2, -1))  # (2, packed, projection_dim)
        if state is not None:
            state = self._check_state(state, len(packing.order), vectors)
        layers, state = self.lstm(vectors, packing.to(vectors.device), state)
        return [vectors, *layers], state

    def encode_padded(self, inputs: Tensor, mask: Tensor) -> list[Tensor]:
        """All layers, (batch, words, hidden_size) each, by operations whose shapes do not depend on the texts' lengths.

        Slower than `encode`, for every word is encoded, padding too; for export.

        Args:
            inputs: (batch, words, ...) ids or vectors of words.
            mask: (batch, words) bool.
        """
        words = self.word_vectors(inputs.flatten(0, 1)).unflatten(0, mask.shape)  # (batch, words, projection_dim)
        places = places_turned_around(mask)[..., None].expand_as(words)
        both = torch.stack([words, words.gather(1, places)])  # (2, batch, words, projection_dim)
        layers = [both, *self.lstm.forward_padded(both)]
        return [torch.cat([ahead, back.gather(1, places)], dim=2) * mask[..., None] for ahead, back in layers]

    def word_vectors(self, words: Tensor, distinct_words: Tensor | None = None) -> Tensor:
        """(words, ...) ids or vectors, or (words,) places among distinct words -> (words, projection_dim)."""
        if distinct_words is not None:
            table = self.word_encoder(distinct_words, all_differ=True)  # (distinct, projection_dim)
            return F.embedding(words.to(table.device, non_blocking=True), table)
        if not self.word_encoder.has_characters and words.is_floating_point():
            return words.to(self.word_encoder.word_embedding.weight.dtype)
        return self.word_encoder(words)

    def check_ids(self, input_ids: Tensor) -> Tensor:
        """The ids in int64; a `ValueError` unless they are integers of the right shape and range."""
        word_length = self.config.row_length
        if self.word_encoder.has_characters:
            shape = f"(batch, words, {word_length})"
            fits = input_ids.dim() == 3 and input_ids.shape[2] == word_length
        else:
            shape, fits = "(batch, words)", input_ids.dim() == 2
        if not fits or not has_integers(input_ids):
            raise ValueError(
                f"input_ids must be integers of shape {shape}, not {input_ids.dtype} {tuple(input_ids.shape)}: "
                "make them with this model's ElmoTokenizer"
            )
        ids = input_ids.long()  # a uint8 compares with 262 as with 6, and uint16 has no aminmax
        if ids.numel() and not torch.compiler.is_compiling():
            self._check_rows("input_ids", ids)
        return ids

    def _check_rows(self, name: str, ids: Tensor):
        if self.word_encoder.has_word_column:
            self._check_range("the words' own ids", ids[..., -1], len(self.word_encoder.word_embedding.weight))
            ids = ids[..., :-1]
        self._check_range(name, ids, len(self.get_input_embeddings().weight))

    @staticmethod
    def _check_range(name: str, ids: Tensor, rows: int):
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(
                f"{name} must be between 0 and {rows - 1}, but they go from {low} to {high}: "
                "make them with this model's ElmoTokenizer"
            )

    @torch.compiler.disable  # what follows depends on how long the texts are
    def prepare(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        state: ElmoState | None,
        distinct_words: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Packing]:
        """Check the arguments of `forward`.

        Returns:
            The ids, places or vectors (batch, words, ...), the mask (batch, words) bool, and the packing, which has a
            row for each text: more rows than the batch if there are pairs.
        """
        if distinct_words is None:
            inputs, mask = self._check_inputs(input_ids, inputs_embeds, attention_mask)
        else:
            if inputs_embeds is not None:
                raise ValueError("give either distinct_words or inputs_embeds, and not both")
            inputs = self.check_places(input_ids, distinct_words)
            full = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
            mask = full if attention_mask is None else self._check_mask(attention_mask, inputs)
            if attention_mask is None and token_type_ids is None:
                return inputs, mask, pack_full(len(mask), mask.shape[1], mask.device)  # without waiting for a GPU
        packing = pack_texts(mask, token_type_ids)
        if state is not None and len(packing.order) > len(mask):
            raise ValueError("state goes with single texts: encode the texts of a pair one by one to carry it on")
        return inputs, mask, packing

    def _check_inputs(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs = self.check_ids(input_ids)
            default_mask = inputs.flatten(2).any(2) if inputs.dim() == 3 else inputs > 0
        else:
            inputs = inputs_embeds
            if self.word_encoder.has_word_column:
                raise ValueError("this model looks words up beside their characters: give input_ids, not inputs_embeds")
            width: tuple[int, ...] = (self.config.projection_dim,)
            if self.word_encoder.has_characters:
                width = (self.config.max_word_length, self.config.char_embedding_dim)
            if inputs.shape[2:] != width or not inputs.is_floating_point():
                raise ValueError(
                    f"inputs_embeds must be floating-point vectors of shape (batch, words, *{width}), "
                    f"not {inputs.dtype} {tuple(inputs.shape)}"
                )
            default_mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        return inputs, default_mask if attention_mask is None else self._check_mask(attention_mask, inputs)

    @staticmethod
    def _check_mask(attention_mask: Tensor, inputs: Tensor) -> Tensor:
        mask = attention_mask.to(inputs.device)
        if mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"attention_mask must be of shape (batch, words) = {tuple(inputs.shape[:2])}, not {tuple(mask.shape)}"
            )
        return mask != 0

    def check_places(self, places: Tensor | None, distinct_words: Tensor) -> Tensor:
        """The places in int64; a `ValueError` unless they are integers (batch, words) that point into words which
        this model can read. On a GPU the numbers themselves are not looked at, since the host would have to wait."""
        width = self.config.row_length
        if not self.word_encoder.has_characters:
            raise ValueError("this model reads no characters: give the words' ids as input_ids, not distinct_words")
        shortest = width if self.word_encoder.has_word_column else 1
        fits = distinct_words.dim() == 2 and shortest <= distinct_words.shape[1] <= width
        if not fits or not has_integers(distinct_words):
            raise ValueError(
                f"distinct_words must be integers of shape (distinct, {shortest} to {width}), not "
                f"{distinct_words.dtype} {tuple(distinct_words.shape)}"
            )
        if places is None or places.dim() != 2 or not has_integers(places):
            raise ValueError("with distinct_words, input_ids must be (batch, words) integers: places among them")
        places = places.long()
        if places.device.type == "cpu" and places.numel():
            self._check_range("places in distinct_words", places, len(distinct_words))
            self._check_rows("distinct_words", distinct_words.long())
        return places

    def set_initial_state(self, state: ElmoState | None):
        """Let texts begin in a state, such as that of `warm_state`, which is saved with the weights.

        Args:
            state: with a batch of 1; `None` for zeros.

        Raises:
            ValueError: a state of another shape.
        """
        if state is not None:
            checked = self._check_state(state, 1, self.lstm.layers[0].bias)
            state = ElmoState(*(tensor.detach().clone() for tensor in checked))
        self.lstm.initial_hidden, self.lstm.initial_cell = state or (None, None)
        self.config.initial_state = state is not None

    def _check_state(self, state: ElmoState, rows: int, like: Tensor) -> ElmoState:
        hidden, cell = state
        hidden_shape, cell_shape = self.lstm.state_shapes(rows)
        cell_dtype = torch.promote_types(like.dtype, torch.float32)
        if hidden.shape != hidden_shape or cell.shape != cell_shape:
            raise ValueError(
                f"state must hold (layers, directions, batch, width) = {hidden_shape} and {cell_shape}, "
                f"not {tuple(hidden.shape)} and {tuple(cell.shape)}: pass the state of a batch with as many rows"
            )
        return ElmoState(hidden.to(like.device, like.dtype), cell.to(like.device, cell_dtype))


def has_integers(tensor: Tensor) -> bool:
    """Whether its numbers are integers, and no truth values either."""
    return not tensor.is_floating_point() and tensor.dtype != torch.bool
