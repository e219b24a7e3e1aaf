"""The Rust tokenizer inside `ElmoTokenizer`: it splits texts into words, cuts and pairs them, and knows where each word
came from. Its ids only tell special tokens from words."""

import itertools
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing

from .vocabulary import BOS, BOS_ID, EOS, EOS_ID, SPECIAL_TOKENS, UNK_ID

# Longer texts are split into words in pieces: the regular expression gives up on a word of ten million characters, and
# the Rust tokenizer needs some 200 bytes a character.
MAX_CHARACTERS = 2**16
# On one letter, as in Unicode's stream-safe text (UAX 15).
MAX_MARKS = 30
# White space as Rust understands it; Python's includes the ASCII separators. Behind a letter or digit first: whether a
# dot or hyphen belongs to its word depends on what follows.
WHITE_SPACE = re.compile(r"(?<=\w)[^\S\x1c-\x1f]"), re.compile(r"[^\S\x1c-\x1f]")


def new_backend() -> Tokenizer:
    """One that keeps each word whole and puts `<S>` and `</S>` around texts; how it splits is set afterwards."""
    # A Unigram model keeps an unknown word whole, as it is, and every word is unknown to this one. The positive score
    # makes several unknown characters worth more than one special token, so none is ever found in a text.
    backend = Tokenizer(Unigram([(token, 100.0) for token in SPECIAL_TOKENS], unk_id=UNK_ID))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS}:0 $A:0 {EOS}:0 {BOS}:1 $B:1 {EOS}:1",
        special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)],
    )
    return backend


def splitter_for_call(backend: Tokenizer, is_split_into_words: bool) -> Tokenizer:
    """
    A Rust tokenizer for one call. It shares its parts with the backend, which takes a microsecond, so truncation and
    padding can be set on it without touching what other threads use or what is saved.
    """
    splitter = Tokenizer(backend.model)
    splitter.post_processor = backend.post_processor
    if not is_split_into_words:
        splitter.normalizer = backend.normalizer
        splitter.pre_tokenizer = backend.pre_tokenizer
        # Tokens that the user added stay whole. The four of ours are left out, so that typing one is no trick.
        added = [token for index, token in backend.get_added_tokens_decoder().items() if index > EOS_ID]
        if added:
            splitter.add_tokens(added)
    return splitter


def encode_examples(
    splitter: Tokenizer, examples: list[tuple], add_special_tokens: bool, is_split_into_words: bool, overflow: bool
) -> tuple[list[Encoding], list[int]]:
    """The encodings of all examples, overflowing parts behind their first part, and the example each belongs to.

    Raises:
        ValueError: parts that overlap by more than they hold; a word on which the pre-tokenizer gives up.
    """
    if is_split_into_words:
        # Rust drops empty words, so they go as a space; `given_words` has them as they were.
        examples = [tuple([word or " " for word in words] for words in example) for example in examples]
    try:
        batch = splitter.encode_batch(
            [example if len(example) == 2 else example[0] for example in examples],
            is_pretokenized=is_split_into_words,
            add_special_tokens=add_special_tokens,
        )
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, and no Exception
            raise
        if "Regex" in str(error):
            raise ValueError(
                "the pre-tokenizer's regular expression gave up on a word ('ptb' does from some ten million characters "
                "on): split the text by split_words, and pass its words with is_split_into_words=True"
            ) from error
        if splitter.truncation is None:
            raise
        raise ValueError(
            "stride={stride} is not smaller than what max_length={max_length} leaves for a text beside its boundaries "
            "and the other text of a pair: lower stride or raise max_length".format(**splitter.truncation)
        ) from error
    parts = [
        (sample, part)
        for sample, first in enumerate(batch)
        for part in [first, *(first.overflowing if overflow else [])]
    ]
    return [part for _, part in parts], [sample for sample, _ in parts]


def given_words(encoding: Encoding, example: tuple[list[str], ...]) -> Iterator[str]:
    """The words of an example at the positions of its encoding; at special positions the special token."""
    for sequence, word, token in zip(encoding.sequence_ids, encoding.word_ids, encoding.tokens, strict=True):
        yield token if word is None or sequence is None else example[sequence][word]


def offsets_as_given(encoding: Encoding, example: tuple, normalizer: Any) -> list[tuple[int, int]]:
    """Where each token of a normalised text stands in the text as it was given, or of a list of words in its word.

    The library forgets what a normalizer composed with the letter before: accents, vowel signs, parts of Hangul. An
    empty word went there as a space.
    """
    found = []
    columns = zip(encoding.sequence_ids, encoding.word_ids, encoding.tokens, encoding.offsets, strict=True)
    for sequence, word, token, (start, end) in columns:
        if sequence is not None and word is not None:
            if isinstance(example[sequence], str):
                end = _behind_composed(example[sequence], start, end, token, normalizer)
            else:
                start, end = 0, len(example[sequence][word])
        found.append((start, end))
    return found


def _behind_composed(text: str, start: int, end: int, token: str, normalizer: Any) -> int:
    marks = list(itertools.takewhile(_may_be_composed, text[end : end + MAX_MARKS]))
    for stop in range(end + len(marks), end, -1):
        if normalizer.normalize_str(text[start:stop]) == token:
            return stop
    return end


def _may_be_composed(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"  # vowels and finals of Hangul


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most `MAX_CHARACTERS`, cut before white space; within a word if it has none."""
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        end = _last_white_space(text, start + 1, start + MAX_CHARACTERS) or start + MAX_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def _last_white_space(text: str, start: int, end: int) -> int | None:
    for pattern in WHITE_SPACE:
        for match in deque(pattern.finditer(text, start, end), maxlen=1):
            return match.start()
    return None


def as_examples(
    text: Any, text_pair: Any, is_split_into_words: bool, check: Callable[[Any], Any]
) -> tuple[list[tuple], bool]:
    """What a call was given as examples, each a tuple of one or two texts or lists of words, and whether it was a
    batch. `check` is `checked_text`, or `checked_words` where texts are split."""
    is_batch = _is_list(text) and (not is_split_into_words or (len(text) > 0 and _is_list(text[0])))
    if not is_batch:
        return [(check(text),) if text_pair is None else (check(text), check(text_pair))], False
    if text_pair is not None:
        if not _is_list(text_pair) or len(text_pair) != len(text):
            raise ValueError("text is a batch, so text_pair must be a list of the same length")
        return [(check(first), check(second)) for first, second in zip(text, text_pair, strict=True)], True

    def is_pair(item: Any) -> bool:
        return _is_list(item) and len(item) == 2 and all(_is_list(part) == is_split_into_words for part in item)

    return [tuple(map(check, item)) if is_pair(item) else (check(item),) for item in text], True


def checked_text(text: Any) -> str:
    """The text as Rust can hold it; a `TypeError` for what is no string."""
    if not isinstance(text, str):
        hint = " (for lists of words set is_split_into_words=True)" if _is_list(text) else ""
        raise TypeError(f"every text must be a string, got {type(text).__name__}: {str(text)[:60]}{hint}")
    return _without_surrogates(text)


def checked_words(words: Any, normalizer: Any = None) -> list[str]:
    """The words as Rust can hold them, normalised; a `TypeError` for what is no list of strings."""
    if not _is_list(words):
        raise TypeError(
            "with is_split_into_words=True every sentence must be a list of words, got "
            f"{type(words).__name__}: {str(words)[:60]}"
        )
    for position, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"every word must be a string, but word {position} is {type(word).__name__}: {word!r}")
    clean = [_without_surrogates(word) for word in words]
    return clean if normalizer is None else [normalizer.normalize_str(word) for word in clean]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _without_surrogates(text: str) -> str:
    """Rust strings are UTF-8. The question mark is one character too, so offsets stay right."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
