"""The lanes of truncated back-propagation against a plain list of sentences."""

from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from modeling_elmo import ElmoTokenizer, lanes
from modeling_elmo.char_rows import PADDING
from modeling_elmo.corpus import Corpus, write_corpus
from modeling_elmo.lanes import BACKWARD, FORWARD, Lanes, Position, TypeTable, Window, read_in_order
from modeling_elmo.text_files import ReadingReport

SENTENCES = ["a b c", "d", "e f g h i", "j k", "l m n o"]
NAMES = {FORWARD: ("<S>", "</S>"), BACKWARD: ("</S>", "<S>")}


@pytest.fixture
def corpus_of(tmp_path):
    def make(sentences: list[str]) -> Corpus:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_corpus(folder, sentences, lambda line: [line.split()], ElmoTokenizer(), ReadingReport())
        return Corpus(folder)

    return make


def words_of(corpus: Corpus, ids: np.ndarray) -> list[str]:
    names = [word for some in corpus.types() for word in some] + ["<S>", "</S>", "-"]  # index -1 is "-"
    return [names[i] for i in ids.tolist()]


def pairs_of(sentences: list[str], direction: int) -> list[tuple[str, str]]:
    """What a direction reads and predicts, sentence by sentence: the plain reference."""
    pairs = []
    for sentence in sentences:
        words = ["<S>", *sentence.split(), "</S>"]
        words = words[::-1] if direction == BACKWARD else words
        pairs += pairwise(words)
    return pairs


def joined(windows: list[Window]) -> Window:
    return Window(*(np.concatenate(parts, axis=2) for parts in zip(*windows, strict=True)))


def read_windows(stream: Lanes, lengths: list[int], mine: range | None = None) -> Window:
    """Windows of those lengths, one after the other."""
    position, windows = Position.at_the_end(stream.num_lanes), []
    for steps in lengths:
        window, position = stream.read(position, steps, mine)
        windows.append(window)
    return joined(windows)


def sentences_of(corpus: Corpus, window: Window, direction: int, lane: int = 0) -> list[str]:
    """The whole sentences that a lane has read in a window that starts with a sentence."""
    read = words_of(corpus, window.inputs[direction][lane])
    begins = [place for place, word in enumerate(read) if word == NAMES[direction][0]]
    found = [read[a + 1 : b] for a, b in pairwise(begins)]
    return [" ".join(words[::-1] if direction == BACKWARD else words) for words in found]


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_reading_in_order_reads_the_whole_text_once(corpus_of, direction, num_lanes, steps):
    corpus = corpus_of(SENTENCES)
    window = joined(list(read_in_order(corpus, num_lanes, steps)))
    read = words_of(corpus, window.inputs[direction].reshape(-1))
    predicted = words_of(corpus, window.targets[direction].reshape(-1))
    pairs = [pair for pair in zip(read, predicted, strict=True) if pair[1] != "-"]
    assert pairs == pairs_of(SENTENCES, direction)
    assert len(pairs) == corpus.num_predictions == 15 + 5
    mine = joined(list(read_in_order(corpus, num_lanes, steps, range(1, num_lanes, 2))))  # the second of two processes
    np.testing.assert_array_equal(mine, np.stack(window)[:, :, 1::2])


def test_reading_in_order_cuts_into_about_equal_lanes_and_stops_with_the_longest(corpus_of):
    corpus = corpus_of([" ".join("w" * length) for length in [1, 2, 3, 4, 5] * 40])
    windows = list(read_in_order(corpus, 4, 10))
    words = (joined(windows).targets[FORWARD] >= 0).sum(1)
    assert words.sum() == corpus.num_predictions and words.max() - words.min() <= 10
    assert len(windows) == -(-int(words.max()) // 10)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_each_epoch_has_each_sentence_once_in_another_order(corpus_of, direction):
    corpus = corpus_of(SENTENCES)
    window = read_windows(Lanes(corpus, 1, seed=3), [20 * 6 + 1])
    read = sentences_of(corpus, window, direction)
    epochs = [tuple(read[at : at + 5]) for at in range(0, 30, 5)]
    assert all(sorted(epoch) == sorted(SENTENCES) for epoch in epochs)
    assert len(set(epochs)) > 3


@pytest.mark.parametrize(("run", "runs"), [(4, 3), (1, 1), (7, 2)])
def test_an_epoch_of_many_groups_has_each_sentence_once(corpus_of, monkeypatch, run, runs):
    monkeypatch.setattr(lanes, "SENTENCES_IN_RUN", run)
    monkeypatch.setattr(lanes, "RUNS_IN_GROUP", runs)
    sentences = [f"s{i}" for i in range(50)]
    corpus = corpus_of(sentences)
    window = read_windows(Lanes(corpus, 1, seed=0), [2 * 50 * 3 + 1])
    read = sentences_of(corpus, window, FORWARD)
    epochs = [read[:50], read[50:100], read[100:]]
    assert all(sorted(epoch) == sorted(sentences) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sentences


def test_groups_are_shuffled_in_orders_of_their_own(corpus_of, monkeypatch):
    monkeypatch.setattr(lanes, "SENTENCES_IN_RUN", 7)
    monkeypatch.setattr(lanes, "RUNS_IN_GROUP", 1)
    corpus = corpus_of([f"s{i}" for i in range(70)])
    read = sentences_of(corpus, read_windows(Lanes(corpus, 1, seed=0), [2 * 70 + 1]), FORWARD)
    orders = [tuple(int(sentence[1:]) % 7 for sentence in read[at : at + 7]) for at in range(0, 70, 7)]
    assert len(set(orders)) > 5


def test_all_sentences_of_an_epoch_are_shared_out_among_the_lanes(corpus_of):
    sentences = [f"s{i}" for i in range(60)]
    corpus = corpus_of(sentences)
    window = read_windows(Lanes(corpus, 6, seed=0), [20])  # each lane reads ten sentences of two steps
    read = [word for word in words_of(corpus, window.inputs[BACKWARD].reshape(-1)) if word != "</S>"]
    assert sorted(read) == sorted(sentences)


@pytest.mark.parametrize(("run", "runs"), [(64, 1), (1, 1)])  # one run of all sentences, and runs of one
def test_directions_and_seeds_have_orders_of_their_own(corpus_of, monkeypatch, run, runs):
    monkeypatch.setattr(lanes, "SENTENCES_IN_RUN", run)
    monkeypatch.setattr(lanes, "RUNS_IN_GROUP", runs)
    corpus = corpus_of([str(i) for i in range(50)])
    windows = [read_windows(Lanes(corpus, 1, seed=seed), [101]) for seed in (0, 1, 0)]
    orders = [sentences_of(corpus, windows[seed], side) for seed in (0, 1) for side in (FORWARD, BACKWARD)]
    assert len(set(map(tuple, orders))) == 4 and all(len(order) == 50 for order in orders)
    np.testing.assert_array_equal(windows[0].inputs, windows[2].inputs)


@pytest.mark.parametrize("steps", [1, 3, 4, 11, 50])
def test_windows_of_any_length_make_the_same_stream_across_epochs(corpus_of, steps):
    corpus = corpus_of(SENTENCES)
    whole = read_windows(Lanes(corpus, 3, seed=1), [60])
    parts = read_windows(Lanes(corpus, 3, seed=1), [min(steps, 60 - at) for at in range(0, 60, steps)])
    np.testing.assert_array_equal(parts.inputs, whole.inputs)
    np.testing.assert_array_equal(parts.targets, whole.targets)


def test_a_position_is_all_that_going_on_needs(corpus_of):
    corpus = corpus_of(SENTENCES)
    stream = Lanes(corpus, 3, seed=1)
    _, position = stream.read(Position.at_the_end(3), 33)
    before = position.copy()
    expected, _ = stream.read(position, 20)
    again, _ = Lanes(corpus, 3, seed=1).read(position, 20)
    np.testing.assert_array_equal(again.inputs, expected.inputs)
    np.testing.assert_array_equal(again.targets, expected.targets)
    assert all(np.array_equal(a, b) for a, b in zip(position, before, strict=True))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_lanes_of_one_stream(corpus_of, processes):
    corpus = corpus_of(SENTENCES)
    whole = read_windows(Lanes(corpus, 4, seed=1), [5, 7, 20])
    size = 4 // processes
    shares = [range(first, first + size) for first in range(0, 4, size)]
    parts = [read_windows(Lanes(corpus, 4, seed=1), [5, 7, 20], share) for share in shares]
    np.testing.assert_array_equal(np.concatenate([part.inputs for part in parts], axis=1), whole.inputs)
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts], axis=1), whole.targets)


def test_each_target_is_the_next_input_but_at_the_end_of_a_sentence(corpus_of):
    corpus = corpus_of(SENTENCES)
    window = read_windows(Lanes(corpus, 2, seed=5), [40])
    for direction, end in ((FORWARD, corpus.eos), (BACKWARD, corpus.bos)):
        inputs, targets = window.inputs[direction], window.targets[direction]
        inside = targets[:, :-1] != end
        assert inside.sum() > 40
        np.testing.assert_array_equal(targets[:, :-1][inside], inputs[:, 1:][inside])


def test_a_sentence_longer_than_many_windows_is_read_piece_by_piece(corpus_of):
    sentence = " ".join(f"w{i}" for i in range(1000))
    corpus = corpus_of([sentence])
    window = read_windows(Lanes(corpus, 1, seed=0), [7] * 300)
    assert sentences_of(corpus, window, FORWARD)[0] == sentences_of(corpus, window, BACKWARD)[0] == sentence


def test_a_batch_has_the_characters_and_labels_of_its_words(corpus_of):
    corpus = corpus_of(SENTENCES)
    tokenizer = ElmoTokenizer().train_new_from_counts({"a": 3, "e": 2, "m": 1})
    window = read_windows(Lanes(corpus, 2, seed=5), [9])
    batch = TypeTable(corpus, tokenizer).batch(window)
    assert len(batch["distinct_words"].unique(dim=0)) == len(batch["distinct_words"])
    assert batch["distinct_words"].shape[1] == 3, "cut behind the longest word: its begin, one letter, its end"
    rows = {"<S>": tokenizer.bos_row, "</S>": tokenizer.eos_row}
    labels = {"<S>": tokenizer.lm_bos_id, "</S>": tokenizer.lm_eos_id}
    for direction, ids, targets in (
        (FORWARD, batch["input_ids"], batch["next_targets"]),
        (BACKWARD, batch["reversed_input_ids"], batch["previous_targets"]),
    ):
        for lane in range(2):
            for word, place in zip(words_of(corpus, window.inputs[direction][lane]), ids[lane], strict=True):
                expected = rows[word] if word in rows else tokenizer.encode_words([word])[0]
                row = batch["distinct_words"][place].numpy()
                np.testing.assert_array_equal(row, expected[: len(row)])
                assert (expected[len(row) :] == PADDING).all()
            for word, label in zip(words_of(corpus, window.targets[direction][lane]), targets[lane], strict=True):
                assert label == (labels[word] if word in labels else tokenizer.lm_ids([word])[0])


def test_words_that_are_not_predicted_have_the_label_minus_100(corpus_of):
    corpus = corpus_of(["a b", "c"])
    table = TypeTable(corpus, ElmoTokenizer().train_new_from_counts({"a": 1, "b": 1, "c": 1}))
    batch = table.batch(next(read_in_order(corpus, 2, 5)))
    assert (batch["next_targets"] == -100).tolist() == [[False] * 3 + [True] * 2, [False] * 2 + [True] * 3]


def test_labels_of_a_large_vocabulary_are_kept(corpus_of):
    corpus = corpus_of(["a b c"])
    tokenizer = Mock(lm_bos_id=0, lm_eos_id=1, lm_ids=lambda words: [70_000 + len(word) for word in words])
    batch = TypeTable(corpus, tokenizer).batch(next(read_in_order(corpus, 1, 4)))
    assert batch["next_targets"].tolist() == [[70_001] * 3 + [1]]


@pytest.mark.data
def test_predictions_of_brown_are_those_of_the_original(shared: Path, tmp_path):
    from modeling_elmo.text_files import read_lines

    report = ReadingReport()
    lines = read_lines([str(shared / "fixtures/bilm_tf_brown/train.txt.gz")], report)
    write_corpus(tmp_path, lines, lambda line: [line.split()], ElmoTokenizer(), report)
    corpus = Corpus(tmp_path)
    assert corpus.num_sentences == 55_072
    assert corpus.num_predictions == 1_169_908
