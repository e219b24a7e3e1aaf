"""From characters to word vectors: the character CNN of ELMo, or a plain table of words.

Embedding -> convolutions without padding -> maximum over positions -> activation -> highway layers -> projection
(Kim et al. 2015, arXiv 1508.06615, as used by Jozefowicz et al. 2016, arXiv 1602.02410). A word's vector depends on
nothing but the word, so equal words of a batch are computed once.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .char_rows import PADDING


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
    """Word vectors from rows of character ids, or from word ids if the config has no `cnn_filters`."""

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
        distinct, inverse = torch.unique(words, dim=0, return_inverse=True)  # (distinct, max_word_length), (words,)
        # Words of similar length together: each chunk is cut to its own longest word.
        by_length = torch.argsort((distinct != PADDING).sum(1))
        vectors = self._in_chunks(distinct[by_length])  # (distinct, projection_dim)
        return vectors[torch.argsort(by_length)[inverse]]

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
