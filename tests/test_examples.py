"""The scripts of examples/: what they compute where the answer is known, that each runs, and that it tells mistakes."""

import gzip
import itertools
import json
import random
import re
import shutil
import sys
from pathlib import Path
from statistics import fmean

import contextuality
import layer_weighting
import numpy as np
import paraphrases
import pytest
import search
import texts_and_vectors
import torch
import word_senses
from conftest import TINY, save_random_model
from torch.nn.functional import normalize

from modeling_elmo import (
    ElmoConfig,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoTokenizer,
)
from modeling_elmo.loading import load_encoder
from modeling_elmo.text_files import DataError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A table in gzipped JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def called(example, capsys, *arguments: object) -> str:
    """What an example prints."""
    assert example.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(example, capsys, *arguments: object) -> str:
    """How an example tells a mistake: in one line."""
    assert example.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    message = err.splitlines()[-1]
    assert message.startswith("error: ") and not out and "Traceback" not in err
    return message


# ---- what all of them share


def test_centred_vectors_have_no_mean_and_nothing_along_the_components():
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))  # (16, 4)
    vectors = signs * torch.tensor([9.0, 5.0, 2.0, 1.0]) + 4  # the components are the dimensions
    for components in (0, 1, 2):
        expected = vectors - 4
        expected[:, :components] = 0
        result = texts_and_vectors.centred(vectors, vectors, components)
        torch.testing.assert_close(result, normalize(expected, dim=1))
    others = texts_and_vectors.centred(vectors[:1] + 1, vectors, 1)
    torch.testing.assert_close(others, normalize(torch.tensor([[0.0, -4.0, -1.0, 0.0]]), dim=1))


def test_layers_and_their_average(model):
    encoder, tokenizer = load_encoder(str(model))
    texts = ["It rains .", "a", "It does n't rain ."]
    vectors = texts_and_vectors.text_vectors(texts, encoder, tokenizer)
    assert vectors.shape == (4, 3, encoder.config.hidden_size)
    assert texts_and_vectors.layer_names(encoder) == ["layer 0", "layer 1", "layer 2", "average"]
    torch.testing.assert_close(vectors[3], vectors[:3].mean(0))
    states = encoder(**tokenizer(texts[2], return_tensors="pt"), output_hidden_states=True).hidden_states
    torch.testing.assert_close(vectors[1, 2], states[1][0, 1:-1].mean(0), rtol=0, atol=1e-5)


# ---- search


def test_a_typo_is_two_letters_that_changed_places():
    numbers = random.Random(0)
    for _ in range(20):
        typo = search.misspell("The old capital of it", numbers)
        assert typo != "The old capital of it" and sorted(typo) == sorted("The old capital of it")
        assert typo.startswith("The old c") and typo.endswith(" of it")
    assert search.misspell("an ox is out , aaaa", numbers) == "an ox is out , aaaa", "nothing to misspell"


def test_recall():
    found = [[3, 1], [2], list(range(10, 20)), []]
    assert search.recall(found, [3, 1, 15, 0]) == [0.25, 0.25, 0.5]
    assert search.recall([list(range(10))], [9]) == [0, 0, 1]


def test_texts_are_found_by_their_nearest_sentence():
    sentences = normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.1]]), dim=1)
    owner = np.array([0, 0, 1, 2])
    found = search.found_by_elmo(sentences, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), owner)
    assert found == [[1, 0, 2], [2, 1, 0]]


def test_the_same_sentence_is_found_first(model, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt.gz"
    lines = ["A cat sat on the mat . It slept .", "", *(f"Number {i} is not {i + 1} , they say ." for i in range(30))]
    corpus.write_bytes(gzip.compress("\n".join(lines).encode()))
    for flags in (["--layers", 0], ["--layers", "average", "--centre"], ["--index", "HNSW8"]):
        out = called(search, capsys, model, corpus, "It slept .", "Number 7 is not 8 , they say .", *flags)
        found = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith(" ")]
        assert [found[0], found[5]] == [["1.00", "1", "It slept ."], ["1.00", "10", lines[9]]], flags
    sample = tmp_path / "queries.txt"
    sample.write_text("Is it 7 ?\nIs it 9 ?\nWhy ?\n")
    flags = ["--centre", "--misspell", "--query_sample", sample, "--top_k", 1]
    assert len(called(search, capsys, model, corpus, "Number 7 ?", *flags).splitlines()) == 8


def test_search_is_evaluated(model, tmp_path, capsys):
    """Questions that are sentences of their texts, so that both ways of searching are right."""
    words = [f"{'abcdefghij'[i]}{'klmnopqrst'[j]}word" for i in range(10) for j in range(3)]
    texts = [" ".join(words[i : i + 3]).capitalize() + " . It is so ." for i in range(0, 30, 3)]
    rows = [{"question": text.removesuffix(" It is so ."), "context": text} for text in texts]
    out = called(search, capsys, model, write_rows(tmp_path / "squad.jsonl.gz", rows * 2), "--evaluate")
    assert out.startswith("20 questions, 10 texts of 20 sentences")
    table = {row[0]: row[1:] for row in (re.split(r" {2,}", line) for line in out.splitlines()[3:])}
    assert len(table) == 2 + 4 * 4
    for name in ("TF-IDF of words", "layer 0", "layer 1", "layer 2 - the texts' mean", "average"):
        assert table[name][:3] == ["1.000"] * 3, out
    assert table["TF-IDF of words"][3] != table["layer 0"][3], "typos count"


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ("missing.txt", ["a"], "no file is named"),
        ("table.jsonl.gz", ["a"], "name its column of texts with --column"),
        ("table.jsonl.gz", ["a", "--column", "texts"], "no column 'texts'; its columns are number, text"),
        ("table.jsonl.gz", ["a", "--column", "number"], "row 0: column 'number' has 1 instead of a text"),
        ("table.jsonl.gz", ["a", "--column", "text", "--index", "Tree"], "--index Tree: faiss cannot"),
        ("table.jsonl.gz", ["a", "--column", "text", "--layers", "3"], "0 to 2, not 3"),
        ("table.jsonl.gz", ["a", "--column", "text", "--centre", "--components", "12"], "must be less than 12"),
        ("table.jsonl.gz", ["--evaluate"], "no column 'question'"),
        ("empty.txt", ["a"], "has no texts"),
    ],
)
def test_search_tells_mistakes(data, flags, message, model, tmp_path, capsys):
    write_rows(tmp_path / "table.jsonl.gz", [{"number": 1, "text": "It rains ."}])
    (tmp_path / "empty.txt").write_text("\n\n")
    assert message in refused(search, capsys, model, tmp_path / data, *flags)


@pytest.mark.parametrize(
    ("example", "package", "arguments"),
    [
        (search, "faiss", ["text.txt", "a"]),
        (search, "faiss", ["text.txt", "--evaluate"]),
        (search, "sklearn.feature_extraction.text", ["text.txt", "--evaluate"]),
        (paraphrases, "faiss", ["text.txt"]),
        (paraphrases, "scipy.stats", ["text.txt", "--evaluate"]),
        (paraphrases, "sklearn.metrics", ["text.txt", "--evaluate"]),
        (word_senses, "sklearn.metrics", ["senses.jsonl.gz", "senses.jsonl.gz"]),
        (contextuality, "matplotlib.figure", ["text.txt", "plot.png"]),
        (layer_weighting, "matplotlib.figure", ["tasks", "out", "--task_name", "sst2"]),
    ],
)
def test_a_missing_library_is_told_before_the_work(example, package, arguments, tmp_path, capsys, monkeypatch):
    """Before anything else is missed: there is no model."""
    write_rows(tmp_path / "senses.jsonl.gz", [{"word": "a", "sentence": "a", "sense": "a", "index": 0}])
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    assert "pip install 'modeling-elmo[examples]'" in refused(example, capsys, "./model", *arguments)


def test_a_folder_without_a_model_is_told(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("It rains .\n")
    (tmp_path / "model").mkdir()
    message = refused(search, capsys, tmp_path / "model", tmp_path / "text.txt", "a")
    assert "has no ELMo model: its config.json has the model_type None" in message


# ---- paraphrases


def test_most_similar_pairs_are_those_of_all_pairs():
    vectors = normalize(torch.randn(40, 3), dim=1)
    cosines = vectors @ vectors.T
    all_pairs = sorted(((cosines[i, j].item(), i, j) for i in range(40) for j in range(i + 1, 40)), reverse=True)
    found = paraphrases.most_similar_pairs(vectors, 25)
    assert [pair[1:] for pair in found] == [pair[1:] for pair in all_pairs[:25]]
    assert [pair[0] for pair in found] == pytest.approx([pair[0] for pair in all_pairs[:25]])
    assert len(paraphrases.most_similar_pairs(vectors[:3], 25)) == 3


def test_paraphrases_are_mined(model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("It rains today .\nNobody knows why the old king left .\nIt rains  today .\nIt rains todya .\nZ\n")
    for flags in ([], ["--layers", 0], ["--index", "HNSW8"]):
        out = called(paraphrases, capsys, model, text, "--pairs", 1, *flags).splitlines()
        assert out[0].startswith("4 different texts")
        pair = [line.strip() for line in out[2:]]
        assert pair[0].endswith("  It rains today .") and pair[1:] == ["It rains todya ."], flags
    text.write_text("It rains .\n\nIt  rains .\n")
    assert "only one text" in refused(paraphrases, capsys, model, text)


def test_words_in_common():
    assert paraphrases.word_overlap(["The", "cat"], ["the", "dog", "the"]) == pytest.approx(1 / 3)
    assert paraphrases.word_overlap([], []) == 0


def test_agreement_is_average_precision_or_rank_correlation():
    assert paraphrases.agreement(np.array([0.0, 1.0, 1.0]), np.array([0.9, 0.8, 0.1])) == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    assert paraphrases.agreement(np.array([1.0, 2.5, 4.0]), np.array([0.1, 0.2, 9.0])) == pytest.approx(1)


def test_paraphrases_are_evaluated(model, tmp_path, capsys):
    same = [{"sentence1": f"It is {n} .", "sentence2": f"It is {n} .", "label": 1} for n in range(5)]
    other = [{"sentence1": f"It is {n} .", "sentence2": "Nobody knows why", "label": 0} for n in range(5)]
    binary = write_rows(tmp_path / "binary.jsonl.gz", same + other)
    graded = write_rows(tmp_path / "graded.jsonl.gz", [{**row, "label": 4.5 * row["label"]} for row in same + other])
    out = called(paraphrases, capsys, model, binary, graded, "--evaluate", "--components", 1)
    parts = out.strip().split("\n\n")
    assert "average precision; by chance 0.500" in parts[0] and "Spearman" in parts[1]
    rows = [line.split() for line in parts[0].splitlines()[3:]]
    assert [row[-1] for row in rows] == ["1.000"] * 5, "equal sentences are nearer than different ones"
    assert "column 'label' has 'yes' instead of a number" in refused(
        paraphrases, capsys, model,
        write_rows(tmp_path / "names.jsonl.gz", [{**row, "label": "yes"} for row in same]), "--evaluate",
    )  # fmt: skip


# ---- senses of words


def test_characters_lead_to_words():
    text = "I don't, and can't, bank on it."
    for word, expected in (("don't", ["do", "n't"]), ("bank", ["bank"]), ("ban", ["bank"]), ("it", ["it"])):
        words, places = word_senses.use_at(text, text.rindex(word), text.rindex(word) + len(word), ElmoTokenizer())
        assert [words[place] for place in places] == expected
    with pytest.raises(DataError, match="no word at characters 1 to 2"):
        word_senses.use_at(text, 1, 2, ElmoTokenizer())


def test_the_best_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for _ in range(50):
        cosines, labels = generator.integers(0, 8, 12) / 8, generator.integers(0, 2, 12)  # many are equal
        best = max(word_senses.accuracy(cosines, labels, value) for value in np.arange(-1, 18) / 16)
        assert word_senses.accuracy(cosines, labels, word_senses.best_threshold(cosines, labels)) == best
    assert word_senses.best_threshold(np.array([0.2, 0.4]), np.array([1, 0])) in (-np.inf, np.inf)


@pytest.mark.parametrize("method", [word_senses.nearest_neighbour, word_senses.nearest_centroid])
def test_senses_that_are_apart_are_told_apart(method):
    centres = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, -3.0, 4.0]])
    senses = np.array([0] * 8 + [1] * 6 + [2] * 3)
    train, test = (normalize(centres[senses] + torch.randn(17, 3), dim=1) for _ in range(2))
    assert (method(train, senses, test) == senses).all()
    shuffled = np.random.default_rng(0).permutation(17)
    assert (method(train[shuffled], senses[shuffled], test) == senses).all()
    # Vectors that are all the same tell nothing: the most frequent sense.
    alike = normalize(torch.ones(17, 3) + 1e-7 * torch.randn(17, 3), dim=1)
    assert (method(alike[shuffled], senses[shuffled], alike) == 0).all()


def test_the_nearest_use_is_not_the_nearest_mean():
    train = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.3, 1.0]]), dim=1)
    senses, test = np.array([0, 0, 1]), train[1:2]
    assert word_senses.nearest_neighbour(train, senses, test) == [0]
    assert word_senses.nearest_centroid(train, senses, test) == [1]


def test_senses_are_told_by_layer(model, tmp_path, capsys):
    """Two senses with contexts of their own, which the same sentences of the training data show."""
    contexts = {"river": ["the muddy bank of it", "a green bank ."], "money": ["my bank lent it", "every bank closed"]}
    rows = [
        {"word": "bank", "sentence": text, "index": text.split().index("bank"), "sense": sense}
        for sense, texts in contexts.items()
        for text in texts
    ]
    train = write_rows(tmp_path / "train.jsonl.gz", [*rows, rows[0]])
    test = write_rows(tmp_path / "test.jsonl.gz", rows)
    out = called(word_senses, capsys, model, train, test)
    parts = [re.split(r" {2,}", part.split("\n")[3]) for part in out.split("\n\n")[1:]]
    assert parts[0][:6] == parts[1][:6] == ["bank", "2", "5", "4", "0.500 0.333", "0.500 0.333"], "layer 0: as frequent"
    assert parts[1][6:] == ["1.000 1.000"] * 3, "the very sentences of the training data"
    wrong = write_rows(tmp_path / "wrong.jsonl.gz", [{**rows[0], "index": 5}])
    assert "row 0: index 5 is none of the 5 words" in refused(word_senses, capsys, model, wrong, test)
    other = write_rows(tmp_path / "other.jsonl.gz", [{**rows[0], "word": "arm"}])
    assert "has no use of bank" in refused(word_senses, capsys, model, other, test)


def test_words_in_context_are_compared(model, tmp_path, capsys):
    """The same sentence twice has the same sense, to all layers but the first, which knows the word only."""
    texts = ["the muddy bank of it", "my bank lent it all", "every bank closed", "a green bank ."]

    def row(one: str, other: str) -> dict:
        starts = [text.index("bank") for text in (one, other)]
        ends = [start + 4 for start in starts]
        places = {"start1": starts[0], "end1": ends[0], "start2": starts[1], "end2": ends[1]}
        return {"sentence1": one, "sentence2": other, **places, "label": int(one == other)}

    rows = [row(one, other) for one in texts for other in (one, one, one, *texts)]
    data = write_rows(tmp_path / "wic.jsonl.gz", rows)
    out = called(word_senses, capsys, model, data, data)
    lines = [re.split(r" {2,}", line) for line in out.splitlines()[4:]]
    assert lines[0][2:] == ["0.571"] * 2, "layer 0 cannot tell: the more frequent label"
    assert [line[2:] for line in lines[1:]] == [["1.000"] * 2] * 3
    bad = write_rows(tmp_path / "bad.jsonl.gz", [{**rows[0], "label": 2}])
    assert "labels must be 0 and 1" in refused(word_senses, capsys, model, bad, data)


# ---- contextuality


@pytest.mark.parametrize("plot", ["plot.txt", "nowhere/plot.png"])
def test_a_plot_that_could_not_be_written_is_told_at_once(plot, tmp_path, capsys):
    with pytest.raises(SystemExit):
        contextuality.main(["model", "text.txt", str(tmp_path / plot)])
    assert f"{plot} must be a .png file in a folder that is there" in capsys.readouterr().err


def test_measures_are_those_of_the_definitions():
    vectors = torch.randn(12, 5) + 1
    pairs = [torch.cosine_similarity(vectors[i], vectors[j], dim=0) for i in range(12) for j in range(12) if i != j]
    assert contextuality.mean_cosine(vectors) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    mean = vectors.mean(0)
    of_words = [float(torch.cosine_similarity(vector, mean, dim=0)) for vector in vectors]
    assert contextuality.intra_sentence_similarity(vectors) == pytest.approx(sum(of_words) / 12, abs=1e-6)
    eigenvalues = torch.linalg.eigvalsh(vectors.T @ vectors)  # squares of the singular values
    expected = float(eigenvalues.max() / eigenvalues.sum())
    assert contextuality.maximum_explainable_variance(vectors) == pytest.approx(expected, abs=1e-6)


def test_measures_at_their_ends():
    same = torch.randn(1, 8).repeat(6, 1)
    for measure in (
        contextuality.mean_cosine,
        contextuality.intra_sentence_similarity,
        contextuality.maximum_explainable_variance,
    ):
        assert measure(same) == pytest.approx(1)
    orthogonal = 3 * torch.eye(6)
    assert contextuality.mean_cosine(orthogonal) == pytest.approx(0)
    assert contextuality.maximum_explainable_variance(orthogonal) == pytest.approx(1 / 6)
    assert abs(contextuality.mean_cosine(torch.randn(2000, 50))) < 0.01, "isotropic"
    assert contextuality.mean_cosine(torch.randn(2000, 50) + 2) > 0.7, "anisotropic"


def test_what_is_drawn_at_random_is_taken_off():
    """A word that is the same everywhere, one that is not, in vectors that have a mean in common."""
    vectors = [torch.randn(3, 400) + 1 for _ in range(20)]
    for sentence in vectors:
        sentence[0] = vectors[0][0]
    words = {"same": [(i, 0) for i in range(20)], "other": [(i, 1) for i in range(20)]}
    layer = contextuality.measure(vectors, words, torch.randn(500, 400) + 1)
    assert layer.of_words["same"] == pytest.approx(1) and layer.of_words["other"] == pytest.approx(0.5, abs=0.02)
    assert layer.measured[0] == pytest.approx(0.75, abs=0.02)
    assert layer.baseline[0] == layer.baseline[1] == pytest.approx(0.5, abs=0.01)
    assert layer.adjusted[0] == pytest.approx(0.25, abs=0.03)
    assert layer.adjusted[2] == layer.measured[2] - layer.baseline[2]


def test_words_are_chosen_by_the_sentences_that_they_are_in():
    sentences = [["a", "b", "a"], ["a", "c"], ["b", "c", "c", "c"], ["a"]]
    numbers = random.Random(0)
    assert contextuality.choose_words(sentences, 3, 9, numbers) == {"a": [(0, 0), (0, 2), (1, 0), (3, 0)]}
    assert len(contextuality.choose_words(sentences, 2, 2, numbers)) == 2
    with pytest.raises(DataError, match="no word is in 5 of 4 sentences"):
        contextuality.choose_words(sentences, 5, 9, numbers)


def test_contextuality_is_shown(model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {word} cat is not the dog of {word}\n" for word in "abcdefghij") + "\n")
    png = tmp_path / "plot.png"
    out = called(contextuality, capsys, model, text, png, "--drawn", 30, "--shown", 2, "--words", 5)
    assert out.startswith("10 different sentences of 90 words; 5 words that are in at least 5 of them, ")
    rows = [line.split() for line in out.splitlines()[3:12]]
    values = {(number // 3, number % 3): [float(value) for value in row[-3:]] for number, row in enumerate(rows)}
    assert values[0, 0][0] == values[2, 0][0] == 1, "layer 0 has no context"
    assert values[0, 1][0] < 1 and values[2, 1][0] < 1
    assert all(value[2] == pytest.approx(value[0] - value[1], abs=0.0011) for value in values.values())
    assert png.read_bytes().startswith(b"\x89PNG")
    assert called(contextuality, capsys, model, text, png, "--drawn", 30, "--shown", 2, "--words", 5) == out, "seeded"
    assert "no word is in 20 of 10" in refused(contextuality, capsys, model, text, png, "--contexts", 20)


# ---- weights of layers


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A task of sentences and one of tags."""
    folder = tmp_path_factory.mktemp("tasks")
    words = [["good", "awful"][i % 2] for i in range(8)]
    for split in ("train", "validation"):
        sentences = [{"text": f"the {word} cat {i}", "label": word[0]} for i, word in enumerate(words)]
        write_rows(folder / "mood" / f"{split}.jsonl.gz", sentences)
        tags = [{"tokens": ["the", word], "ner_tags": ["O", f"B-{word}"]} for word in words]
        write_rows(folder / "tags" / f"{split}.jsonl.gz", tags)
    return folder


WAYS = ["layer 0", "layer 1", "layer 2", "average", "learnt mix", "learnt mix without the top", "concatenation"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric", "seeds"), [("mood", "accuracy", [1]), ("tags", "f1", [1, 2])])
def test_layers_are_weighed_in_each_way(task, metric, seeds, model, tasks, tmp_path, capsys):
    flags = ["--learning_rate", 0.1, "--num_train_epochs", 2, "--seeds", *seeds]
    out = called(layer_weighting, capsys, model, tasks, tmp_path / "out", "--task_name", task, *flags)
    folders = {way: tmp_path / "out" / task / way.replace(" ", "_") for way in WAYS}

    def of_runs(way: str, file: str) -> list[dict]:
        runs = [folders[way] / f"seed_{seed}" for seed in seeds] if len(seeds) > 1 else [folders[way]]
        return [json.loads((run / file).read_text()) for run in runs]

    scores = json.loads((tmp_path / "out" / "summary.json").read_text())
    expected = {way: [run[f"validation_{metric}"] for run in of_runs(way, "all_results.json")] for way in WAYS}
    assert scores == {f"{task}, {metric}": expected}
    rows = [re.split(r" {2,}", line) for line in out.splitlines()]
    shown = {way: f"{fmean(values):.4f}" for way, values in expected.items()}
    assert {row[0]: row[1].split(" ±")[0] for row in rows[2:9]} == shown
    assert rows[10] == ["weights learnt", "layer 0", "layer 1", "layer 2"] and rows[12][0] == task
    assert (tmp_path / "out" / "layer_weighting.png").read_bytes().startswith(b"\x89PNG")

    weights = {way: of_runs(way, "layer_weights.json")[0] for way in WAYS}
    assert [weights[way]["layers"] for way in WAYS] == [[0], [1], [2], *[[0, 1, 2]] * 2, [0, 1], [0, 1, 2]]
    assert weights["average"]["features.scalar_mix"] == pytest.approx([1 / 3] * 3), "kept as it was"
    assert weights["learnt mix"]["features.scalar_mix"] != pytest.approx([1 / 3] * 3)


def test_layer_weighting_tells_mistakes(model, tasks, tmp_path, capsys):
    assert "has no folder 'moods'; it has mood, tags" in refused(
        layer_weighting, capsys, model, tasks, tmp_path / "new", "--task_name", "moods"
    )
    (tmp_path / "notes.txt").touch()
    assert "has files in it" in refused(layer_weighting, capsys, model, tasks, tmp_path, "--task_name", "mood")
    arguments = ["/nowhere/at_all", tasks, tmp_path / "new", "--task_name", "mood"]
    assert "/nowhere/at_all has no ELMo" in refused(layer_weighting, capsys, *arguments)
    (tmp_path / "half" / "mood").mkdir(parents=True)
    shutil.copy(tasks / "mood" / "train.jsonl.gz", tmp_path / "half" / "mood")
    arguments = [model, tmp_path / "half", tmp_path / "new", "--task_name", "mood"]
    assert "mood has no validation data" in refused(layer_weighting, capsys, *arguments)


@pytest.mark.parametrize("normalised", [True, False])
def test_concatenated_layers_are_all_read(normalised):
    options = {"head": "linear", "feature_dropout": 0.0, "num_labels": 3, "concat_word_vectors": False}
    config = ElmoConfig(**{**TINY, **options, "scalar_mix_layer_norm": normalised})
    layers = torch.randn(2, 4, 3, config.hidden_size)
    features = layer_weighting.Concatenation(config)(layers)
    expected = [
        torch.nn.functional.layer_norm(layer, layer.shape[-1:]) if normalised else layer for layer in layers.unbind(2)
    ]
    torch.testing.assert_close(features, torch.cat(expected, dim=2))
    for model_class in (ElmoForSequenceClassification, ElmoForTokenClassification):
        model = model_class(config)
        layer_weighting.concatenate(model)
        model.train()
        mask, labels = torch.ones(2, 4), torch.tensor([0, 2])
        if model_class is ElmoForTokenClassification:
            labels = labels[:, None].expand(2, 4)
        layers.requires_grad_().grad = None
        model(hidden_states=layers, attention_mask=mask, labels=labels).loss.backward()
        assert (layers.grad.abs().sum((0, 1, 3)) > 0).all(), "a gradient for each layer"
