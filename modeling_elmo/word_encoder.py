"""From characters to word vectors: the character CNN of ELMo, or a plain table of words.

Embedding -> convolutions without padding -> maximum over positions -> activation -> highway layers -> projection
(Kim et al. 2015, arXiv 1508.06615, as used by Jozefowicz et al. 2016, arXiv 1602.02410). A word's vector depends on
nothing but the word, so equal words of a batch are computed once, and with frozen weights words of earlier batches are
remembered.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .char_rows import PADDING
from .word_cache import WordCache, first_positions, row_keys


class ElmoHighway(nn.Module):
    """out = sigmoid(carry) * relu(transform) + (1 - sigmoid(carry)) * x (Srivastava et al. 2015, arXiv 1505.00387)."""

    def __init__(self, dim: int):
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.carry = nn.Linear(dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(words, dim) -> (words, dim)."""
        carry = torch.sigmoid(self.carry(inputs))
        return carry * F.relu(self.transform(inputs)) + (1 - carry) * inputs


class ElmoWordEncoder(nn.Module):
    """Word vectors from rows of character ids, or from word ids if the config has no `cnn_filters`.

    `cache`: vectors of earlier batches, on the CPU and while no gradient of the weights is asked for.
    """

    cache_bytes = 128 * 2**20  # 65,536 words of 512 float32 numbers

    def __init__(self, config):
        super().__init__()
        self.chunk_size = config.chunk_size
        self.has_characters = bool(config.cnn_filters)
        if not self.has_characters:
            self.word_embedding = nn.Embedding(config.word_vocab_size, config.projection_dim, padding_idx=0)
            return
        self.widest = max(width for width, _ in config.cnn_filters)
        self.activation = {"relu": F.relu, "tanh": torch.tanh}[config.cnn_activation]
        self.char_embedding = nn.Embedding(config.vocab_size, config.char_embedding_dim, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.char_embedding_dim, number, width) for width, number in config.cnn_filters
        )
        self.highways = nn.ModuleList(ElmoHighway(config.num_filters) for _ in range(config.num_highway_layers))
        self.projection = None
        if config.use_cnn_projection:
            self.projection = nn.Linear(config.num_filters, config.projection_dim)
        self.cache = WordCache(self.cache_bytes // (4 * config.projection_dim))

    def forward(self, words: Tensor) -> Tensor:
        """Encode words, each distinct one once.

        Args:
            words: (words, max_word_length) integer character ids; (words,) word ids for a model without characters;
                or (words, max_word_length, char_embedding_dim) floating-point character vectors.

        Returns:
            (words, projection_dim).
        """
        if not self.has_characters:
            return self.word_embedding(words)
        if words.is_floating_point():
            return self._in_chunks(words)
        if words.device.type != "cpu" or torch.compiler.is_compiling():
            distinct, inverse = torch.unique(words, dim=0, return_inverse=True)  # (distinct, width), (words,)
            return self._encode_by_length(distinct)[inverse]
        keys = row_keys(words)
        if self._is_frozen():
            return self.cache.look_up(keys, self._fingerprint(), lambda places: self._encode_by_length(words[places]))
        first = first_positions(keys)
        order = {key: place for place, key in enumerate(first)}
        return self._encode_by_length(words[list(first.values())])[[order[key] for key in keys]]

    def _is_frozen(self) -> bool:
        """Whether vectors depend on nothing but the weights and need no gradient."""
        for parameter in self.parameters():
            is_trained = parameter.requires_grad and torch.is_grad_enabled()
            if is_trained or type(parameter) is not nn.Parameter or parameter.device.type != "cpu":
                return False
        # An adapter, a hook or a parametrisation may change its mind without a change of weights.
        return all(
            type(module) in PLAIN_MODULES and not module._forward_hooks and not module._forward_pre_hooks
            for module in self.modules()
        )

    def _fingerprint(self) -> Hashable:
        """Differs when any weight differs: its counter of changes, and a sum of its bits for changes past it."""
        weights = []
        for parameter in self.parameters():
            bits = parameter.detach().flatten()
            bits = bits.view(torch.int64) if bits.nbytes % 8 == 0 else bits.view(torch.uint8)
            version = -1 if parameter.is_inference() else parameter._version
            weights.append((parameter.data_ptr(), parameter.dtype, version, int(bits.sum())))
        return (*weights, torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    def _encode_by_length(self, words: Tensor) -> Tensor:
        """Words of similar length together: each chunk is cut to its own longest word."""
        by_length = torch.argsort((words != PADDING).sum(1))
        return self._in_chunks(words[by_length])[torch.argsort(by_length)]  # (words, projection_dim)

    def _in_chunks(self, words: Tensor) -> Tensor:
        chunks = words.split(self.chunk_size or max(len(words), 1))
        return torch.cat([self._encode(chunk) for chunk in chunks])

    def _encode(self, words: Tensor) -> Tensor:
        if not words.is_floating_point():
            words = self.char_embedding(self._cut(words))
        characters = words.transpose(1, 2)  # (words, char_embedding_dim, positions)
        # The activation rises monotonically, so it may follow the maximum.
        features = [convolution(characters).amax(2) for convolution in self.convolutions]
        vectors = self.activation(torch.cat(features, dim=1))  # (words, num_filters)
        for highway in self.highways:
            vectors = highway(vectors)
        return self.projection(vectors) if self.projection is not None else vectors

    def _cut(self, words: Tensor) -> Tensor:
        """Leave out positions that cannot change the maximum.

        All windows that see only padding are alike. Behind the longest word, one such window of the widest filter is
        enough; a full-length row has no such window and is not cut.
        """
        if len(words) == 0:
            return words
        position = torch.arange(1, words.shape[1] + 1, device=words.device)
        longest = int(((words != PADDING) * position).max())
        return words[:, : longest + self.widest]


PLAIN_MODULES = {ElmoWordEncoder, ElmoHighway, nn.Conv1d, nn.Embedding, nn.Linear, nn.ModuleList}
