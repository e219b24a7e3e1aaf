"""From text to ELMo's input: words, their rows of characters, and their ids in the language model's vocabulary."""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Encoding
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import BatchEncoding, TokenizersBackend
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType, is_torch_tensor, to_numpy

from .char_rows import as_tensor, axes_and_leaf, is_per_word, look_up, padded
from .penn_treebank import pre_tokenizer_named
from .rust_splitter import (
    as_examples,
    checked_text,
    checked_words,
    encode_examples,
    given_words,
    new_backend,
    offsets_as_given,
    pieces,
    splitter_for_call,
)
from .spelling import ByteSpelling, DictionarySpelling, Spelling, special_rows
from .vocabulary import (
    BOS,
    BOS_ID,
    EOS,
    EOS_ID,
    PAD,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK,
    most_frequent_words,
    number_words,
    read_dictionary,
    read_vocabulary,
)

# What each column is filled up with; a column that is not here is not padded.
PADDING_VALUES = {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0, "special_tokens_mask": 1, "labels": -100}


class ElmoTokenizer(TokenizersBackend):
    r"""
    Splits text into words and makes of each word a row of its characters; carries the vocabulary of the language model.

    Everything about words (splitting, truncation, stride, pairs, offsets, `word_ids`) is done by a Rust tokenizer; only
    its ids are replaced by rows. A text becomes `<S> words </S>`, a pair `<S> first </S> <S> second </S>` with
    `token_type_ids` 0 and 1. Whether a position is special is known from how it came about, never from its text: a
    typed `<S>` is a word of three characters. Encoding changes nothing in the tokenizer, so threads may share it.

    A call takes what every tokenizer of transformers does, and with `return_lm_labels=True` gives each word's id in the
    language model's vocabulary, too. Tensors are int64: `input_ids` (texts, words, row_length), `attention_mask`,
    `token_type_ids` and `labels` (texts, words). Bytes are numbered as by Peters et al. 2018 (bilm-tf).

    Args:
        vocab_file: `vocab.txt`, the vocabulary of the language model: one word a line, UTF-8, falling frequency, with
            `<S>`, `</S>` and `<UNK>`. Optional: rows of characters need no vocabulary.
        tokenizer_file: `tokenizer.json`, the Rust tokenizer.
        vocab: The words themselves, instead of `vocab_file`.
        pre_tokenizer: How raw text is split: `"ptb"` (Penn Treebank: do n't, it 's, punctuation apart), `"whitespace"`,
            `"characters"` (each is a word, as in ELMos of proteins), or any pre-tokenizer of the tokenizers library.
            Default: that of `tokenizer_file`, else `"ptb"`.
        max_word_length: Ids per word: at most `max_word_length - 2` bytes and the two word boundaries.
        word_inputs: For models without a character CNN: `input_ids` are (batch, words), the id in the language model's
            vocabulary + 1, with 0 for padding.
        char_vocab_file: `char_vocab.json`, a JSON object of characters with their numbers from 0, for models that spell
            words by dictionaries (ELMoForManyLangs): `spelling.DictionarySpelling` says how.
        word_vocab_file: `word_vocab.json`, the same of words. `input_ids` then have one more id behind the characters.
        char_vocab: The mapping itself, instead of `char_vocab_file`.
        word_vocab: The mapping itself, instead of `word_vocab_file`.
        **kwargs: As for every tokenizer of transformers, such as `model_max_length` (default: no limit) and
            `padding_side`.

    Raises:
        TypeError: from a call, for what is no text, or no list of words with `is_split_into_words=True`.
        ValueError: a vocabulary without `<S>`, `</S>` or `<UNK>` or with a word twice; a `tokenizer_file` that is not
            one of an ElmoTokenizer; an unknown name of a pre-tokenizer; a `max_word_length` that is no integer from 3
            to 65,536.

    Example:

    ```python
    >>> tokenizer = ElmoTokenizer()
    >>> tokenizer.tokenize("I don't know.")
    ['I', 'do', "n't", 'know', '.']
    >>> tokenizer(["I don't know.", "Why?"], padding=True, return_tensors="pt")["input_ids"].shape
    torch.Size([2, 7, 50])
    ```
    """

    vocab_files_names: dict[str, str] = {  # noqa: RUF012
        "vocab_file": "vocab.txt",
        "tokenizer_file": "tokenizer.json",
        "char_vocab_file": "char_vocab.json",
        "word_vocab_file": "word_vocab.json",
    }
    model_input_names: list[str] = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        vocab: Sequence[str] | None = None,
        pre_tokenizer: str | PreTokenizer | None = None,
        max_word_length: int = 50,
        word_inputs: bool = False,
        char_vocab_file: str | os.PathLike | None = None,
        word_vocab_file: str | os.PathLike | None = None,
        char_vocab: Mapping[str, int] | None = None,
        word_vocab: Mapping[str, int] | None = None,
        **kwargs,
    ):
        if type(max_word_length) is not int or not 3 <= max_word_length <= 2**16:
            raise ValueError(
                f"max_word_length must be an integer from 3, two boundaries and a byte, to {2**16}, not "
                f"{max_word_length!r:.60}"
            )
        if tokenizer_file is not None:
            kwargs["tokenizer_file"] = str(tokenizer_file)
        elif kwargs.get("tokenizer_object") is None:
            kwargs["tokenizer_object"] = new_backend()
            pre_tokenizer = "ptb" if pre_tokenizer is None else pre_tokenizer
        for name, token in zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True):
            kwargs.setdefault(name, token)
        super().__init__(max_word_length=max_word_length, word_inputs=word_inputs, **kwargs)
        if [self.backend_tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
            raise ValueError(
                f"{tokenizer_file or 'tokenizer_object'} is not the tokenizer of an ELMo: it must number "
                f"{', '.join(SPECIAL_TOKENS)} from 0. Remove the file to start from a new one."
            )
        if isinstance(pre_tokenizer, str):
            pre_tokenizer = pre_tokenizer_named(pre_tokenizer)
        if pre_tokenizer is not None:
            self.backend_tokenizer.pre_tokenizer = pre_tokenizer

        self.max_word_length = max_word_length
        self.word_inputs = word_inputs
        self.char_vocab = read_dictionary(char_vocab_file) if char_vocab is None else char_vocab
        self.word_vocab = read_dictionary(word_vocab_file) if word_vocab is None else word_vocab
        if self.word_vocab is not None and self.char_vocab is None:
            raise ValueError("word_vocab stands beside a char_vocab; words alone are vocab with word_inputs=True")
        self.spelling: Spelling = ByteSpelling(max_word_length)
        if self.char_vocab is not None:
            self.spelling = DictionarySpelling(self.char_vocab, self.word_vocab, max_word_length)
        self.lm_vocab: list[str] = []
        if vocab is not None:
            self._set_lm_vocab(vocab, "vocab")
        elif vocab_file is not None:
            self._set_lm_vocab(read_vocabulary(vocab_file), str(vocab_file))

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs) -> dict[str, Any]:
        """Leaves `tokenizer.json` to `__init__`: the inherited method would drop its pre-tokenizer."""
        return kwargs

    # --- words and their rows ---------------------------------------------------------------------------------------

    @property
    def bos_row(self) -> np.ndarray:
        """The begin of a sentence, integer array (row_length,)."""
        return self.spelling.boundary(0)

    @property
    def eos_row(self) -> np.ndarray:
        """The end of a sentence, integer array (row_length,)."""
        return self.spelling.boundary(1)

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        """Each word as its characters, integer array (words, row_length): `max_word_length` ids, one more with a
        `word_vocab`."""
        return self.spelling.rows(words)

    def is_truncated(self, words: Sequence[str]) -> np.ndarray:
        """Which words have more than `max_word_length - 2` bytes, or characters with a `char_vocab`, and lose the rest,
        boolean array (words,)."""
        return self.spelling.is_truncated(words)

    def split_words(self, text: str) -> list[str]:
        """
        The words of a raw text, as `tokenizer(text)` sees them, without sentence boundaries; a text of any length, for
        it is cut at white space every `MAX_CHARACTERS` (2**16).
        """
        splitter = splitter_for_call(self.backend_tokenizer, is_split_into_words=False)
        return [
            word
            for piece in pieces(checked_text(text))
            for word in splitter.encode(piece, add_special_tokens=False).tokens
        ]

    # --- the vocabulary of the language model -----------------------------------------------------------------------

    @property
    def lm_vocab_size(self) -> int:
        """Words in the language model's vocabulary, special ones included; 0 without one."""
        return len(self.lm_vocab)

    def lm_ids(self, words: Sequence[str]) -> np.ndarray:
        """
        Ids in the language model's vocabulary, int64 array (words,). An unknown word has the id of `<UNK>`, and so have
        the words `<S>` and `</S>`: the true boundaries are `lm_bos_id` and `lm_eos_id`.

        Raises:
            ValueError: the tokenizer has no such vocabulary.
            TypeError: `words` is a string.
        """
        if not self.lm_vocab:
            raise ValueError(
                "this tokenizer has no language model vocabulary: pass vocab_file=, put a vocab.txt beside "
                "tokenizer.json, or make one with train_new_from_iterator"
            )
        if isinstance(words, str):
            raise TypeError(f"expected a list of words, got the string {words[:40]!r}: put it into a list")
        ids, unknown = self._lm_ids, self.lm_unk_id
        return np.fromiter((ids.get(word, unknown) for word in words), dtype=np.int64, count=len(words))

    def _set_lm_vocab(self, words: Sequence[str], source: str) -> None:
        ids = number_words(words, source)
        self.lm_vocab = list(words)
        self.lm_bos_id, self.lm_eos_id, self.lm_unk_id = (ids[token] for token in (BOS, EOS, UNK))
        self._lm_ids = ids | {BOS: self.lm_unk_id, EOS: self.lm_unk_id}

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:  # type: ignore[override]
        """Writes `vocab.txt`, `char_vocab.json` and `word_vocab.json`, as far as there are such vocabularies. Returns
        the paths written."""
        contents = {
            "vocab_file": "".join(f"{word}\n" for word in self.lm_vocab) or None,
            "char_vocab_file": None if self.char_vocab is None else json.dumps(dict(self.char_vocab)),
            "word_vocab_file": None if self.word_vocab is None else json.dumps(dict(self.word_vocab)),
        }
        paths = []
        for name, content in contents.items():
            if content is not None:
                prefix = f"{filename_prefix}-" if filename_prefix else ""
                paths.append(os.path.join(save_directory, prefix + self.vocab_files_names[name]))
                with open(paths[-1], "w", encoding="utf-8", newline="\n") as file:
                    file.write(content)
        return tuple(paths)

    def _save_pretrained(self, save_directory, file_names, legacy_format=None, filename_prefix=None):
        files = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        return files + self.save_vocabulary(save_directory, filename_prefix)

    def train_new_from_counts(
        self, counts: Mapping[str, int], vocab_size: int | None = None, min_frequency: int = 1
    ) -> "ElmoTokenizer":
        """
        A copy of this tokenizer with another language model vocabulary: `<S>`, `</S>`, `<UNK>`, then the words by
        falling frequency, words of equal frequency in the order of their code points. Words that cannot be a line of a
        file (the empty one, and those with line breaks) are left out with a warning.

        Args:
            counts: How often each word occurs.
            vocab_size: Keep at most this many words, the three special ones counted.
            min_frequency: Leave out words that occur less often.

        Raises:
            ValueError: no words at all, or a `vocab_size` below 3.
        """
        words = most_frequent_words(counts, vocab_size, min_frequency)
        new = copy.deepcopy(self)
        new._set_lm_vocab(words, "counts")
        return new

    def train_new_from_iterator(  # type: ignore[override]
        self,
        text_iterator: Iterable,
        vocab_size: int | None = None,
        min_frequency: int = 1,
        is_split_into_words: bool = False,
    ) -> "ElmoTokenizer":
        """
        A copy of this tokenizer with the language model vocabulary of a corpus, see `train_new_from_counts`.

        Args:
            text_iterator: Texts or lists of texts; with `is_split_into_words`, sentences (lists of words) or lists of
                sentences.

        Raises:
            ValueError: a corpus without words, or a `vocab_size` below 3.
            TypeError: `text_iterator` is a string, or holds something else than texts or words.
        """
        if isinstance(text_iterator, str):
            raise TypeError("text_iterator must yield texts: put a single text into a list")

        def flat() -> Iterator[Any]:
            for item in text_iterator:
                is_one = isinstance(item, str) or (is_split_into_words and (len(item) == 0 or isinstance(item[0], str)))
                yield from [item] if is_one else item

        counts: Counter[str] = Counter()
        split = self._checked_words if is_split_into_words else self.split_words
        for text in flat():
            counts.update(split(text))
        return self.train_new_from_counts(counts, vocab_size, min_frequency)

    # --- encoding ---------------------------------------------------------------------------------------------------

    def _checked_words(self, words: Any) -> list[str]:
        return checked_words(words, self.backend_tokenizer.normalizer)

    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        return_lm_labels: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        check = self._checked_words if is_split_into_words else checked_text
        examples, is_batch = as_examples(text, text_pair, is_split_into_words, check)
        splitter = splitter_for_call(self.backend_tokenizer, is_split_into_words)
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
            splitter.enable_truncation(
                max_length, stride=stride, strategy=truncation_strategy.value, direction=self.truncation_side
            )
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            splitter.enable_padding(
                direction=padding_side or self.padding_side,
                pad_id=PAD_ID,
                pad_token=PAD,
                length=max_length if padding_strategy == PaddingStrategy.MAX_LENGTH else None,
                pad_to_multiple_of=pad_to_multiple_of,
            )
        encodings, samples = encode_examples(
            splitter, examples, add_special_tokens, is_split_into_words, return_overflowing_tokens
        )
        given = [examples[sample] for sample in samples] if is_split_into_words else None
        columns = self._id_columns(encodings, given, return_lm_labels, return_tensors)
        if return_token_type_ids or (return_token_type_ids is None and "token_type_ids" in self.model_input_names):
            columns["token_type_ids"] = [encoding.type_ids for encoding in encodings]
        if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
            columns["attention_mask"] = [encoding.attention_mask for encoding in encodings]
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in encodings]
        if return_offsets_mapping:
            columns["offset_mapping"] = self._offsets(encodings, samples, (text, text_pair), is_split_into_words)
        if return_length:
            columns["length"] = [len(encoding) for encoding in encodings]
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = samples
        for encoding in encodings:
            self._eventual_warn_about_too_long_sequence(encoding.ids, max_length, verbose)

        if not is_batch and return_tensors is None and not return_overflowing_tokens:
            columns = {key: value[0] if isinstance(value[0], list) else value for key, value in columns.items()}
        return BatchEncoding(columns, encodings, tensor_type=return_tensors)

    def _offsets(
        self, encodings: list[Encoding], samples: list[int], texts: tuple[Any, Any], is_split_into_words: bool
    ) -> list[list[tuple[int, int]]]:
        normalizer = self.backend_tokenizer.normalizer
        if normalizer is None and not is_split_into_words:
            return [encoding.offsets for encoding in encodings]
        # Words as they were given, not as they were normalised.
        examples, _ = as_examples(*texts, is_split_into_words, checked_words if is_split_into_words else checked_text)
        return [
            offsets_as_given(encoding, examples[sample], normalizer)
            for encoding, sample in zip(encodings, samples, strict=True)
        ]

    def _id_columns(
        self,
        encodings: list[Encoding],
        given: list[tuple[list[str], ...]] | None,
        return_lm_labels: bool,
        tensor_type: str | TensorType | None,
    ) -> dict[str, Any]:
        """`input_ids` and `labels`, made once for each distinct word and looked up from there."""
        index: dict[str, int] = {}
        positions = []
        for number, encoding in enumerate(encodings):
            words = encoding.tokens if given is None else given_words(encoding, given[number])
            positions.append(
                [
                    token_id
                    if special and token_id <= EOS_ID
                    else index.setdefault(word, len(index) + len(SPECIAL_TOKENS))
                    for token_id, special, word in zip(encoding.ids, encoding.special_tokens_mask, words, strict=True)
                ]
            )
        distinct = list(index)
        columns: dict[str, Any] = {}
        if self.word_inputs or return_lm_labels:
            word_ids = self.lm_ids(distinct)
            specials = [PADDING_VALUES["labels"], self.lm_unk_id, self.lm_bos_id, self.lm_eos_id]
            labels = np.concatenate([specials, word_ids])  # (4 + distinct words,)
        if self.word_inputs:
            table = labels + 1
            table[PAD_ID] = 0
        else:
            shape = (len(SPECIAL_TOKENS) + len(distinct), self.spelling.row_length)
            table = np.zeros(shape, dtype=self.spelling.dtype)
            table[BOS_ID], table[EOS_ID] = self.bos_row, self.eos_row
            table[len(SPECIAL_TOKENS) :] = self.encode_words(distinct)
        columns["input_ids"] = look_up(table, positions, tensor_type)
        if return_lm_labels:
            columns["labels"] = look_up(labels, positions, tensor_type)
        return columns

    # --- padding ----------------------------------------------------------------------------------------------------

    @property
    def _sentence_axes(self) -> int:
        return 1 if self.word_inputs else 2

    def pad(
        self,
        encoded_inputs: Mapping | Sequence[Mapping],
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """
        Fills encoded sentences up to one length, as the inherited method does, but with rows of zeros and in numpy.

        `encoded_inputs` is one example, a batch, or a list of examples, of lists, arrays or tensors. Columns with one
        number per word are padded too: masks, `token_type_ids`, and `labels` (with -100, if they are whole numbers).
        """
        if isinstance(encoded_inputs, Mapping):
            columns = dict(encoded_inputs)
        else:
            keys = encoded_inputs[0] if len(encoded_inputs) > 0 else ()
            columns = {key: [example[key] for example in encoded_inputs] for key in keys}
        if "input_ids" not in columns:
            raise ValueError(f"pad needs examples with input_ids, got {list(columns)}")
        axes, leaf = axes_and_leaf(columns["input_ids"])
        if axes < self._sentence_axes:
            raise ValueError(f"input_ids of one example need {self._sentence_axes} axes, got {axes}")
        is_single = axes == self._sentence_axes
        if is_single:
            columns = {key: [value] for key, value in columns.items()}
        if return_tensors is None:
            return_tensors = "pt" if is_torch_tensor(leaf) else "np" if isinstance(leaf, np.ndarray) else None

        strategy, _, max_length, _ = self._get_padding_truncation_strategies(
            padding=padding, max_length=max_length, verbose=verbose
        )
        lengths = [len(sentence) for sentence in columns["input_ids"]]
        target = max(lengths, default=0) if strategy == PaddingStrategy.LONGEST else max_length or 0
        if pad_to_multiple_of is not None:
            target += -target % pad_to_multiple_of
        widths = lengths if strategy == PaddingStrategy.DO_NOT_PAD else [max(length, target) for length in lengths]
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        if return_attention_mask and "attention_mask" not in columns:
            columns["attention_mask"] = [np.ones(length, dtype=np.int64) for length in lengths]

        side = padding_side or self.padding_side
        for key, value in PADDING_VALUES.items():
            if key == "input_ids" or (key in columns and is_per_word(columns[key], lengths)):
                tail = (self.spelling.row_length,) if key == "input_ids" and not self.word_inputs else ()
                filled = padded(columns[key], widths, tail, value, side)
                if return_tensors is None:
                    columns[key] = [sentence.tolist() for sentence in filled]
                else:
                    columns[key] = as_tensor(filled, return_tensors) if isinstance(filled, np.ndarray) else filled
        if is_single:
            columns = {key: value[0] for key, value in columns.items()}
        return BatchEncoding(columns, tensor_type=return_tensors)

    # --- back to text -----------------------------------------------------------------------------------------------

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """
        The words of one sentence: rows (words, row_length), or with `word_inputs` ids (words,). Without
        `word_inputs` a plain id, or a list of them, is one of the Rust tokenizer: `<PAD>`, `<UNK>`, `<S>`, `</S>`.
        """
        axes, _ = axes_and_leaf(ids)
        if axes == 0 and self.word_inputs:
            return self.convert_ids_to_tokens([ids])[0]
        if axes < self._sentence_axes or len(ids) == 0:
            return super().convert_ids_to_tokens(ids, skip_special_tokens)
        ids = to_numpy(ids)
        special = self.get_special_tokens_mask(ids, already_has_special_tokens=True)
        if self.word_inputs:
            words = [self.lm_vocab[index - 1] if index else PAD for index in ids.tolist()]
        else:
            words = self.spelling.words(ids)
            boundaries = dict(zip(self.spelling.boundaries, (BOS, EOS), strict=True))
            for position in np.flatnonzero(special):
                words[position] = boundaries[int(ids[position, 1])] if ids[position, 0] else PAD
        return [word for word, skip in zip(words, special, strict=True) if not (skip and skip_special_tokens)]

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for sentence boundaries and padding, 0 for words."""
        if not already_has_special_tokens:
            masks = [[1] + [0] * len(ids) + [1] for ids in (token_ids_0, token_ids_1) if ids is not None]
            return list(chain.from_iterable(masks))
        ids = to_numpy(token_ids_0)
        if self.word_inputs:
            return np.isin(ids, [0, self.lm_bos_id + 1, self.lm_eos_id + 1]).astype(int).tolist()
        return special_rows(ids.reshape(-1, self.spelling.row_length), self.spelling).astype(int).tolist()

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text of one sentence (words, row_length), words joined by spaces, or the texts of a batch."""
        if isinstance(token_ids, Mapping):
            token_ids = token_ids["input_ids"]
        if axes_and_leaf(token_ids)[0] > self._sentence_axes and len(token_ids) > 0:
            return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in token_ids]
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens)
        text = self.convert_tokens_to_string([tokens] if isinstance(tokens, str) else tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text
