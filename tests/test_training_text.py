"""What is trained on: texts from any source against the same text in plain Python, and what users get wrong."""

import gzip
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from test_corpus import sentences_of
from tokenizers.normalizers import Lowercase

from modeling_elmo import ElmoTokenizer, training_text
from modeling_elmo.arguments import ArgumentsError, PretrainingArguments
from modeling_elmo.corpus import Corpus
from modeling_elmo.text_files import DataError
from modeling_elmo.training_text import Text, read_text

LINES = [f"the w{number % 7} don't stop. Is it {'x' * (number % 60)} b?" for number in range(120)]
SPECIALS = "<S>\n</S>\n<UNK>\n"


@pytest.fixture
def read(tmp_path):
    """`read_text` with the arguments given, and a cache of the test's own."""

    def read_with(*files: Path, **more) -> Text:
        settings = {"pre_tokenized": True, "data_cache_dir": str(tmp_path / "cache"), **more}
        arguments = PretrainingArguments(output_dir=str(tmp_path / "out"), train_file=[*map(str, files)], **settings)
        return read_text(arguments)

    return read_with


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def not_written(monkeypatch):
    """Call it where nothing may be tokenised any more."""
    return lambda: monkeypatch.setattr(training_text, "write_corpus", lambda *_, **__: pytest.fail("tokenised again"))


def all_sentences(text: Text) -> list[list[str]]:
    """The training text with the held-out sentences put back."""
    sentences, held = sentences_of(text.train), sentences_of(text.validation)
    for number, words in enumerate(held, start=1):
        sentences.insert(50 * number - 1, words)
    return sentences


# --- from text to sentences -------------------------------------------------------------------------------------------


def test_words_separated_by_spaces(read, file):
    text = read(file)
    assert all_sentences(text) == [line.split() for line in LINES]
    assert (text.train.num_sentences, text.validation.num_sentences) == (118, 2)
    assert text.tokenizer.lm_vocab[3:] == sorted(
        (counts := text.train.frequent_words(1, None)), key=lambda word: (-counts[word], word)
    )
    assert text.train_table is text.validation_table


def test_raw_text_is_split_into_sentences_and_words(read, file):
    expected = [words for n in range(120) for words in (["the", f"w{n % 7}", "do", "n't", "stop", "."], None)]
    for n in range(120):
        expected[2 * n + 1] = ["Is", "it", *["x" * (n % 60)] * bool(n % 60), "b", "?"]
    assert all_sentences(read(file, pre_tokenized=False)) == expected


def test_a_sentence_a_line_is_split_into_words(read, file):
    sentences = all_sentences(read(file, pre_tokenized=False, sentence_per_line=True))
    assert sentences[1] == ["the", "w1", "do", "n't", "stop", ".", "Is", "it", "x", "b", "?"] and len(sentences) == 120


def test_a_validation_file_leaves_the_text_whole(read, file, tmp_path):
    (tmp_path / "validation.txt").write_text("the unseen\nw1\n")
    text = read(file, validation_file=[str(tmp_path / "validation.txt")])
    assert sentences_of(text.train) == [line.split() for line in LINES]
    assert sentences_of(text.validation) == [["the", "unseen"], ["w1"]]
    names = [word for some in text.validation.types() for word in some]
    labels = dict(zip(names, text.validation_table.labels.tolist(), strict=False))
    vocabulary = text.tokenizer.lm_vocab
    assert labels == {"the": vocabulary.index("the"), "unseen": 2, "w1": vocabulary.index("w1")}


def test_tables_of_parquet(read, file, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"title": ["t"] * 120, "body": LINES, "n": range(120)}), path)
    assert all_sentences(read(path, text_column_name="body")) == all_sentences(read(file))
    assert all_sentences(read(path)) == [["t"]] * 120
    path = path.rename(tmp_path / "TABLE.PARQUET")
    assert all_sentences(read(path, text_column_name="body")) == all_sentences(read(file))
    with pytest.raises(DataError, match="has no text column 'n'"):
        read(path, text_column_name="n")


def test_a_data_set_is_the_same_as_a_stream(read, file, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    texts = [read(dataset_name=str(folder), streaming=streaming) for streaming in (False, True)]
    assert all_sentences(texts[0]) == all_sentences(texts[1]) == all_sentences(read(file))
    # Other files with the same name are another text.
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": "other words"}) + "\n" for _ in LINES))
    for streaming in (False, True):
        assert all_sentences(read(dataset_name=str(folder), streaming=streaming)) == [["other", "words"]] * 120


@pytest.mark.parametrize("streaming", [False, True])
def test_a_copied_and_touched_folder_is_the_same_text(read, file, tmp_path, not_written, streaming):
    folder, copy = tmp_path / "set", tmp_path / "copy"
    folder.mkdir()
    file.rename(folder / "train.txt")
    first = read(dataset_name=str(folder), streaming=streaming)
    shutil.copytree(folder, copy)
    os.utime((copy / "train.txt").rename(copy / "test.txt"), (0, 0))
    with pytest.raises(DataError, match="cannot be read, split 'train'"):
        read(dataset_name=str(copy), streaming=streaming)
    (copy / "test.txt").rename(copy / "train.txt")
    not_written()
    assert read(dataset_name=str(copy), streaming=streaming).train.folder == first.train.folder


# --- tokenised once ---------------------------------------------------------------------------------------------------


def test_a_second_run_tokenises_nothing(read, file, tmp_path, not_written):
    for some in ({}, {"pre_tokenized": False}, {"pre_tokenized": False, "sentence_per_line": True}):
        read(file, **some)
    first = read(file)
    file.rename(tmp_path / "renamed.txt")
    not_written()
    again = read(tmp_path / "renamed.txt", learning_rate=0.1, min_frequency=2, vocab_size=10)
    assert again.train.folder == first.train.folder and sentences_of(again.train) == sentences_of(first.train)
    read(tmp_path / "renamed.txt", pre_tokenized=False)


def test_what_matters_makes_another_folder(read, file, tmp_path):
    text = file.read_text()
    one_byte, packed, lower = tmp_path / "one_byte.txt", tmp_path / "text.txt.gz", tmp_path / "lower"
    one_byte.write_text(text.replace("w6", "w8", 1))
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    tokenizers = [ElmoTokenizer(pre_tokenizer="whitespace"), ElmoTokenizer(), ElmoTokenizer(max_word_length=20)]
    tokenizers[1].backend_tokenizer.normalizer = Lowercase()
    raw = {"pre_tokenized": False}
    runs = [(file, {}), (file, raw), (file, {**raw, "sentence_per_line": True}), (one_byte, {}), (packed, {})]
    runs.append((file, {"validation_file": [str(one_byte)]}))
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(tmp_path / f"{lower}{number}")
        runs.append((file, {**raw, "tokenizer_name": f"{lower}{number}"}))
    texts = [read(path, **some) for path, some in runs]
    assert len({text.train.folder for text in texts}) == len(runs)
    assert all_sentences(texts[4]) == all_sentences(texts[0])
    assert "Is" in texts[1].tokenizer.lm_vocab and "is" in texts[7].tokenizer.lm_vocab


def test_a_tokenizer_that_normalises_or_knows_more_words_makes_another_folder(read, file, tmp_path):
    lower, joined = ElmoTokenizer(), ElmoTokenizer()
    lower.backend_tokenizer.normalizer = Lowercase()
    joined.add_tokens(["don't stop"])
    names = {name: str(tmp_path / name) for name in ("lower", "joined")}
    lower.save_pretrained(names["lower"])
    joined.save_pretrained(names["joined"])
    plain, lowered = read(file), read(file, tokenizer_name=names["lower"])
    assert "Is" in all_sentences(plain)[0] and "is" in all_sentences(lowered)[0]
    raw = read(file, pre_tokenized=False), read(file, pre_tokenized=False, tokenizer_name=names["joined"])
    assert [all_sentences(text)[0][2:] for text in raw] == [["do", "n't", "stop", "."], ["don't stop", "."]]


@pytest.mark.parametrize("streaming", [False, True])
def test_another_split_of_a_data_set_is_another_text(read, tmp_path, streaming):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": f"of {split}"}) + "\n" + '{"text": "x"}\n' * 60)
    texts = [read(dataset_name=str(folder), dataset_split=split, streaming=streaming) for split in ("train", "test")]
    assert [all_sentences(text)[0] for text in texts] == [["of", "train"], ["of", "test"]]


def test_how_a_file_is_read_makes_another_folder(read, file, tmp_path, monkeypatch):
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr("modeling_elmo.text_files.SIGNATURES", {})  # as for a format that is not known
    some = {"validation_file": [str(file)]}
    wrong = read(packed.rename(tmp_path / "packed.txt"), **some)
    right = read((tmp_path / "packed.txt").rename(packed), **some)
    assert sentences_of(right.train) == sentences_of(right.validation) != sentences_of(wrong.train)


def test_sequences_of_fasta_files_are_another_text_than_their_lines(read, tmp_path):
    lines = tmp_path / "proteins.txt"
    lines.write_text(">P1\nS E Q\n W E N\n" * 60)
    as_lines = read(lines, pre_tokenized=True)
    as_records = read(lines.rename(tmp_path / "proteins.fasta"), pre_tokenized=True)
    assert sentences_of(as_lines.train)[:2] == [[">P1"], ["S", "E", "Q"]]
    assert sentences_of(as_records.train)[0] == ["S", "E", "QW", "E", "N"]


def test_boundaries_of_files_are_boundaries_of_lines_and_of_the_key(read, tmp_path):
    for name, text in {"a": "x y", "b": "z\n" * 60, "c": "x yz\n", "d": "z\n" * 59}.items():
        (tmp_path / name).write_text(text)
    one, other = read(tmp_path / "a", tmp_path / "b"), read(tmp_path / "c", tmp_path / "d")
    assert sentences_of(one.train)[0] == ["x", "y"] and sentences_of(other.train)[0] == ["x", "yz"]


# --- vocabularies -----------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path) -> Path:
    """<S> 150 times, b and a 100 times, c once in the training text, d once held out."""
    path = tmp_path / "counted.txt"
    lines = ["<S> b a <S> <S>"] * 49 + ["d b a"] + ["b a c <S> <S> <S>"] + ["b a"] * 50
    path.write_text("\n".join(lines[:99]) + "\n")
    return path


@pytest.mark.parametrize(
    ("settings", "vocabulary"),
    [
        ({}, ["a", "b", "c"]),
        ({"vocab_size": 5}, ["a", "b"]),
        ({"vocab_size": 4}, ["a"]),
        ({"vocab_size": 100}, ["a", "b", "c"]),
        ({"min_frequency": 2}, ["a", "b"]),
        ({"min_frequency": 2, "vocab_size": 4}, ["a"]),
    ],
)
def test_a_vocabulary_of_the_most_frequent_words(read, counted, settings, vocabulary):
    text = read(counted, **settings)
    assert text.tokenizer.lm_vocab == ["<S>", "</S>", "<UNK>", *vocabulary]
    names = [word for some in text.train.types() for word in some]
    assert text.train_table.labels[names.index("<S>")] == text.tokenizer.lm_unk_id  # a typed one is a word


def test_the_report_by_hand(read, tmp_path):
    path = tmp_path / "text.txt"
    words = ["a b", "a a", "a " + "y" * 48, "a " + "z" * 49] * 13  # the 50th, "a a", is held out
    path.write_bytes(("\n".join(words) + "\n").encode() + b"a\x01a \xff\n")
    text = read(path, vocab_size=5)
    for part in (text.train, text.validation):
        assert (part.report.lines_with_invalid_utf8, part.report.control_characters) == (1, 1)
    # Of 102 + 3 tokens a and b are known: not 13 + 13 long words and U+FFFD.
    train = {"sentences": 52, "tokens": 105, "types": 5, "unknown_rate": 27 / 105, "truncated_rate": 13 / 105}
    held = {"sentences": 1, "tokens": 2, "types": 1, "unknown_rate": 0.0, "truncated_rate": 0.0}
    assert text.report() == {"vocabulary": 5, "train": train, "validation": held}


def test_a_given_vocabulary_is_taken(read, file, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(SPECIALS + "the\nb?\n")
    ElmoTokenizer(vocab_file=vocabulary).save_pretrained(tmp_path / "tokenizer")
    for some in ("tokenizer_name", "model_name_or_path"):
        text = read(file, **{some: str(tmp_path / "tokenizer")})
        assert text.tokenizer.lm_vocab == [*SPECIALS.split(), "the", "b?"]
    text = read(file, model_name_or_path=str(tmp_path / "tokenizer"), new_vocabulary=True)
    assert "w1" in text.tokenizer.lm_vocab
    assert text.vocabulary_hash() != read(file, vocab_file=str(vocabulary)).vocabulary_hash()


def test_a_tokenizer_of_numbers_is_refused(read, file, tmp_path):
    ElmoTokenizer(vocab=[*SPECIALS.split(), "the"], word_inputs=True).save_pretrained(tmp_path / "numbers")
    with pytest.raises(ArgumentsError, match="spells by bytes only"):
        read(file, tokenizer_name=str(tmp_path / "numbers"))


@pytest.mark.parametrize("content", [SPECIALS + "the\nb?\n", "\ufeff" + SPECIALS + "the\nb?"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_vocabularies_of_windows(read, file, tmp_path, content, end):
    (tmp_path / "vocab.txt").write_bytes(content.replace("\n", end).encode())
    text = read(file, vocab_file=str(tmp_path / "vocab.txt"))
    assert text.tokenizer.lm_vocab == ["<S>", "</S>", "<UNK>", "the", "b?"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SPECIALS.encode() + b"the\nthe\n", "'the' occurs 2 times; every word has one line"),
        (b"the\n<S>\n", r"missing: </S> <UNK>. Give each a line of its own"),
        (b"", "missing: <S> </S> <UNK>"),
        (SPECIALS.encode() + b"\xe9t\xe9\n", "is not UTF-8"),
    ],
)
def test_bad_vocabularies_are_told(read, file, tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ArgumentsError, match=rf"vocab\.txt.*{message}"):
        read(file, vocab_file=str(tmp_path / "vocab.txt"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"added_tokens": []}'])
def test_a_damaged_tokenizer_is_told(read, file, tmp_path, content):
    folder = tmp_path / "tokenizer"
    ElmoTokenizer(vocab=SPECIALS.split()).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ArgumentsError, match=r"no vocabulary could be read from .*tokenizer: "):
        read(file, tokenizer_name=str(folder))


def test_two_vocabularies_are_one_too_many(read, file):
    with pytest.raises(ArgumentsError, match="give either vocab_file or tokenizer_name"):
        read(file, vocab_file="a", tokenizer_name="b")
    with pytest.raises(ArgumentsError, match="vocab_size counts <S>, </S> and <UNK>"):
        read(file, vocab_size=3)


# --- texts that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_tokenized", [True, False])
def test_a_text_without_words_is_told(read, file, tmp_path, pre_tokenized):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n\t\n" * 100)
    with pytest.raises(DataError, match=r"there are no words in .*empty\.txt: give a text"):
        read(empty, pre_tokenized=pre_tokenized)
    with pytest.raises(DataError, match=r"no words in .*empty\.txt: name another validation_file"):
        read(file, validation_file=[str(empty)], pre_tokenized=pre_tokenized)


def test_a_text_too_small_to_hold_out_is_told(read, tmp_path):
    (tmp_path / "small.txt").write_text("a\n" * 49)
    with pytest.raises(DataError, match="the text has only 49: name a validation_file"):
        read(tmp_path / "small.txt")


def test_processes_with_other_texts_are_told(read, file, monkeypatch):
    monkeypatch.setattr(training_text, "gather_object", lambda mine: [*mine, *mine, [size + 1 for size in mine[0]]])
    with pytest.raises(DataError, match="process 2 has other texts than process 0"):
        read(file)


def test_a_min_frequency_that_leaves_nothing_is_told(read, file):
    with pytest.raises(DataError, match="no word of the text occurs 1000 times: lower min_frequency"):
        read(file, min_frequency=1000)


LONG = {
    "one word": "a" * 10**7,
    "joined": "a-" * (5 * 10**6),
    "words": "ab cd " * (10**6 // 6),
    "no spaces": "中" * 10**6,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("pre_tokenized", [True, False])
def test_long_lines_need_no_patience(read, tmp_path, kind, pre_tokenized):
    """The regular expression of raw text gives up, with a panic, on a word of ten million characters."""
    (tmp_path / "long.txt").write_text(LONG[kind] + "\n" + "b\n" * 60)
    start = time.process_time()
    text = read(tmp_path / "long.txt", pre_tokenized=pre_tokenized)
    assert time.process_time() - start < 20
    sentence = sentences_of(Corpus(text.train.folder))[0]
    assert "".join(sentence) == LONG[kind].replace(" ", "")
    if kind == "words":
        assert sentence == LONG[kind].split()


def test_frequencies_are_how_often_each_word_is_predicted(read, tmp_path):
    """In one pass each direction predicts every word, forwards </S> and backwards <S> at the end of each sentence."""
    path = tmp_path / "few.txt"
    path.write_text("a b a\nb a c\n" * 50)
    text = read(path, min_frequency=80, validation_file=[str(path)])
    found = dict(zip(text.tokenizer.lm_vocab, text.frequencies().tolist(), strict=True))
    assert found == {"<S>": 50, "</S>": 50, "<UNK>": 50, "a": 150, "b": 100}
