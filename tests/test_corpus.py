"""Tokenised text on disk against plain lists of words."""

import errno
import itertools
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from modeling_elmo import ElmoTokenizer, corpus
from modeling_elmo.corpus import HELD_OUT, TRAIN, Corpus, open_or_write, write_corpus
from modeling_elmo.text_files import DataError, ReadingReport

TEXT = ["a b c a", "", "b  b d", "   ", "é " + "long" * 20, "a", "c d e f g"]


def words_in(line: str) -> list[list[str]]:
    return [line.split()]


@pytest.fixture
def write(tmp_path):
    """Tokenises lines, split at white space or as told, into a new folder."""

    def write_lines(lines, split=words_in, report=None, **more) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_corpus(folder, lines, split, ElmoTokenizer(), report or ReadingReport(), **more)
        return folder

    return write_lines


def types_of(part: Corpus) -> list[str]:
    return [word for some in part.types() for word in some]


def sentences_of(part: Corpus) -> list[list[str]]:
    types, starts = types_of(part), part.starts(0, part.num_sentences).tolist()
    return [[types[i] for i in part.words([a], [b])] for a, b in itertools.pairwise(starts)]


def random_lines(number: int, words: int) -> list[str]:
    """Lines of words of which a few are frequent and many are rare."""
    rng = np.random.default_rng(1)
    return [" ".join(f"w{i}" for i in (rng.pareto(0.4, 6) * 3).astype(int) % words) for _ in range(number)]


# --- what is written is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["this one", "Windows"])
def test_a_corpus_is_the_plain_list_of_its_words(write, system, monkeypatch):
    if system == "Windows":
        monkeypatch.delattr("os.pread", raising=False)
    part = Corpus(write(TEXT))
    expected = [line.split() for line in TEXT if line.split()]
    words = [word for sentence in expected for word in sentence]
    assert sentences_of(part) == expected
    assert types_of(part) == list(dict.fromkeys(words))
    assert dict(zip(types_of(part), part.counts().tolist(), strict=True)) == Counter(words)
    assert (part.num_sentences, part.num_tokens, part.num_types) == (5, 15, 9)
    assert (part.num_predictions, part.bos, part.eos) == (20, 9, 10)
    assert part.sizes == {"sentences": 5, "tokens": 15, "types": 9, "truncated": 1}
    assert Corpus(write([*TEXT, "long" * 20])).sizes["truncated"] == 2, "as often as it occurs"
    assert part.starts(0, 5).tolist() == [0, 4, 7, 9, 10, 15] and part.starts(2, 3).tolist() == [7, 9]
    assert part.words([4], [7]).tolist() == [1, 1, 3] and len(part.words([3], [3])) == 0
    tokenizer = ElmoTokenizer()
    rows = [*tokenizer.encode_words(types_of(part)), tokenizer.bos_row, tokenizer.eos_row]
    np.testing.assert_array_equal(part.rows(), rows)
    assert not part.has_repeated_types


def test_files_are_written_in_blocks_and_types_in_lists_of_bounded_length(write, monkeypatch):
    lines = random_lines(200, 1000)
    whole = write(lines, hold_out_every=7)
    monkeypatch.setattr(corpus, "WORDS_AT_ONCE", 10)
    monkeypatch.setattr(corpus, "TYPES_AT_ONCE", 3)
    blocks = write(lines, hold_out_every=7)
    files = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file()]
    assert len(files) == 9
    for file in files:
        assert (whole / file).read_bytes() == (blocks / file).read_bytes(), file
    assert {len(some) for some in list(Corpus(blocks).types())[:-1]} == {3}


@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_every_so_many_sentences_are_held_out_with_the_types_of_all(write, every):
    folder = write(TEXT, hold_out_every=every)
    sentences = [line.split() for line in TEXT if line.split()]
    train, held = Corpus(folder, TRAIN), Corpus(folder, HELD_OUT)
    assert sentences_of(held) == sentences[every - 1 :: every]
    assert sentences_of(train) == [words for at, words in enumerate(sentences) if (at + 1) % every]
    assert types_of(train) == types_of(held) == types_of(Corpus(write(TEXT)))
    for part in (train, held):
        counts = Counter(word for words in sentences_of(part) for word in words)
        assert part.frequent_words(1, None) == counts
        assert part.counts().tolist() == [counts[word] for word in types_of(part)]
        assert part.sizes["types"] == len(counts)


def test_words_that_are_held_out_only_are_no_words_of_the_training_text(write):
    assert Corpus(write(["a", "b"], hold_out_every=2)).frequent_words(0, None) == {"a": 1}


def test_nothing_is_held_out_if_not_asked(write):
    with pytest.raises(DataError, match="held_out"):
        Corpus(write(TEXT), HELD_OUT)


@pytest.mark.parametrize("lines", [[], ["", " ", "\t"]])
def test_an_empty_text_is_an_empty_corpus(write, lines):
    part = Corpus(write(lines))
    assert (part.num_sentences, part.num_tokens, part.num_types, part.num_predictions) == (0, 0, 0, 0)
    assert part.rows().shape == (2, 50) and list(part.types()) == [] and part.frequent_words(1, None) == {}
    assert part.starts(0, 0).tolist() == [0]


def test_what_is_met_while_reading_is_kept(write):
    report = ReadingReport()

    def lines():
        yield "a"
        report.lines, report.control_characters, report.long_lines = 7, 3, 1

    assert Corpus(write(lines(), report=report)).report == ReadingReport(lines=7, control_characters=3, long_lines=1)


def test_a_line_may_have_several_sentences(write):
    part = Corpus(write(["a b|c||d", "e"], split=lambda line: [some.split() for some in line.split("|")]))
    assert sentences_of(part) == [["a", "b"], ["c"], ["d"], ["e"]]


# --- more words than are remembered -----------------------------------------------------------------------------------


def test_a_forgotten_word_that_comes_again_has_a_second_id(write):
    lines = ["a a b", "a a c", "b", "a b"]
    part = Corpus(write(lines, max_indexed_types=2))  # of a, b and c, with counts 4, 1 and 1, a and one other stay
    assert part.has_repeated_types and types_of(part)[:3] == ["a", "b", "c"]
    assert sentences_of(part) == [line.split() for line in lines]
    assert Corpus(write(["a b", "c d e f", "f a"], max_indexed_types=1)).frequent_words(1, None)["a"] == 2
    assert not Corpus(write(["a b c", "c b a"], max_indexed_types=3)).has_repeated_types, "not more than these"


@pytest.mark.parametrize("limit", [1, 10, 50, 300])
@pytest.mark.parametrize("share_limit", [30, 10_000])
@pytest.mark.parametrize("most", [None, 40])
def test_thinning_changes_ids_only(write, monkeypatch, limit, share_limit, most):
    monkeypatch.setattr(corpus, "MAX_INDEXED_TYPES", share_limit)
    lines = random_lines(400, 3000)
    thinned, plain = (
        Corpus(write(lines, max_indexed_types=some, hold_out_every=9), HELD_OUT) for some in (limit, 10**6)
    )
    assert thinned.has_repeated_types and not plain.has_repeated_types
    assert len(set(types_of(thinned))) < thinned.num_types
    for part in (TRAIN, HELD_OUT):
        one, other = Corpus(thinned.folder, part), Corpus(plain.folder, part)
        assert sentences_of(one) == sentences_of(other)
        counts = Counter(word for words in sentences_of(one) for word in words)
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        assert sorted(one.frequent_words(1, most).items(), key=lambda item: (-item[1], item[0])) == best
        assert one.frequent_words(1, most) == other.frequent_words(1, most)
        assert one.frequent_words(3, most) == {word: count for word, count in best if count >= 3}
        assert one.sizes["tokens"] == other.sizes["tokens"] and one.sizes["truncated"] == other.sizes["truncated"]
    assert one.rows().shape == (one.num_types + 2, 50)
    np.testing.assert_array_equal(one.rows()[:-2], ElmoTokenizer().encode_words(types_of(one)))


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_never_more_than_the_limit_and_one_line_is_remembered(write, monkeypatch, limit):
    sizes = []

    class Watched(corpus._Index):
        def __setitem__(self, word, index):
            super().__setitem__(word, index)
            sizes.append(len(self))

    monkeypatch.setattr(corpus, "_Index", Watched)
    write(random_lines(300, 3000), max_indexed_types=limit)
    assert limit < max(sizes) <= limit + 6  # words of a line


def test_the_frequent_words_are_those_that_are_remembered(write):
    lines = ["the the the"] + [f"the rare{i}" for i in range(500)]
    assert types_of(Corpus(write(lines, max_indexed_types=10))).count("the") == 1


def test_a_vocabulary_is_the_same_with_thinning(write):
    lines = random_lines(300, 2000)
    for size, frequency in [(None, 1), (50, 1), (None, 3), (4, 2)]:
        vocabularies = []
        for limit in (5, 10**6):
            counts = Corpus(write(lines, max_indexed_types=limit)).frequent_words(frequency, size and size + 3)
            vocabularies.append(ElmoTokenizer().train_new_from_counts(counts, size, frequency).lm_vocab)
        assert vocabularies[0] == vocabularies[1] and len(vocabularies[0]) == (size or len(vocabularies[0]))


# --- words of any characters ------------------------------------------------------------------------------------------

ODD = ["\u2028", "\u0085", "\x00", "\x1c", "\x0b", "\r", "\ud800", "\u3000", "\u200b", "\ufeff", "<S>", "😀", ""]


def test_any_word_without_a_line_feed_keeps_its_line(write):
    words = [f"x{odd}y" for odd in ODD] + ODD
    part = Corpus(write([words, words[::-1]], split=lambda line: [line]))
    assert sentences_of(part) == [words, words[::-1]] and part.num_types == len(set(words))
    assert part.frequent_words(1, None) == dict.fromkeys(words, 2)


def test_odd_words_are_shared_out(write, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_INDEXED_TYPES", 3)
    part = Corpus(write([ODD] * 3, split=lambda line: [[word] for word in line], max_indexed_types=1))
    assert part.frequent_words(1, None) == dict.fromkeys(ODD, 3)


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd])
def test_what_the_splitters_let_through_stays_aligned(write, odd):
    line = f"before x{odd}y {odd} after"
    for split in (str.split, ElmoTokenizer().split_words):
        part = Corpus(write([line, "after"], split=lambda line, split=split: [split(line)]))
        assert sentences_of(part) == [split(line), ["after"]]


# --- kept between runs ------------------------------------------------------------------------------------------------


def test_another_layout_is_another_corpus(monkeypatch):
    assert corpus.key_of(a=1, b=2) == corpus.key_of(b=2, a=1) != corpus.key_of(a=2, b=1)
    before = corpus.key_of(content="same")
    monkeypatch.setattr(corpus, "FORMAT", corpus.FORMAT + 1)
    assert corpus.key_of(content="same") != before


def test_a_corpus_is_written_once(write, tmp_path):
    calls = []

    def fill(folder: Path):
        calls.append(folder)
        write_corpus(folder, TEXT, words_in, ElmoTokenizer(), ReadingReport())

    folder = tmp_path / "deep/cache/key"
    assert open_or_write(folder, fill) == open_or_write(folder, fill) == folder
    assert len(calls) == 1 and calls[0] != folder
    assert sentences_of(Corpus(folder))[0] == ["a", "b", "c", "a"]
    assert {file.name for file in folder.parent.iterdir()} <= {"key", "key.lock"}


def test_a_corpus_is_opened_where_nothing_may_be_written(write, monkeypatch):
    folder = write(TEXT)
    monkeypatch.setattr(corpus, "FileLock", lambda name: pytest.fail("locked"))
    assert open_or_write(folder, lambda _: pytest.fail("written")) == folder


def test_two_at_once_write_once(tmp_path):
    calls, found = [], []
    meeting = threading.Barrier(2)

    def fill(folder: Path):
        calls.append(folder)
        threading.Event().wait(0.2)  # long enough for the other to come to the lock
        write_corpus(folder, TEXT, words_in, ElmoTokenizer(), ReadingReport())

    def work():
        meeting.wait()
        found.append(Corpus(open_or_write(tmp_path / "key", fill)).num_tokens)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and found == [15, 15]


@pytest.mark.parametrize("error", [DataError("no text"), KeyboardInterrupt()])
def test_nothing_half_done_is_left(tmp_path, error):
    def fill(folder: Path):
        (folder / "words.bin").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        open_or_write(tmp_path / "key", fill)
    assert {file.name for file in tmp_path.iterdir()} <= {"key.lock"}


def test_what_a_killed_process_left_is_no_corpus_and_goes(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key/words.bin").write_bytes(b"old")
    names = []

    def fill(folder: Path):
        names.append(folder)
        if len(names) == 1:
            raise SystemExit  # its folder is put back below, as if it had been killed
        assert list(folder.iterdir()) == []
        write_corpus(folder, TEXT, words_in, ElmoTokenizer(), ReadingReport())

    with pytest.raises(SystemExit):
        open_or_write(tmp_path / "key", fill)
    names[0].mkdir()
    (names[0] / "train").mkdir()
    assert Corpus(open_or_write(tmp_path / "key", fill)).num_tokens == 15
    assert {file.name for file in tmp_path.iterdir()} <= {"key", "key.lock"}


def test_a_full_disk_is_told_with_the_way_out(tmp_path):
    def fill(folder: Path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be kept in .*No space left.*--data_cache_dir"):
        open_or_write(tmp_path / "key", fill)
    assert {file.name for file in tmp_path.iterdir()} <= {"key.lock"}


def test_a_file_in_the_place_of_the_cache_is_told(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="--data_cache_dir"):
        open_or_write(tmp_path / "cache/key", lambda _: None)


FILES = ["train/words.bin", "train/starts.bin", "train/counts.bin", "rows.bin", "types.txt", "corpus.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_corpus_names_its_folder(write, name):
    folder = write(TEXT)
    file = folder / name
    if name != "corpus.json":
        file.write_bytes((content := file.read_bytes()) + b"\n")
        with pytest.raises(DataError, match="delete that folder"):
            Corpus(folder)
        file.write_bytes(content)
    file.write_bytes(file.read_bytes()[:-1])
    if name == "corpus.json":
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError) as caught:
        Corpus(folder)
    assert str(folder) in str(caught.value) and "delete that folder" in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="delete that folder"):
        Corpus(folder)


def test_facts_that_contradict_the_files_are_damage(write):
    """Else characters, say, would be read with another width, without a word."""
    file = write(TEXT) / "corpus.json"
    text = file.read_text()
    facts = json.loads(text)
    damaged = [{**facts, name: value} for name, value in {"max_word_length": 10, "types": 3, "bytes": []}.items()]
    damaged += [{**facts, "parts": {TRAIN: value}} for value in ({**facts["parts"][TRAIN], "sentences": 999}, "x")]
    for content in (*map(json.dumps, damaged), 100_000 * "["):
        file.write_text(content)
        with pytest.raises(DataError, match="delete that folder"):
            Corpus(file.parent)
    file.write_text(text)
    Corpus(file.parent)
