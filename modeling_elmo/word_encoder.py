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

from .products import Linear, is_hooked, is_traced, linear
from .weight_changes import fingerprint_of
from .word_cache import WordCache, compute_once, row_keys


class ElmoHighway(nn.Module):
    """out = sigmoid(carry) * relu(transform) + (1 - sigmoid(carry)) * x (Srivastava et al. 2015, arXiv 1505.00387)."""

    def __init__(self, dim: int):
        super().__init__()
        self.transform = Linear(dim, dim)
        self.carry = Linear(dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(words, dim) -> (words, dim)."""
        carry = torch.sigmoid(self.carry(inputs))
        return carry * F.relu(self.transform(inputs)) + (1 - carry) * inputs


class ElmoWordEncoder(nn.Module):
    """Word vectors from rows of character ids, or from word ids if the config has no `cnn_filters`.

    Attributes:
        cache: vectors of earlier batches, on the CPU and while no gradient of the weights is asked for; set it to
            `WordCache(0)` to keep none.
    """

    cache_bytes = 128 * 2**20  # 65,536 words of 512 float32 numbers

    def __init__(self, config):
        super().__init__()
        self.chunk_size = config.chunk_size
        self.has_characters = bool(config.cnn_filters)
        self.has_word_column = config.word_embedding_dim is not None
        self.padding_id = config.char_padding_id
        if not self.has_characters:
            self.word_embedding = nn.Embedding(config.word_vocab_size, config.projection_dim, padding_idx=0)
            return
        self.max_word_length = config.max_word_length
        self.widest = max(width for width, _ in config.cnn_filters)
        self.activation = {"relu": F.relu, "tanh": torch.tanh}[config.cnn_activation]
        self.char_embedding = nn.Embedding(config.vocab_size, config.char_embedding_dim, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.char_embedding_dim, number, width) for width, number in config.cnn_filters
        )
        self.highways = nn.ModuleList(ElmoHighway(config.num_filters) for _ in range(config.num_highway_layers))
        self.projection = None
        width = config.num_filters
        if self.has_word_column:
            self.word_embedding = nn.Embedding(config.word_vocab_size, config.word_embedding_dim, padding_idx=0)
            width += config.word_embedding_dim
        if config.use_cnn_projection:
            self.projection = Linear(width, config.projection_dim)
        self.cache = WordCache(self.cache_bytes // (4 * config.projection_dim))

    def forward(self, words: Tensor, all_differ: bool = False) -> Tensor:
        """Encode words, each distinct one once.

        Args:
            words: (words, row_length) integer ids: of characters and, with a word table beside them, of the word;
                (words,) word ids for a model without characters; or (words, max_word_length, char_embedding_dim)
                floating-point character vectors.
            all_differ: the words are different ones, as rows of character ids. Rows may be cut behind the longest word:
                then nothing in here waits for a GPU.

        Returns:
            (words, projection_dim).
        """
        if all_differ:
            return self._encode_distinct(words.long())
        if not self.has_characters:
            return self.word_embedding(words.to(device_of(self.word_embedding, words)))
        if torch.compiler.is_exporting():  # nothing that depends on what the words are
            return self._encode(words)
        if words.is_floating_point():
            return self._in_chunks(words)
        if words.device.type != "cpu" or is_traced():
            distinct, inverse = torch.unique(words, dim=0, return_inverse=True)  # (distinct, width), (words,)
            return self._encode_by_length(distinct)[inverse]
        keys = row_keys(words)

        def compute(places: list[int]) -> Tensor:
            return self._encode_by_length(words[places].to(device_of(self.char_embedding, words)))

        if self._is_frozen():
            return self.cache.look_up(keys, self._fingerprint(), compute)
        return compute_once(keys, compute)

    def _encode_distinct(self, words: Tensor) -> Tensor:
        words = words.to(device_of(self.char_embedding, words), non_blocking=True)
        if words.device.type != "cpu":
            return self._in_chunks(words)
        if words.shape[1] < self.max_word_length:
            words = F.pad(words, (0, self.max_word_length - words.shape[1]), value=self.padding_id)
        if not self._is_frozen():
            return self._encode_by_length(words)
        return self.cache.look_up(
            row_keys(words), self._fingerprint(), lambda places: self._encode_by_length(words[places])
        )

    def _is_frozen(self) -> bool:
        """Whether vectors depend on nothing but the weights and need no gradient."""
        for parameter in self.parameters():
            is_trained = parameter.requires_grad and torch.is_grad_enabled()
            if is_trained or type(parameter) is not nn.Parameter or parameter.device.type != "cpu":
                return False
        return all(is_plain(module) for module in self.modules())

    def _fingerprint(self) -> Hashable:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        return fingerprint_of(self.parameters()), autocast

    def _encode_by_length(self, words: Tensor) -> Tensor:
        """Words of similar length together: each chunk is cut to its own longest word."""
        by_length = torch.argsort((words != self.padding_id).sum(1))
        return self._in_chunks(words[by_length])[torch.argsort(by_length)]  # (words, projection_dim)

    def _in_chunks(self, words: Tensor) -> Tensor:
        size, number = self.chunk_size or max(len(words), 1), len(words)
        if words.device.type != "cpu":
            size *= GPU_CHUNKS
        else:
            size = min(size, CPU_CHUNK_SIZE)
            if number > CPU_CHUNK_SIZE:  # the last word again, until the rows are full
                words = words[torch.arange(-(-number // CPU_ROWS) * CPU_ROWS).clamp(max=number - 1)]
        return torch.cat([self._encode(chunk) for chunk in words.split(size)])[:number]

    def _encode(self, words: Tensor) -> Tensor:
        known: list[Tensor] = []  # what a word has beside its characters
        if self.has_word_column:
            known, words = [self.word_embedding(words[:, -1])], words[:, :-1]
        if words.is_floating_point():
            maxima = self._convolve(words)
        else:
            words, is_cut = (words, False) if torch.compiler.is_exporting() else self._cut(words)
            characters = self.char_embedding(words)  # (words, positions, char_embedding_dim)
            together = is_cut and all(is_plain(convolution) for convolution in self.convolutions)
            maxima = self._convolve_together(characters) if together else self._convolve(characters)
        vectors = self.activation(maxima)  # (words, num_filters); it rises monotonically, so it may follow the maximum
        for highway in self.highways:
            vectors = highway(vectors)
        if known:
            vectors = torch.cat([*known, vectors], dim=1)  # (words, word_embedding_dim + num_filters)
        return self.projection(vectors) if self.projection is not None else vectors

    def _convolve(self, characters: Tensor) -> Tensor:
        """(words, positions, char_embedding_dim) -> (words, num_filters), the maximum of each filter's windows."""
        characters = characters.transpose(1, 2)  # (words, char_embedding_dim, positions)
        return torch.cat([convolution(characters).amax(2) for convolution in self.convolutions], dim=1)

    def _convolve_together(self, characters: Tensor) -> Tensor:
        """`_convolve` for words whose last window of the widest filter is all padding: one product for all filters.

        Narrow filters become as wide as the widest with zeros behind them. They lose their last windows, which are all
        padding as well. Few weights lie in narrow filters, so the zeros cost little, and a product is faster than a
        convolution with few channels.
        """
        weights = [
            F.pad(convolution.weight, (0, self.widest - convolution.weight.shape[2])).transpose(1, 2).flatten(1)
            for convolution in self.convolutions
        ]
        weight = torch.cat(weights)  # (num_filters, widest * char_embedding_dim)
        bias = torch.cat([convolution.bias for convolution in self.convolutions])
        number = characters.shape[1] - self.widest + 1
        windows = torch.cat([characters[:, start : start + number] for start in range(self.widest)], dim=2)
        return linear(windows, weight).amax(1) + bias  # windows: (words, number, widest * char_embedding_dim)

    def _cut(self, words: Tensor) -> tuple[Tensor, bool]:
        """Leave out positions that cannot change the maximum.

        All windows that see only padding are alike. Behind the longest word, one such window of the widest filter is
        enough.

        Returns:
            The cut words, and whether there was such a window: there is none in words of almost full length.
        """
        if len(words) == 0:
            return words, False
        if words.shape[1] < self.max_word_length:  # cut behind the longest word before
            end = min(words.shape[1] + self.widest, self.max_word_length)
            cut = F.pad(words, (0, end - words.shape[1]), value=self.padding_id)
            return cut, words.shape[1] + self.widest <= self.max_word_length
        position = torch.arange(1, words.shape[1] + 1, device=words.device)
        end = int(((words != self.padding_id) * position).max()) + self.widest
        return words[:, :end], end <= words.shape[1]


# Words that a processor encodes at a time: more leave its caches and are cut to a longer word (256 measured best of
# 128, 256 and 512 with small).
CPU_CHUNK_SIZE = 256
# The last of several chunks has a multiple of so many words: oneDNN compiles a product for each number of rows that it
# meets, and keeps a thousand.
CPU_ROWS = 32
# A GPU takes so many times the configured number, for its memory is large, and small chunks leave it idle.
GPU_CHUNKS = 8
PLAIN_MODULES = {ElmoWordEncoder, ElmoHighway, nn.Conv1d, nn.Embedding, nn.Linear, nn.ModuleList, Linear}


def device_of(table: nn.Embedding, words: Tensor) -> torch.device:
    """Where words are looked up: those on the host may belong to a GPU. Where weights are offloaded, it is as it is."""
    return words.device if table.weight.is_meta else table.weight.device


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its weights say: an adapter, a hook or a parametrisation may do more."""
    return type(module) in PLAIN_MODULES and not is_hooked(module)
