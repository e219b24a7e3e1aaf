"""The vocabulary of the language model: how it is read, checked, and made from counts. Beside it the dictionaries of
models that spell words by them."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from transformers.utils import logging

logger = logging.get_logger(__name__)

PAD, UNK, BOS, EOS = SPECIAL_TOKENS = ("<PAD>", "<UNK>", "<S>", "</S>")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(len(SPECIAL_TOKENS))
REQUIRED = [BOS, EOS, UNK]
# The legacy vocabulary of the One Billion Word corpus ends with this line, which stands for no word.
END_OF_LEGACY_VOCABULARY = "!!!MAXTERMID"


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    """The words of a file in UTF-8, one a line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return words_of(file.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def words_of(text: str) -> list[str]:
    """The lines of a vocabulary without white space around them, as bilm-tf read it. Only line feeds end a line: words
    may contain U+2028 and other separators."""
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    return [line for line in lines if line != END_OF_LEGACY_VOCABULARY]


def last_lines_count(words: Sequence[str]) -> dict[int, str]:
    """For words on several lines, of which the last one counts in bilm-tf: new names, which no text holds, for the
    lines before, by their places."""
    last = {word: place for place, word in enumerate(words)}
    return {place: f"{word} <line {place + 1}>".strip() for place, word in enumerate(words) if last[word] != place}


def number_words(words: Sequence[str], source: str) -> dict[str, int]:
    """Each word's place in a vocabulary, which is its id.

    Raises:
        ValueError: a word twice, none of `<S>`, `</S>`, `<UNK>`, or one that cannot be a line of a file; the message
            names `source`.
        TypeError: `words` is a string.
    """
    if isinstance(words, str):
        raise TypeError("vocab must be a list of words; the path of a file is vocab_file")
    ids = {word: index for index, word in enumerate(words)}
    if len(ids) < len(words):
        word, count = Counter(words).most_common(1)[0]
        raise ValueError(f"{source}: the word {word!r} occurs {count} times; every word has one line")
    if missing := [token for token in REQUIRED if token not in ids]:
        raise ValueError(
            f"{source}: a vocabulary needs the words {' '.join(REQUIRED)}; missing: {' '.join(missing)}. Give each a "
            "line of its own, best at the top"
        )
    if (unwritable := next((word for word in words if word and not _is_line(word)), None)) is not None:
        raise ValueError(
            f"{source}: the word {unwritable!r} cannot be a line of a file: it contains a line break or half a "
            f"surrogate pair, has white space around it, or is {END_OF_LEGACY_VOCABULARY}"
        )
    return ids


def most_frequent_words(counts: Mapping[str, int], vocab_size: int | None, min_frequency: int) -> list[str]:
    """A vocabulary from counts, as `ElmoTokenizer.train_new_from_counts` describes it."""
    if vocab_size is not None and vocab_size < len(REQUIRED):
        raise ValueError(f"vocab_size counts {', '.join(REQUIRED)} and must be at least 3, not {vocab_size}")
    if not counts:
        raise ValueError("a vocabulary needs words, and the corpus has none")
    if unwritable := [word for word in counts if not _is_line(word)]:
        logger.warning(f"left out of the vocabulary, for they cannot be lines of a file: {unwritable[:10]}")
    left_out = {*REQUIRED, *unwritable}
    words = [word for word, count in counts.items() if count >= min_frequency and word not in left_out]
    words.sort(key=lambda word: (-counts[word], word))
    return (REQUIRED + words)[:vocab_size]


def read_dictionary(path: str | os.PathLike | None) -> dict[str, int] | None:
    """The numbers of characters or words in a JSON file; `None` without a path."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:  # both of UTF-8 and of JSON
        raise ValueError(f"{path} is no JSON object of words and their numbers: {error}") from error
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise ValueError(f"{path} is no JSON object of words and their numbers")
    return content


def _is_line(word: str) -> bool:
    """Whether a file keeps the word."""
    if word in ("", END_OF_LEGACY_VOCABULARY) or "\n" in word or "\r" in word or word != word.strip():
        return False
    return word.isascii() or not any("\ud800" <= character <= "\udfff" for character in word)
