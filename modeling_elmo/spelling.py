"""How a model spells words: by their bytes, as Peters et al. 2018, or by dictionaries, as ELMoForManyLangs.

A spelling turns words into rows of ids, with 0 for the mask, and back. Both kinds have the same methods, so the
tokenizer need not know which one it has.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .char_rows import BEGIN_OF_SENTENCE, BEGIN_OF_WORD, END_OF_SENTENCE, END_OF_WORD, NUM_CHARACTERS, PADDING

# Entries of the dictionaries that stand for no character and no word of a text.
BOS, EOS, OOV, PAD = DICTIONARY_SPECIALS = ("<bos>", "<eos>", "<oov>", "<pad>")
# The original looks the two up under each other's names, so "<eow>" is what its words begin with.
BOW, EOW = "<eow>", "<bow>"
UNKNOWN = "\ufffd"


def check_words(words: Sequence[str]):
    """Raise a `TypeError` if `words` is a string, or one of its items is no string."""
    if isinstance(words, str):
        raise TypeError(f"expected a list of words, got the string {words[:40]!r}: put it into a list")
    for position, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"every word must be a string, but word {position} is {word!r} ({type(word).__name__})")


class ByteSpelling:
    """A word is a row of its UTF-8 bytes between two boundaries: `char_rows` says how.

    Attributes:
        row_length: ids of a word.
        dtype: of rows.
        boundaries: what begin and end of a sentence have in place 1.
    """

    dtype = np.uint16
    boundaries = BEGIN_OF_SENTENCE, END_OF_SENTENCE

    def __init__(self, max_word_length: int):
        self.row_length = self.max_word_length = max_word_length

    def boundary(self, which: int) -> np.ndarray:
        """The row of a sentence's begin (0) or end (1), (row_length,)."""
        row = np.full(self.row_length, PADDING, self.dtype)
        row[:3] = BEGIN_OF_WORD, self.boundaries[which], END_OF_WORD
        return row

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """(words, row_length). No string is special: `<S>` is a word of three characters.

        Of each word the first `max_word_length - 2` bytes count; like the original, the cut may fall inside a character
        of several bytes.
        """
        num_bytes = self.max_word_length - 2
        cut = [word[:num_bytes] for word in self._utf8(words)]
        lengths = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))  # (words,)
        characters = np.array(cut, dtype=f"S{num_bytes}").view(np.uint8).reshape(-1, num_bytes)  # (words, num_bytes)

        rows = np.full((len(cut), self.row_length), PADDING, self.dtype)
        rows[:, 0] = BEGIN_OF_WORD
        # The lengths, not the zeros behind a word, say where it ends: a word may contain the byte 0.
        within = np.arange(num_bytes) < lengths[:, None]  # (words, num_bytes)
        rows[:, 1:-1] = np.where(within, characters + np.uint16(1), np.uint16(PADDING))
        rows[np.arange(len(cut)), lengths + 1] = END_OF_WORD
        return rows

    def is_truncated(self, words: Sequence[str]) -> np.ndarray:
        """Which words are longer than a row and lose the rest, boolean array (words,)."""
        return np.array([len(word) > self.max_word_length - 2 for word in self._utf8(words)], dtype=bool)

    def words(self, rows: np.ndarray) -> list[str]:
        """What the rows (words, row_length) spell, U+FFFD for bytes that are no UTF-8; that of special rows means
        nothing.

        Raises:
            ValueError: an id that no character has.
        """
        if rows.size and not 0 <= rows.min() <= rows.max() < NUM_CHARACTERS:
            raise ValueError(f"character ids lie in [0, {NUM_CHARACTERS - 1}], not in [{rows.min()}, {rows.max()}]")
        ends = (rows == END_OF_WORD).argmax(axis=1)  # (words,)
        characters = (rows - 1).astype(np.uint8)  # (words, row_length)
        return [row[1:end].tobytes().decode("utf-8", "replace") for row, end in zip(characters, ends, strict=True)]

    @staticmethod
    def _utf8(words: Sequence[str]) -> list[bytes]:
        """The bytes of each word; a lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
        check_words(words)
        return [word.encode("utf-8", "replace") for word in words]


class DictionarySpelling:
    """A word is a row of the ids of its Unicode characters, and behind them its own id if there is a word dictionary.

    Every id is stored one higher than in the dictionaries, so that 0 is the mask.

    Args:
        char_vocab: characters and the symbols `<bow>`, `<eow>`, `<bos>`, `<eos>`, `<oov>`, `<pad>`, numbered from 0.
        word_vocab: words and `<bos>`, `<eos>`, `<oov>`, `<pad>`, numbered from 0; `None` if the model reads
            characters only.
        max_word_length: character ids of a word, its two boundaries included.

    Raises:
        ValueError: a dictionary that lacks a symbol, or does not number its entries from 0.
    """

    dtype = np.int32

    def __init__(self, char_vocab: Mapping[str, int], word_vocab: Mapping[str, int] | None, max_word_length: int):
        self.max_word_length = max_word_length
        self.row_length = max_word_length + (word_vocab is not None)
        self._chars = _shifted("char_vocab", char_vocab, (BOW, EOW, *DICTIONARY_SPECIALS))
        self._symbols = {index: symbol if len(symbol) == 1 else UNKNOWN for symbol, index in self._chars.items()}
        self.boundaries = self._chars[BOS], self._chars[EOS]
        self._words = None
        if word_vocab is not None:
            words = _shifted("word_vocab", word_vocab, DICTIONARY_SPECIALS)
            self._boundary_words = words[BOS], words[EOS]
            self._unknown_word = words[OOV]
            self._words = {word: index for word, index in words.items() if word not in DICTIONARY_SPECIALS}

    def boundary(self, which: int) -> np.ndarray:
        """The row of a sentence's begin (0) or end (1), (row_length,)."""
        row = np.full(self.row_length, self._chars[PAD], self.dtype)
        row[:3] = self._chars[BOW], self.boundaries[which], self._chars[EOW]
        if self._words is not None:
            row[-1] = self._boundary_words[which]
        return row

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """(words, row_length). No string is special: a typed `<bos>` is a word of five characters."""
        check_words(words)
        rows = np.full((len(words), self.row_length), self._chars[PAD], self.dtype)
        rows[:, 0] = self._chars[BOW]
        unknown = self._chars[OOV]
        for row, word in zip(rows, words, strict=True):
            word = word[: self.max_word_length - 2]
            row[1 : len(word) + 1] = [self._chars.get(character, unknown) for character in word]
            row[len(word) + 1] = self._chars[EOW]
            if self._words is not None:
                row[-1] = self._words.get(word, self._unknown_word)  # also of the cut word, as in the original
        return rows

    def is_truncated(self, words: Sequence[str]) -> np.ndarray:
        """Which words are longer than a row and lose the rest, boolean array (words,)."""
        check_words(words)
        return np.array([len(word) > self.max_word_length - 2 for word in words], dtype=bool)

    def words(self, rows: np.ndarray) -> list[str]:
        """What the rows (words, row_length) spell, U+FFFD for unknown characters; that of special rows means nothing.

        Raises:
            ValueError: an id that no character has.
        """
        ends = (rows == self._chars[EOW]).argmax(axis=1).tolist()  # (words,)
        try:
            return [
                "".join(self._symbols[index] for index in row[1:end])
                for row, end in zip(rows.tolist(), ends, strict=True)
            ]
        except KeyError as error:
            raise ValueError(f"character ids lie in [1, {len(self._chars)}], but there is {error}") from None


def _shifted(name: str, vocab: Mapping[str, int], symbols: Sequence[str]) -> dict[str, int]:
    if missing := [symbol for symbol in symbols if symbol not in vocab]:
        raise ValueError(f"{name} lacks {' '.join(missing)}: it is not the dictionary of an ELMo")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"{name} must number its {len(vocab)} entries from 0, each with a number of its own")
    return {entry: index + 1 for entry, index in vocab.items()}


Spelling = ByteSpelling | DictionarySpelling


def special_rows(rows: np.ndarray, spelling: Spelling) -> np.ndarray:
    """Which of the rows (words, row_length) are sentence boundaries or padding, boolean array (words,)."""
    return (rows[:, 0] == 0) | np.isin(rows[:, 1], spelling.boundaries)
