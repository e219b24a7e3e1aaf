"""Reading text, and the lanes of truncated back-propagation."""

import gzip
from itertools import pairwise

import numpy as np
import pytest

from modeling_elmo.data import BACKWARD, FORWARD, Corpus, DataError, Lanes, ReadingReport, find_files, read_lines

SENTENCES = ["a b c", "d", "e f g h i", "j k", "l m n o"]


def corpus_of(sentences: list[str]) -> Corpus:
    return Corpus.from_lines(sentences, str.split)


def words_of(corpus: Corpus, ids: np.ndarray) -> list[str]:
    return [{len(corpus.types): "<S>", len(corpus.types) + 1: "</S>", -1: "-"}.get(i, "?") if i in
            (len(corpus.types), len(corpus.types) + 1, -1) else corpus.types[i] for i in ids]  # fmt: skip


def pairs_of(sentences: list[str], direction: int) -> list[tuple[str, str]]:
    """What a direction reads and predicts, sentence by sentence: the plain reference."""
    pairs = []
    for sentence in sentences:
        words = ["<S>", *sentence.split(), "</S>"]
        words = words[::-1] if direction == BACKWARD else words
        pairs += pairwise(words)
    return pairs


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 7])
def test_lanes_without_shuffling_read_the_whole_text_once_in_order(direction, num_lanes):
    corpus = corpus_of(SENTENCES)
    lanes = Lanes(corpus, num_lanes)
    window = lanes.window(0, lanes.steps_per_epoch)
    read = words_of(corpus, window.inputs[direction].reshape(-1))
    predicted = words_of(corpus, window.targets[direction].reshape(-1))
    pairs = [pair for pair in zip(read, predicted, strict=True) if pair[1] != "-"]
    assert pairs == pairs_of(SENTENCES, direction)
    assert len(pairs) == corpus.num_predictions == 15 + 5


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_shuffled_lanes_read_whole_sentences_in_another_order_in_each_epoch_and_direction(direction):
    corpus = corpus_of(SENTENCES)
    lanes = Lanes(corpus, 1, seed=3)
    epochs = []
    for epoch in range(6):
        window = lanes.window(epoch * lanes.steps_per_epoch, lanes.steps_per_epoch)
        read = words_of(corpus, window.inputs[direction][0])
        starts = [i for i, word in enumerate(read) if word == ("<S>" if direction == FORWARD else "</S>")]
        sentences = [read[a + 1 : b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        epochs.append([" ".join(words[::-1] if direction == BACKWARD else words) for words in sentences])
    assert all(sorted(epoch) == sorted(SENTENCES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_directions_have_orders_of_their_own():
    lanes = Lanes(corpus_of([str(i) for i in range(50)]), 1, seed=0)
    window = lanes.window(0, lanes.steps_per_epoch)
    assert window.inputs[FORWARD].tolist() != window.inputs[BACKWARD].tolist()


@pytest.mark.parametrize("steps", [1, 3, 4, 11, 50])
def test_windows_of_any_length_make_the_same_stream_across_epochs(steps):
    lanes = Lanes(corpus_of(SENTENCES), 3, seed=1)
    whole = lanes.window(0, 60)
    parts = [Lanes(corpus_of(SENTENCES), 3, seed=1).window(at, min(steps, 60 - at)) for at in range(0, 60, steps)]
    np.testing.assert_array_equal(np.concatenate([part.inputs for part in parts], axis=2), whole.inputs)
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts], axis=2), whole.targets)


def test_processes_share_the_lanes_of_one_stream():
    lanes = Lanes(corpus_of(SENTENCES), 4, seed=1)
    whole = lanes.window(5, 7)
    parts = [lanes.window(5, 7, slice(first, first + 2)) for first in (0, 2)]
    np.testing.assert_array_equal(np.concatenate([part.inputs for part in parts], axis=1), whole.inputs)


def test_each_target_is_the_next_input_within_a_sentence():
    corpus = corpus_of(SENTENCES)
    window = Lanes(corpus, 2, seed=5).window(0, 40)
    for direction, end in ((FORWARD, len(corpus.types) + 1), (BACKWARD, len(corpus.types))):
        inputs, targets = window.inputs[direction], window.targets[direction]
        inside = targets[:, :-1] != end
        epoch_end = np.arange(1, 40) % 10 == 0  # a lane's part of the next epoch may start within a sentence
        keep = inside & ~epoch_end
        assert keep.sum() > 40
        np.testing.assert_array_equal(targets[:, :-1][keep], inputs[:, 1:][keep])


def test_fewer_words_than_lanes_is_an_error():
    with pytest.raises(DataError, match="lower the batch size"):
        Lanes(corpus_of(["a b"]), 4, seed=0)


def test_files_globs_and_gz_are_read_once_and_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("two words\n\n  \nlast line without end")
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("one\r\n")
    files = find_files([str(tmp_path / "*.txt*"), str(tmp_path / "b.txt")])
    assert [name.rsplit("/", 1)[1] for name in files] == ["a.txt.gz", "b.txt"]
    report = ReadingReport()
    corpus = Corpus.from_lines(read_lines(files, report), str.split, report)
    assert [corpus.types[i] for i in corpus.words] == ["one", "two", "words", "last", "line", "without", "end"]
    assert (report.lines, report.sentences, report.tokens, report.types) == (5, 3, 7, 7)


def test_invalid_utf8_and_control_bytes_are_counted_and_reported_and_not_fatal(tmp_path):
    (tmp_path / "bad.txt").write_bytes(
        b"good \xff\xfe bytes\nnul\x00byte\x07 bell\nreal \xef\xbf\xbd replacement\n\xe2\x82 cut\nna\xc3\xafve\ttab\n"
    )
    report = ReadingReport()
    corpus = Corpus.from_lines(read_lines([str(tmp_path / "bad.txt")], report), str.split, report)
    assert report.lines_with_invalid_utf8 == 2
    assert report.invalid_utf8_sequences == 3
    assert report.control_characters == 2
    assert "nul" in corpus.types and "byte" in corpus.types and "naïve" in corpus.types and "tab" in corpus.types
    assert ["invalid UTF-8" in line for line in report.problems()] == [True, False]
    assert "control characters" in report.problems()[1] and ReadingReport().problems() == []


def test_names_of_no_file_and_damaged_archives_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no file is named .*nothing"):
        find_files([str(tmp_path / "nothing*.txt")])
    whole = gzip.compress(b"some text\n" * 1000)
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        list(read_lines([str(tmp_path / "cut.gz")], ReadingReport()))


def test_holding_out_keeps_every_sentence_in_one_of_both():
    corpus = corpus_of(SENTENCES * 3)
    train, held = corpus.hold_out(5)
    assert (train.num_sentences, held.num_sentences) == (12, 3)
    assert [train.types[i] for i in held.words] == ["l", "m", "n", "o"] * 3
    assert train.counts()["l"] == 0 and train.counts()["a"] == 3


def test_the_fingerprint_changes_with_a_word_and_with_a_boundary():
    prints = {corpus_of(text).fingerprint for text in (["a b", "c"], ["a", "b c"], ["a b", "d"], ["a b", "c"])}
    assert len(prints) == 3


@pytest.mark.data
def test_predictions_of_brown_are_those_of_the_original(shared):
    report = ReadingReport()
    corpus = Corpus.from_lines(read_lines([str(shared / "fixtures/bilm_tf_brown/train.txt.gz")], report), str.split)
    assert corpus.num_sentences == 55_072
    assert corpus.num_predictions == 1_169_908
