"""ElmoTokenizer: words, rows, batches, vocabulary, and what other people's code expects of a tokenizer."""

import copy
import gzip
import json
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import run_elsewhere
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo.rust_splitter import MAX_CHARACTERS
from modeling_elmo.spelling import ByteSpelling
from modeling_elmo.tokenization_elmo import ElmoTokenizer
from modeling_elmo.vocabulary import last_lines_count

VOCAB = ["<S>", "</S>", "<UNK>", "the", "cat", ",", "a\u2028b", "c\u0085d", "n't"]
ODD_WORDS = [
    *[
        "",
        " ",
        "a b",
        "\x00",
        "a\x00",
        "\x01\x7f",
        "<PAD>",
        "<UNK>",
        "<S>",
        "</S>",
        "x<S>y",
        "don't",
        "U.S.",
        "\n",
        "\u2028",
    ],
    *[
        "\u00e9",
        "e\u0301",
        "\u4e2d\u6587",
        "\U0001f468\u200d\U0001f469",
        "\ufeff",
        "\u200b",
        "x" * 48,
        "x" * 49,
        "\u4e2d" * 17,
    ],
    *["y" * 10_000, "\u0434" * 24 + "\u0434", "\ud800", "a\udfffb", "\U0010ffff"],
]


@pytest.fixture(scope="module")
def tokenizer() -> ElmoTokenizer:
    return ElmoTokenizer(vocab=VOCAB)


def slow_row(word: str, length: int = 50) -> list[int]:
    """The format of section 1 of the design, one character after the other, independent of the code under test."""
    data = b"".join(b"?" if 0xD800 <= ord(c) <= 0xDFFF else c.encode("utf-8") for c in word)[: length - 2]
    row = [258, *data, 259]
    return [number + 1 for number in row + [260] * (length - len(row))]


def boundary(character: int, length: int = 50) -> list[int]:
    return [number + 1 for number in [258, character, 259] + [260] * (length - 3)]


BOS_ROW, EOS_ROW, PAD_ROW = boundary(256), boundary(257), [0] * 50


def random_words(seed: int, number: int) -> list[str]:
    generator = random.Random(seed)
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xD800, 0xDFFF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return [
        "".join(chr(generator.randint(*generator.choice(planes))) for _ in range(generator.randint(0, 30)))
        for _ in range(number)
    ]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 4, 20, 50])
def test_rows_follow_the_format(length):
    words = ODD_WORDS + random_words(length, 300)
    rows = ByteSpelling(length).rows(words)
    assert rows.dtype == np.uint16 and rows.shape == (len(words), length)
    assert rows.tolist() == [slow_row(word, length) for word in words]


@pytest.mark.parametrize("length", [2, 2**16 + 1, 10**30, True, 50.0, "50", None, [50]], ids=repr)
def test_impossible_lengths_of_words_are_refused(length):
    with pytest.raises(ValueError, match=r"max_word_length must be an integer from 3, .*, to 65536, not"):
        ElmoTokenizer(max_word_length=length)


def test_rows_of_no_words(tokenizer):
    assert tokenizer.encode_words([]).shape == (0, 50)


def test_boundary_rows(tokenizer):
    assert tokenizer.bos_row.tolist() == BOS_ROW
    assert tokenizer.eos_row.tolist() == EOS_ROW
    assert tokenizer.bos_row.dtype == np.uint16


def test_rows_spell_their_words():
    words = [word for word in random_words(1, 300) if len(word.encode("utf-8", "replace")) <= 48]
    readable = [word.encode("utf-8", "replace").decode() for word in words]
    spelling = ByteSpelling(50)
    assert spelling.words(spelling.rows(words)) == readable


def test_truncation_of_words_is_reported(tokenizer):
    words = ["x" * 48, "x" * 49, "\u4e2d" * 16, "\u4e2d" * 17, ""]
    assert tokenizer.is_truncated(words).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("words, message", [("word", "list of words"), (["a", None], "word 1"), ([3], "word 0")])
def test_encode_words_refuses_what_is_no_list_of_words(tokenizer, words, message):
    with pytest.raises(TypeError, match=message):
        tokenizer.encode_words(words)


def test_rows_are_made_quickly(tokenizer):
    words = [f"word{number}" for number in range(100_000)]
    start = time.process_time()
    tokenizer.encode_words(words)
    assert time.process_time() - start < 1.0  # about 0.05 s


# --- raw text ---------------------------------------------------------------------------------------------------------

SPLITS = {
    "I don't think it's theirs; they're here.": "I do n't think it 's theirs ; they 're here .",
    "I'll can't WON'T shouldn't've I'd cannot": "I 'll ca n't WO N'T should n't 've I 'd cannot",
    "don\u2019t it\u2019s O\u2019Neill": "do n\u2019t it \u2019s O\u2019Neill",
    "He said 3.14 and 1,000 at 10:30, .5 or -5": "He said 3.14 and 1,000 at 10:30 , .5 or -5",
    "In the U.S. today... Mr. Smith and J. Smith -- gone.": "In the U.S. today ... Mr. Smith and J. Smith -- gone .",
    "This is it. That is Acme Inc.": "This is it . That is Acme Inc .",
    "a U.S.-based, well-known 10-year-old; a--b": "a U.S.-based , well-known 10-year-old ; a -- b",
    'Is (this) [really] {"so"}?!': 'Is ( this ) [ really ] { " so " } ? !',
    "5% of $4.50 or \u20ac3": "5 % of $ 4.50 or \u20ac 3",
    "me@x.co.uk, https://a.b/c?d=1, www.x.org.": "me@x.co.uk , https://a.b/c?d=1 , www.x.org .",
    "dogs' tails, AT&T and/or '90s": "dogs ' tails , AT&T and/or '90s",
    "\u043d\u0435\u0442, \u0434\u0430!": "\u043d\u0435\u0442 , \u0434\u0430 !",
    "\u4e2d\u6587\uff0c\u6d4b\u8bd5\u3002": "\u4e2d\u6587 \uff0c \u6d4b\u8bd5 \u3002",
    "\u0928\u092e\u0938\u094d\u0924\u0947\u0964 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645": (
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0964 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    ),
    "e\u0301te\u0301 \U0001f44d\U0001f3fd!": "e\u0301te\u0301 \U0001f44d\U0001f3fd !",
    "e\u0301va@e\u0301te\u0301.re\u0301seau.fr.": "e\u0301va@e\u0301te\u0301.re\u0301seau.fr .",
    "the <S> and <PAD> </S>": "the <S> and <PAD> </S>",
}
TOKENISED = [
    "`` It 's n't so , '' he said -LRB- twice -RRB- ... 'll 've 'd 're 'm",
    "The U.S. Mr. Smith -- 3.14 % , $ 1,000 -- ca n't .",
]


@pytest.mark.parametrize("text, words", SPLITS.items())
def test_penn_treebank_words(tokenizer, text, words):
    assert tokenizer.split_words(text) == words.split(" ")
    assert tokenizer.tokenize(text) == words.split(" ")


@pytest.mark.parametrize("text", [*SPLITS.values(), *TOKENISED])
def test_tokenised_text_stays_as_it_is(tokenizer, text):
    assert tokenizer.split_words(text) == text.split(" ")


def test_no_character_of_a_text_is_lost(tokenizer):
    for text in random_words(2, 300):
        kept = "".join(tokenizer.split_words(text)).translate(dict.fromkeys(map(ord, "\u200b\ufeff")))
        visible = "".join(text.encode("utf-8", "replace").decode().split())
        # str.split also takes the four information separators for white space; Unicode, and so the pattern, do not.
        assert "".join(kept.split()).translate(dict.fromkeys(range(0x1C, 0x20))) == visible.translate(
            dict.fromkeys([*range(0x1C, 0x20), 0x200B, 0xFEFF])
        )


@pytest.mark.parametrize("text", ["%" * 20_000, "a." * 10_000, "a@" * 10_000, "http://" + ")" * 20_000, "n't" * 10_000])
def test_strange_texts_take_no_strange_time(tokenizer, text):
    start = time.process_time()
    tokenizer.split_words(text)
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("space", ["\n", "\t", "\u00a0", "\u3000", " "], ids=repr)
def test_long_texts_are_split_as_short_ones(tokenizer, space):
    """They are split in pieces; what follows a dot or a hyphen decides whether it is a part of the word."""
    sentence = [
        "Mr.",
        "Smith",
        "met",
        "J.",
        "Doe",
        "in",
        "the",
        "U.S.",
        "pre-",
        "and",
        "postwar",
        "years",
        ";",
        "No.",
        "5",
    ]
    text = space.join(sentence * 3000)
    assert len(text) > 2 * MAX_CHARACTERS
    assert tokenizer.split_words(text) == sentence * 3000
    assert list(map(len, tokenizer.split_words("x" * (MAX_CHARACTERS + 1)))) == [MAX_CHARACTERS, 1]


def test_whitespace_and_other_pre_tokenizers(tmp_path):
    spaces = ElmoTokenizer(pre_tokenizer="whitespace")
    assert spaces.tokenize(" I don't\tknow. ") == ["I", "don't", "know."]
    spaces.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("|")
    assert spaces.tokenize("a b|c") == ["a b", "c"]
    spaces.save_pretrained(tmp_path)
    assert ElmoTokenizer.from_pretrained(tmp_path).tokenize("a b|c") == ["a b", "c"]
    assert ElmoTokenizer.from_pretrained(tmp_path, pre_tokenizer="ptb").tokenize("a b|c") == ["a", "b", "|", "c"]
    given = ElmoTokenizer(pre_tokenizer=pre_tokenizers.Whitespace())
    assert given.tokenize("a-b") == ["a", "-", "b"]
    with pytest.raises(ValueError, match="ptb, whitespace, characters, not 'moses'"):
        ElmoTokenizer(pre_tokenizer="moses")


def test_each_character_is_a_word(tmp_path):
    ElmoTokenizer(pre_tokenizer="characters").save_pretrained(tmp_path)
    tokenizer = ElmoTokenizer.from_pretrained(tmp_path)
    for text in ("SEQWENCE", "\u4e0b\u96e8\u4e86\u3002", "-Xx*", "e\u0301\U0001d11e"):
        assert tokenizer.tokenize(text) == tokenizer.split_words(text) == list(text)
    wrapped = tokenizer(" SEQ\nWEN\tCE ", return_offsets_mapping=True)  # as in files of sequences
    given = tokenizer(list("SEQWENCE"), is_split_into_words=True)
    assert wrapped["input_ids"] == given["input_ids"]
    assert wrapped["offset_mapping"][1:-1] == [(n, n + 1) for n in (1, 2, 3, 5, 6, 7, 9, 10)]
    assert len(tokenizer.split_words("M" * (MAX_CHARACTERS + 1))) == MAX_CHARACTERS + 1


def test_offsets_refer_to_the_raw_text(tokenizer):
    text = "Caf\u00e9s don\u2019t  \ud800open\u2026"
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert [text[start:end] for start, end in encoding["offset_mapping"]] == [
        *["Caf\u00e9s", "do", "n\u2019t", "\ud800", "open", "\u2026"]
    ]
    assert encoding.char_to_token(text.index("open")) == 4


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_sentence_and_pair(tokenizer):
    one = tokenizer("The cat")
    assert one["input_ids"] == [BOS_ROW, slow_row("The"), slow_row("cat"), EOS_ROW]
    assert one["attention_mask"] == [1, 1, 1, 1] and one["token_type_ids"] == [0, 0, 0, 0]
    pair = tokenizer("The cat", "a")
    assert pair["input_ids"] == one["input_ids"] + [BOS_ROW, slow_row("a"), EOS_ROW]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert pair.sequence_ids() == [None, 0, 0, None, None, 1, None]
    assert tokenizer([("The cat", "a")])["input_ids"] == [pair["input_ids"]]
    assert tokenizer(["The cat"], ["a"])["input_ids"] == [pair["input_ids"]]
    split = tokenizer([(["The", "cat"], ["a"])], is_split_into_words=True)
    assert split["input_ids"] == [pair["input_ids"]]
    assert list(one) == ["input_ids", "token_type_ids", "attention_mask"]


def test_a_given_word_is_one_row(tokenizer):
    words = ODD_WORDS + random_words(3, 200)
    encoding = tokenizer(words, is_split_into_words=True)
    assert encoding["input_ids"] == [BOS_ROW, *map(slow_row, words), EOS_ROW]
    assert encoding.word_ids() == [None, *range(len(words)), None]


def test_typed_special_tokens_are_words(tokenizer):
    encoding = tokenizer("<S> <PAD> x", padding="max_length", max_length=7, return_special_tokens_mask=True)
    expected = [BOS_ROW, slow_row("<S>"), slow_row("<PAD>"), slow_row("x"), EOS_ROW, PAD_ROW, PAD_ROW]
    assert encoding["input_ids"] == expected
    assert encoding["attention_mask"] == [1, 1, 1, 1, 1, 0, 0]
    assert encoding["special_tokens_mask"] == [1, 0, 0, 0, 1, 1, 1]
    assert tokenizer.get_special_tokens_mask(expected, already_has_special_tokens=True) == [1, 0, 0, 0, 1, 1, 1]
    assert tokenizer.get_special_tokens_mask([7, 7], [7]) == [1, 0, 0, 1, 1, 0, 1]
    plain = ElmoTokenizer(pre_tokenizer="whitespace")
    plain.add_tokens(["[e]"])
    assert plain.tokenize("a</S>b[e]<S>") == ["a</S>b", "[e]", "<S>"]


def test_truncation_stride_and_overflow(tokenizer):
    assert list(map(len, tokenizer(["a b c d", "e"], truncation=True, max_length=4)["input_ids"])) == [4, 3]
    words = ["a", "b", "c", "d", "e", "f", "g"]
    encoding = tokenizer(
        [words], is_split_into_words=True, truncation=True, max_length=5, stride=1, return_overflowing_tokens=True
    )
    parts = [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert encoding["overflow_to_sample_mapping"] == [0, 0, 0]
    assert encoding["input_ids"] == [[BOS_ROW, *(slow_row(words[index]) for index in part), EOS_ROW] for part in parts]
    assert [encoding.word_ids(number)[1:-1] for number in range(3)] == parts
    left = copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    assert left.decode(left("a b c d", truncation=True, max_length=4)["input_ids"]) == "<S> c d </S>"
    question = tokenizer(
        "who ?", "a b c d e", truncation="only_second", max_length=9, stride=1, return_overflowing_tokens=True,
        return_offsets_mapping=True, padding="max_length", return_tensors="np",
    )  # fmt: skip
    assert question["input_ids"].shape == (2, 9, 50) and question["offset_mapping"].shape == (2, 9, 2)
    assert tokenizer.decode(question["input_ids"], True) == ["who ? a b c", "who ? c d e"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_while_encoding(tokenizer, side):
    batch = tokenizer(["a b", "a"], padding=True, padding_side=side, pad_to_multiple_of=8, return_tensors="np")
    assert batch["input_ids"].shape == (2, 8, 50) and batch["input_ids"].dtype == np.int64
    order = slice(None) if side == "right" else slice(None, None, -1)
    assert batch["attention_mask"][:, order].tolist() == [[1] * 4 + [0] * 4, [1] * 3 + [0] * 5]
    kept = batch["attention_mask"].astype(bool)
    assert not batch["input_ids"][~kept].any()
    assert batch["input_ids"][1][kept[1]].tolist() == [BOS_ROW, slow_row("a"), EOS_ROW]
    assert batch.word_ids(1)[order].count(None) == 7
    assert len(tokenizer(["a"], padding=True, truncation=True, max_length=9)["input_ids"][0]) == 3, (
        "as the longest text"
    )


def test_kinds_of_results(tokenizer):
    lists = tokenizer(["a b", "c d"], return_length=True)
    assert lists["length"] == [4, 4]
    for kind, array in (("np", np.ndarray), ("pt", torch.Tensor)):
        tensors = tokenizer(["a b", "c d"], return_tensors=kind)
        assert all(isinstance(value, array) for value in tensors.values())
        assert tensors["input_ids"].tolist() == lists["input_ids"]
    assert tensors["input_ids"].dtype == torch.int64
    assert tokenizer("a", return_tensors="pt")["input_ids"].shape == (1, 3, 50)
    assert tokenizer.encode("a") == [BOS_ROW, slow_row("a"), EOS_ROW]
    repeated = tokenizer("a a")["input_ids"]
    repeated[1][0] = -1
    assert repeated[2] == slow_row("a")  # rows are not shared
    with pytest.raises(ValueError, match="padding"):
        tokenizer(["a", "a b"], return_tensors="pt")


def test_empty_input(tokenizer):
    for kind in ("np", "pt"):
        assert tokenizer(["", " \t"], add_special_tokens=False, return_tensors=kind)["input_ids"].shape == (2, 0, 50)
        assert tokenizer([], return_tensors=kind)["input_ids"].shape == (0, 0, 50)
    assert tokenizer([])["input_ids"] == []
    assert tokenizer("")["input_ids"] == [BOS_ROW, EOS_ROW]
    assert tokenizer([[], []], is_split_into_words=True)["attention_mask"] == [[1, 1], [1, 1]]
    assert tokenizer.split_words(" \n") == []
    assert tokenizer.pad({"input_ids": [[], []]}, return_tensors="pt")["input_ids"].shape == (2, 0, 50)


@pytest.mark.parametrize(
    "text, split, message",
    [
        ("a b", True, "list of words, got str"),
        (["a", ["b"]], True, "word 1 is list"),
        ([["a"], "b c"], True, "list of words, got str"),
        ([["a"], None], True, "list of words, got NoneType"),
        (["a", None], True, "word 1 is NoneType"),
        ([["a", 3]], True, "word 1 is int"),
        (["a", None], False, "string, got NoneType"),
        ([["a", "b", "c"]], False, "is_split_into_words=True"),
        (3, False, "string, got int"),
        (b"a", False, "string, got bytes"),
    ],
)
def test_bad_input_is_named(tokenizer, text, split, message):
    with pytest.raises(TypeError, match=message):
        tokenizer(text, is_split_into_words=split)


def test_pairs_of_unequal_batches(tokenizer):
    with pytest.raises(ValueError, match="same length"):
        tokenizer(["a", "b"], ["c"])


@pytest.mark.parametrize("pre_tokenizer", ["ptb", "whitespace"])
@pytest.mark.parametrize(
    "normalizer", [normalizers.NFC(), normalizers.NFKC(), normalizers.NFD(), normalizers.StripAccents()], ids=repr
)
def test_offsets_hold_what_a_normalizer_composed(normalizer, pre_tokenizer):
    tokenizer = ElmoTokenizer(pre_tokenizer=pre_tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizer
    assert tokenizer("cafe\u0301 x", return_offsets_mapping=True)["offset_mapping"] == [(0, 0), (0, 5), (6, 7), (0, 0)]
    rng, characters = random.Random(0), "aeUx .'-\u0301\u0308\u0323\u0302\u0327\u1100\u1161\u11a8\u09c7\u09be"
    texts = ["".join(rng.choices(characters, k=rng.randint(1, 14))) for _ in range(300)]
    texts = [*texts, "e" + "\u0301" * 5000, "-" + "\u0301" * 5000]
    encoding = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    for number, text in enumerate(texts):
        for token, (start, end) in zip(encoding.tokens(number), encoding["offset_mapping"][number], strict=True):
            assert normalizer.normalize_str(text[start:end]) == token
    windows = tokenizer(
        "a", "e\u0301 cafe\u0301 o\u0308", return_offsets_mapping=True, truncation="only_second", max_length=6,
        return_overflowing_tokens=True,
    )  # fmt: skip
    assert [row[4] for row in windows["offset_mapping"]] == [(0, 2), (3, 8), (9, 11)]


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=repr)
def test_offsets_in_given_words_count_in_the_words_as_given(normalizer):
    tokenizer = ElmoTokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    words = ["cafe\u0301", "", "e\u0301"]
    encoding = tokenizer([words], is_split_into_words=True, return_offsets_mapping=True, add_special_tokens=False)
    assert encoding["offset_mapping"] == [[(0, 5), (0, 0), (0, 2)]]


def test_normalizers_and_added_tokens(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("x", "")])
    assert changed.decode(changed("ABX c")["input_ids"], True) == "ab c"
    split = changed(["AB", "X", "c"], is_split_into_words=True)
    assert split["input_ids"][1:-1] == [slow_row("ab"), slow_row(""), slow_row("c")]
    counted = changed.train_new_from_iterator([["AB", "ab"], ["X"]], is_split_into_words=True)
    assert counted.lm_vocab == ["<S>", "</S>", "<UNK>", "ab"], "words as they are looked up"
    changed.add_tokens(["[e 1]"])
    assert changed.tokenize("see [e 1]!") == ["see", "[e 1]", "!"]
    assert len(changed(["a[e 1]b"], is_split_into_words=True)["input_ids"]) == 3


def test_encoding_is_quick(tokenizer):
    texts = [f"It isn't number {number}, is it?" for number in range(2_000)]
    start = time.process_time()
    tokenizer(texts)
    assert time.process_time() - start < 2.0  # about 0.15 s for 20,000 words


# --- padding of encoded sentences -------------------------------------------------------------------------------------


def examples_of(tokenizer, kind=None):
    texts = ["the cat", "", "the dog , the cat"]
    examples = [dict(tokenizer(text, return_lm_labels=True)) for text in texts]
    convert = {"np": np.array, "pt": torch.tensor, None: list}[kind]
    return [{key: convert(value) for key, value in example.items()} for example in examples]


@pytest.mark.parametrize("kind", [None, "np", "pt"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_equals_padding_while_encoding(tokenizer, kind, side):
    texts = ["the cat", "", "the dog , the cat"]
    expected = tokenizer(texts, padding=True, padding_side=side, pad_to_multiple_of=4, return_lm_labels=True)
    padded = tokenizer.pad(examples_of(tokenizer, kind), padding_side=side, pad_to_multiple_of=4)
    assert isinstance(padded["input_ids"], {"np": np.ndarray, "pt": torch.Tensor, None: list}[kind])
    for key in ("input_ids", "token_type_ids", "attention_mask", "labels"):
        value = padded[key] if kind is None else padded[key].tolist()
        assert value == expected[key], key
    assert expected["labels"][1].count(-100) == 6
    tensors = tokenizer.pad(examples_of(tokenizer, kind), return_tensors="pt")
    assert tensors["input_ids"].shape == (3, 7, 50) and tensors["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("kind", [None, "np", "pt"])
def test_pad_one_example(tokenizer, kind):
    example = examples_of(tokenizer, kind)[0]
    del example["attention_mask"]
    padded = tokenizer.pad(example, padding="max_length", max_length=6)
    assert np.shape(padded["input_ids"]) == (6, 50)
    assert list(padded["attention_mask"]) == [1, 1, 1, 1, 0, 0]
    assert list(tokenizer.pad(example)["attention_mask"]) == [1, 1, 1, 1]


def test_pad_small_integers_and_refusals(tokenizer):
    rows = [tokenizer.encode_words(["a", "b"]), tokenizer.encode_words(["c"])]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"][1].tolist() == [slow_row("c"), PAD_ROW]
    for options in ({"padding": False, "pad_to_multiple_of": 8}, {"padding": "max_length", "max_length": 1}):
        for side in ("left", "right"):
            padded = tokenizer.pad({"input_ids": rows}, padding_side=side, **options)["input_ids"]
            assert [sentence.tolist() for sentence in padded] == [sentence.tolist() for sentence in rows]
    assert tokenizer.pad({"input_ids": []})["input_ids"] == []
    masked = tokenizer.pad({"input_ids": rows, "attention_mask": [[1, 0], [1]]}, return_tensors="np")
    assert masked["attention_mask"].tolist() == [[1, 0], [1, 0]]
    with pytest.raises(ValueError, match=r"\(50,\)"):
        tokenizer.pad({"input_ids": [[[1] * 40]]})
    with pytest.raises(ValueError, match="axes"):
        tokenizer.pad({"input_ids": [1, 2, 3]})
    with pytest.raises(ValueError, match="input_ids"):
        tokenizer.pad([{"attention_mask": [1]}])
    with pytest.raises(ValueError, match="padding"):
        tokenizer.pad(examples_of(tokenizer), padding=False, return_tensors="pt")


def test_a_text_longer_than_the_model_takes_is_told():
    with CaptureLogger(logging.get_logger("transformers.tokenization_utils_base")) as captured:
        ElmoTokenizer(model_max_length=4)("a b")
        assert not captured.out
        ElmoTokenizer(model_max_length=3)("a b")
    assert "(4 > 3)" in captured.out


def test_stock_collators(tokenizer):
    examples = [{**tokenizer(text), "label": number} for number, text in enumerate(["a b", "c"])]
    batch = DataCollatorWithPadding(tokenizer)(examples)
    assert batch["input_ids"].shape == (2, 4, 50) and batch["labels"].tolist() == [0, 1]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    tagged = [{**tokenizer(text), "labels": [-100, *[3] * len(text.split()), -100]} for text in ("a b", "c")]
    for kind in ("pt", "np"):
        batch = DataCollatorForTokenClassification(tokenizer, return_tensors=kind)(copy.deepcopy(tagged))
        assert batch["input_ids"].shape == (2, 4, 50)
        assert batch["labels"].tolist() == [[-100, 3, 3, -100], [-100, 3, -100, -100]]
    same = [dict(tokenizer("a b")), dict(tokenizer("c d"))]
    assert default_data_collator(same)["input_ids"].shape == (2, 4, 50)


def test_padding_is_quick(tokenizer):
    lists = [dict(tokenizer([f"w{n}" for n in range(126)], is_split_into_words=True)) for _ in range(32)]
    arrays = [{key: np.array(value) for key, value in example.items()} for example in lists]

    def seconds(examples):
        times = []
        for _ in range(3):
            start = time.process_time()
            tokenizer.pad(examples, return_tensors="pt")
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(lists) < 0.06  # about 0.01 s; the inherited method takes 0.1 s
    assert seconds(arrays) < 0.02  # about 0.001 s


# --- vocabulary -------------------------------------------------------------------------------------------------------


def test_lm_ids_and_labels(tokenizer):
    assert tokenizer.lm_vocab == VOCAB and tokenizer.lm_vocab_size == len(VOCAB)
    ids = tokenizer.lm_ids(["the", "dog", "<S>", "</S>", "<UNK>", "a\u2028b", ""])
    assert ids.dtype == np.int64 and ids.tolist() == [3, 2, 2, 2, 2, 6, 2]
    with pytest.raises(TypeError, match="expected a list of words, got the string 'the cat': put it into a list"):
        tokenizer.lm_ids("the cat")
    assert tokenizer("the <S> dog", return_lm_labels=True)["labels"] == [0, 3, 2, 2, 1]
    batch = tokenizer(["the cat", "cat"], padding=True, return_tensors="pt", return_lm_labels=True)
    assert batch["labels"].tolist() == [[0, 3, 4, 1], [0, 4, 1, -100]] and batch["labels"].dtype == torch.int64


def test_other_positions_of_the_special_words():
    words = ["the", "<UNK>", "</S>", "<S>"]
    assert ElmoTokenizer(vocab=words)("the x", return_lm_labels=True)["labels"] == [3, 0, 1, 2]


def test_without_vocabulary(tmp_path):
    bare = ElmoTokenizer()
    assert bare.lm_vocab == [] and bare.lm_vocab_size == 0
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        bare.lm_ids(["a"])
    with pytest.raises(ValueError, match="train_new_from_iterator"):
        bare("a", return_lm_labels=True)
    bare.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    assert ElmoTokenizer.from_pretrained(tmp_path).lm_vocab_size == 0


def test_white_space_around_a_word_is_none_of_it(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("<S> \n</S>\t\n<UNK>\r\nthe \nthe\u2028dog\n", encoding="utf-8", newline="")
    assert ElmoTokenizer(vocab_file=path).lm_vocab == ["<S>", "</S>", "<UNK>", "the", "the\u2028dog"]
    with pytest.raises(ValueError, match=r"'the ' cannot be a line of a file: .* has white space around it"):
        ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", "the "])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<S>\n</S>\nthe\n", "missing: <UNK>"),
        (b"the\n", "missing: <S> </S> <UNK>"),
        (b"<S>\n</S>\n<UNK>\nthe\nthe\n", "'the' occurs 2 times"),
        (b"<S>\n</S>\n<UNK>\n\xff\n", "not UTF-8"),
        (b"<S>\n</S>\n<UNK>\na\rb\n", r"'a\\rb' cannot be a line of a file"),
    ],
)
def test_bad_vocabulary_files_are_named(tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        ElmoTokenizer(vocab_file=path)
    assert "words.txt" in str(error.value)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[1]", b'{"a": 1.0}', b'{"a": true}'])
def test_bad_dictionaries_are_named(tmp_path, content):
    (tmp_path / "chars.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"chars\.json is no JSON object of words and their numbers"):
        ElmoTokenizer(char_vocab_file=tmp_path / "chars.json")


@pytest.mark.parametrize(
    ("texts", "max_length", "truncation"), [(["a b c d e f"], 4, True), (["a b", "a b c d e f"], 8, "only_second")]
)
def test_a_stride_that_leaves_no_room_is_an_error(tokenizer, texts, max_length, truncation):
    """Rust panics there, which no `except Exception` catches."""
    arguments = {"truncation": truncation, "max_length": max_length, "return_overflowing_tokens": True}
    assert len(tokenizer(*texts, stride=1, **arguments)["input_ids"]) == 5
    with pytest.raises(ValueError, match="lower stride or raise max_length"):
        tokenizer(*texts, stride=2, **arguments)


@pytest.mark.parametrize("options", [{}, {"truncation": True, "max_length": 5}])
def test_a_word_on_which_the_regular_expression_gives_up_is_an_error(options):
    """As that of "ptb" does on ten million letters; Rust panics there, too."""
    pattern = pre_tokenizers.Split(Regex("(a+)+b"), "isolated")  # of which 64 letters are enough
    with pytest.raises(ValueError, match=r"gave up on a word .* split the text by split_words, and pass its words"):
        ElmoTokenizer(pre_tokenizer=pattern)("a" * 64, **options)


@pytest.mark.parametrize("word", ["!!!MAXTERMID", "a\ud800", "\udfffa", "a\rb"])
def test_words_that_a_file_would_not_keep(word):
    with pytest.raises(ValueError, match="cannot be a line of a file"):
        ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", word, "b"])
    assert ElmoTokenizer().train_new_from_counts({word: 2, "b": 1}).lm_vocab[3:] == ["b"]


def test_line_ends_of_vocabulary_files(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("<S>\r\n</S>\r\n<UNK>\r\na\u2028b\r\n!!!MAXTERMID\r\n".encode("utf-8-sig"))
    assert ElmoTokenizer(vocab_file=path).lm_vocab == ["<S>", "</S>", "<UNK>", "a\u2028b"]
    path.write_bytes(b"<S>\n</S>\n<UNK>\n\n")
    assert ElmoTokenizer(vocab_file=path).lm_vocab == ["<S>", "</S>", "<UNK>", ""]  # a line, and so a row
    with pytest.raises(ValueError, match="line break"):
        ElmoTokenizer(vocab=[*VOCAB, "a\nb"])
    with pytest.raises(TypeError, match="vocab_file"):
        ElmoTokenizer(vocab="vocab.txt")


def test_words_of_earlier_lines_get_names_that_a_vocabulary_may_have():
    words, renamed = ["", *VOCAB, "", "the"], {0: "<line 1>", 4: "the <line 5>"}
    assert words[4] == "the" and last_lines_count(words) == renamed
    new = [renamed.get(place, word) for place, word in enumerate(words)]
    assert ElmoTokenizer(vocab=new).lm_ids(["the", ""]).tolist() == [len(words) - 1, len(words) - 2]


def test_training_a_vocabulary(tokenizer):
    corpus = ["b a don't", ["c b", "a <S> a d"]]
    new = tokenizer.train_new_from_iterator(corpus)
    assert new.lm_vocab == ["<S>", "</S>", "<UNK>", "a", "b", "c", "d", "do", "n't"]
    assert tokenizer.lm_vocab == VOCAB
    assert tokenizer.train_new_from_iterator(iter(corpus), vocab_size=5).lm_vocab == new.lm_vocab[:5]
    assert tokenizer.train_new_from_iterator(corpus, vocab_size=3).lm_vocab == new.lm_vocab[:3]
    assert tokenizer.train_new_from_iterator(corpus, min_frequency=2).lm_vocab == new.lm_vocab[:5]
    sentences = [[], ["don't", "a\nb", ""], [["don't", "a b"], []]]
    split = tokenizer.train_new_from_iterator(sentences, is_split_into_words=True)
    assert split.lm_vocab == ["<S>", "</S>", "<UNK>", "don't", "a b"]
    assert tokenizer.train_new_from_counts({"x": 1, "y": 2}).lm_vocab == ["<S>", "</S>", "<UNK>", "y", "x"]
    with pytest.raises(ValueError, match="no"):
        tokenizer.train_new_from_iterator([""])
    with pytest.raises(ValueError, match="at least 3"):
        tokenizer.train_new_from_iterator(corpus, vocab_size=2)
    with pytest.raises(TypeError, match="list"):
        tokenizer.train_new_from_iterator("a text")


def test_a_trained_tokenizer_shares_nothing_with_the_one_it_was_made_from(tokenizer):
    new = tokenizer.train_new_from_counts({"x": 1})
    new.add_tokens(["New York"])
    assert new.tokenize("in New York") == ["in", "New York"]
    assert tokenizer.tokenize("in New York") == ["in", "New", "York"]


@pytest.mark.parametrize(("multiple", "width"), [(2, 4), (3, 6), (4, 4)])
def test_what_has_the_wanted_multiple_of_words_is_not_padded_further(tokenizer, multiple, width):
    examples = [tokenizer(text, return_special_tokens_mask=True) for text in ("the cat", "dog")]  # 4 and 3 words
    padded = tokenizer.pad(examples, pad_to_multiple_of=multiple, return_tensors="np")
    assert padded["input_ids"].shape[:2] == padded["attention_mask"].shape == (2, width)
    assert padded["attention_mask"].sum(1).tolist() == [4, 3]
    masks = [[1, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]]  # padding is special, too
    assert padded["special_tokens_mask"].tolist() == [mask[:width] for mask in masks]


def test_labels_of_a_text_are_not_padded_though_it_has_as_many_words(tokenizer):
    labels = [[0.5, 1.0, 0.0, 1.0], [1.0, 0.0, 0.5, 0.0]]
    texts = ["the cat", "a dog , the cat"]  # 4 words with their boundaries, and 7
    examples = [{**tokenizer(text), "labels": row} for text, row in zip(texts, labels, strict=True)]
    padded = tokenizer.pad(examples)
    assert padded["labels"] == labels and [len(row) for row in padded["attention_mask"]] == [7, 7]


def test_what_has_one_whole_number_a_word_is_padded(tokenizer):
    """Also none for a text without words, and truth values; not several a word."""
    examples = [dict(tokenizer(text, add_special_tokens=False)) for text in ("", "dog")]
    for example, mask in zip(examples, (np.zeros(0, bool), np.zeros(1, bool)), strict=True):
        example["special_tokens_mask"] = mask
    padded = tokenizer.pad(examples)
    assert padded["attention_mask"] == [[0], [1]] and padded["special_tokens_mask"] == [[1], [0]]
    pairs = [[[0, 1]] * 4, [[1, 0]] * 3]  # of labels of each word
    examples = [{**tokenizer(text), "labels": row} for text, row in zip(("a b", "a"), pairs, strict=True)]
    assert tokenizer.pad(examples)["labels"] == pairs


def test_word_inputs(tmp_path):
    tokenizer = ElmoTokenizer(vocab=VOCAB, word_inputs=True)
    batch = tokenizer(["the cat", "dog"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2], [1, 3, 2, 0]]
    assert tokenizer.decode(batch["input_ids"]) == ["<S> the cat </S>", "<S> <UNK> </S> <PAD>"]
    assert tokenizer.decode(batch["input_ids"], skip_special_tokens=True) == ["the cat", "<UNK>"]
    assert tokenizer.convert_ids_to_tokens(4) == "the" and tokenizer.decode(4) == "the"
    padded = tokenizer.pad([tokenizer("the cat"), tokenizer("dog")])
    assert padded["input_ids"] == batch["input_ids"].tolist()
    assert tokenizer.pad(tokenizer("dog"), pad_to_multiple_of=4)["input_ids"] == [1, 3, 2, 0]
    assert tokenizer("the cat", return_lm_labels=True)["labels"] == [0, 3, 4, 1]
    tokenizer.save_pretrained(tmp_path)
    assert ElmoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"] == [1, 4, 5, 2]
    with pytest.raises(ValueError, match="vocabulary"):
        ElmoTokenizer(word_inputs=True)("a")


# --- back to text -----------------------------------------------------------------------------------------------------


def test_decoding(tokenizer):
    texts = ["the caf\u00e9 \u4e2d\u6587", "<S> x"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(batch) == ["<S> the caf\u00e9 \u4e2d\u6587 </S>", "<S> <S> x </S> <PAD>"]
    assert tokenizer.batch_decode(batch.numpy(), skip_special_tokens=True) == texts
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True) == texts  # ragged lists
    assert tokenizer.decode(batch[1], skip_special_tokens=True) == texts[1]
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer(texts, padding=True)) == tokenizer.decode(batch)
    ids = tokenizer("do n't .")["input_ids"]
    assert tokenizer.decode(ids, True) == "do n't ." and tokenizer.decode(ids, True, True) == "don't."
    assert ElmoTokenizer(clean_up_tokenization_spaces=True).decode(ids, True) == "don't."
    assert tokenizer.convert_ids_to_tokens(batch[1]) == ["<S>", "<S>", "x", "</S>", "<PAD>"]
    assert tokenizer.convert_ids_to_tokens([0, 2]) == ["<PAD>", "<S>"] and tokenizer.convert_ids_to_tokens(3) == "</S>"
    assert tokenizer.convert_tokens_to_string(["a", "b"]) == "a b"
    cut = tokenizer.encode_words(["\u4e2d" * 15 + "aa\u4e2d"])  # 45 + 2 + 1 of 3 bytes
    assert tokenizer.decode(cut) == "\u4e2d" * 15 + "aa\ufffd"
    with pytest.raises(ValueError, match="character ids"):
        tokenizer.decode([[300] * 50])


def test_special_ids(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert tokenizer.model_max_length > 10**20 and len(tokenizer) == 4
    assert tokenizer.get_special_tokens_mask([], [5]) == [1, 1, 1, 0, 1]
    assert tokenizer.num_special_tokens_to_add() == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 4


# --- copies, threads, processes, files --------------------------------------------------------------------------------


def test_copies_are_equal(tokenizer):
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert other("the cat's <S>")["input_ids"] == tokenizer("the cat's <S>")["input_ids"]
        assert other.lm_ids(["the"]).tolist() == [3]


def test_threads_with_different_settings(tokenizer):
    text = "It isn't the cat, is it?"
    calls = [
        ((text,), {}),
        ((text.split(),), {"is_split_into_words": True}),
        ((text,), {"truncation": True, "max_length": 5}),
        ((text,), {"padding": "max_length", "max_length": 20}),
        (([text, "a"],), {"padding": True, "padding_side": "left"}),
    ]
    expected = [dict(tokenizer(*args, **kwargs)) for args, kwargs in calls]
    jobs = list(range(len(calls))) * 60
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: dict(tokenizer(*calls[job][0], **calls[job][1])), jobs))
    assert all(result == expected[job] for job, result in zip(jobs, results, strict=True))


def test_datasets_map_in_processes(tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets")
    from datasets.fingerprint import Hasher

    before = Hasher.hash(tokenizer)
    data = datasets.Dataset.from_dict({"text": ["the cat", "it's", "", "a b c"] * 5})
    mapped = data.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=4),
        batched=True,
        num_proc=2,
        remove_columns="text",
    )
    assert mapped[3]["input_ids"] == [BOS_ROW, slow_row("a"), slow_row("b"), EOS_ROW]
    assert DataCollatorWithPadding(tokenizer)([mapped[0], mapped[2]])["input_ids"].shape == (2, 4, 50)
    assert len(tokenizer(data["text"])["input_ids"]) == 20
    assert Hasher.hash(tokenizer) == before


def test_save_and_load(tmp_path):
    tokenizer = ElmoTokenizer(vocab=VOCAB, pre_tokenizer="whitespace", max_word_length=20, model_max_length=7)
    files = tokenizer.save_pretrained(tmp_path)
    assert {Path(file).name for file in files} == {"tokenizer_config.json", "tokenizer.json", "vocab.txt"}
    assert (tmp_path / "vocab.txt").read_bytes() == "".join(f"{word}\n" for word in VOCAB).encode()
    assert tokenizer.save_vocabulary(str(tmp_path), "mine") == (f"{tmp_path}/mine-vocab.txt",)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not any(key.startswith("vocab") or key == "lm_vocab" for key in config)
    assert config["auto_map"] == {"AutoTokenizer": ["tokenization_elmo.ElmoTokenizer", None]}
    loaded = ElmoTokenizer.from_pretrained(tmp_path)
    assert loaded.lm_vocab == VOCAB and loaded.max_word_length == 20 and loaded.model_max_length == 7
    assert loaded("it's")["input_ids"] == [boundary(256, 20), slow_row("it's", 20), boundary(257, 20)]
    (tmp_path / "tokenizer.json").write_text(
        (tmp_path / "tokenizer.json").read_text().replace("<PAD>", "[PAD]"), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="not the tokenizer of an ELMo"):
        ElmoTokenizer.from_pretrained(tmp_path)


REMOTE = """
from transformers import AutoTokenizer
folder = sys.argv[1]
for generation in range(2):
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/{generation}", trust_remote_code=True)
    tokenizer.save_pretrained(f"{folder}/{generation + 1}")
print(type(tokenizer).__name__, tokenizer.tokenize("a|b c"), tokenizer.lm_vocab_size, tokenizer.max_word_length)
"""


def test_remote_code_in_a_clean_process(tmp_path):
    tokenizer = ElmoTokenizer(vocab=VOCAB, pre_tokenizer=pre_tokenizers.CharDelimiterSplit("|"), max_word_length=20)
    tokenizer.save_pretrained(tmp_path / "0")
    assert run_elsewhere(REMOTE, tmp_path, tmp_path).split("\n")[-2] == f"ElmoTokenizer ['a', 'b c'] {len(VOCAB)} 20"
    assert ElmoTokenizer.from_pretrained(tmp_path / "2").lm_vocab == VOCAB


# --- reference data ---------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_vocabulary_and_text_of_the_original_trainer(shared):
    folder = shared / "fixtures" / "bilm_tf_brown"
    words = gzip.decompress((folder / "vocab.txt.gz").read_bytes()).decode("utf-8").split("\n")[:-1]
    tokenizer = ElmoTokenizer(vocab=words, pre_tokenizer="whitespace")
    lines = gzip.decompress((folder / "heldout.txt.gz").read_bytes()).decode("utf-8").split("\n")[:200]
    encoding = tokenizer(lines, return_lm_labels=True)
    ids = {word: index for index, word in enumerate(words)}
    for line, rows, labels in zip(lines, encoding["input_ids"], encoding["labels"], strict=True):
        assert rows == [BOS_ROW, *map(slow_row, line.split()), EOS_ROW]
        assert labels == [0, *(ids.get(word, 2) for word in line.split()), 1]


@pytest.mark.data
def test_rows_of_the_original_trainer(shared):
    with np.load(shared / "fixtures" / "bilm_tf_training" / "ref_train_full.npz") as reference:
        batches = [reference[name] for name in reference.files if name.endswith("tokens_characters")]
    assert batches
    spelling = ByteSpelling(50)
    for rows in batches:
        rows = rows.reshape(-1, 50).astype(np.int64) + 1
        special = (rows[:, 1] == 257) | (rows[:, 1] == 258)
        assert spelling.rows(spelling.words(rows[~special])).tolist() == rows[~special].tolist()
        assert {tuple(row) for row in rows[special].tolist()} <= {tuple(BOS_ROW), tuple(EOS_ROW)}


@pytest.mark.data
def test_tokenised_corpus_stays_as_it_is(shared):
    with gzip.open(shared / "data" / "pretrain" / "validation.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    tokenizer = ElmoTokenizer()
    same = [tokenizer.split_words(line) == line.split(" ") for line in lines]
    assert np.mean(same) > 0.98
