"""Tagging data: files and tables of all kinds, repair of tags, labels, and scores against their definitions."""

import bz2
import gzip
import itertools
import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from datasets import Sequence as ListOf
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo.tagging import (
    Columns,
    TaggedSentence,
    accuracy,
    are_chunks,
    entity_scores,
    label_list,
    mend_tags,
    read_dataset,
    read_file,
    read_files,
    scorer,
    tags_of,
    to_dataset,
    write_columns,
)
from modeling_elmo.text_files import DataError

ROWS = [
    {"tokens": ["Anna", "Bo", "sleeps"], "ner_tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["Berlin"], "ner_tags": ["B-LOC"]},
]
CONLL = """-DOCSTART- -X- O O

Anna NNP B-NP B-PER
Bo NNP I-NP I-PER
sleeps VBZ B-VP O


Berlin NNP B-NP B-LOC
"""
SENTENCES = [(row["tokens"], row["ner_tags"]) for row in ROWS]


def write(folder, name: str, content: str | bytes | list[dict]) -> str:
    path = folder / name
    if name.endswith(".parquet"):
        Dataset.from_list(content).to_parquet(path)
        return str(path)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    raw = content.encode() if isinstance(content, str) else content
    packers = {".gz": gzip.compress, ".bz2": bz2.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(raw))
    return str(path)


def pairs(sentences: list[TaggedSentence]) -> list[tuple]:
    return [(sentence.tokens, sentence.tags) for sentence in sentences]


def split_of(*tags: str, name: str = "train") -> dict[str, list[TaggedSentence]]:
    rows = [tag.split() for tag in tags]
    return {name: [TaggedSentence(["w"] * len(row), row, f"{name}, row {i}") for i, row in enumerate(rows)]}


def told(function, *arguments, **options):
    """The result, and what was logged."""
    with CaptureLogger(logging.get_logger("modeling_elmo.tagging")) as captured:
        result = function(*arguments, **options)
    return result, captured.out


def test_tags_that_keep_others_from_being_those_of_chunks_are_told():
    splits = {**split_of("O B-PER O"), **split_of("0 B-PER I-PER", name="validation")}
    mended, log = told(mend_tags, splits)
    assert mended == splits
    assert "validation, row 0: the tag '0' is none of chunks, as 'B-PER' is" in log
    assert "(2 such tags)" in told(mend_tags, split_of("0 B-PER NN"))[1] and "such tags" not in log
    assert told(mend_tags, split_of("DT NN", "VB"))[1] == ""


# ---- files of columns


@pytest.mark.parametrize("name", ["a.txt", "a.conll", "eng.train", "a.conll.gz", "a.txt.bz2"])
@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_files_of_columns(tmp_path, name, separator):
    sentences = read_file(write(tmp_path, name, CONLL.replace(" ", separator)), Columns())
    assert pairs(sentences) == SENTENCES
    assert [sentence.place.partition(name)[2] for sentence in sentences] == [", line 3", ", line 8"]


def test_columns_by_number(tmp_path):
    name = write(tmp_path, "a.txt", CONLL.replace("NNP", " NNP"))
    assert pairs(read_file(name, Columns(label="2")))[0] == (["Anna", "Bo", "sleeps"], ["B-NP", "I-NP", "B-VP"])
    assert pairs(read_file(name, Columns(text="1", label="-2")))[1] == (["NNP"], ["B-NP"])


def test_universal_dependencies(tmp_path):
    content = (
        "# text = it's late\n1-2\tit's\t_\t_\n1\tit\tit\tPRON\n2\t's\tbe\tAUX\n2.1\tx\t_\t_\n3\tlate\tlate\tADJ\n\n"
        "# newdoc\n1\t#\t#\tSYM\n"
    )
    for name in ("en.conllu", "EN.CONLLU"):
        sentences = read_file(write(tmp_path, name, content), Columns(task="pos"))
        assert pairs(sentences) == [(["it", "'s", "late"], ["PRON", "AUX", "ADJ"]), (["#"], ["SYM"])]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_files_of_columns_may_hold(tmp_path, end):
    """No end of line at the end, lines of white space between sentences, words with spaces of other kinds, "#"."""
    lines = ["\ufeffa\tO", "new\u00a0york\tB-LOC", "1 000\tO", "  \t", "", "# O".replace(" ", "\t"), "\tO"]
    sentences = read_file(write(tmp_path, "a.txt", end.join(lines)), Columns())
    assert pairs(sentences) == [(["a", "new\u00a0york", "1 000"], ["O", "B-LOC", "O"]), (["#", ""], ["O", "O"])]
    sentences = read_file(write(tmp_path, "a.txt", "new\u00a0york B-LOC"), Columns())
    assert pairs(sentences) == [(["new\u00a0york"], ["B-LOC"])]
    sentences = read_file(write(tmp_path, "a.txt", "# O\n \t\nb O"), Columns())
    assert pairs(sentences) == [(["#"], ["O"]), (["b"], ["O"])]
    assert read_file(write(tmp_path, "a.txt", "\n\n"), Columns()) == []


def test_bytes_that_are_no_text_are_told(tmp_path):
    sentences, log = told(read_file, write(tmp_path, "a.txt", b"caf\xe9 O\n"), Columns())
    assert pairs(sentences) == [(["caf\ufffd"], ["O"])] and "a.txt: 1 invalid UTF-8 sequences" in log


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a O\nb B X\n", {}, r"a\.txt, line 2: 3 columns, but 2 in the lines before"),
        ("a O\n\nb\n", {}, "line 3: 1 columns, but 2 in"),
        ("# newdoc\n# sent 1\na\tN\tO\n", {}, "line 1 has no tab, .*: '# newdoc'; comments are known in .conllu"),
        ("a\tN\tO\n\n# sent 1\nb\tN\tO\n", {}, "line 3 has no tab, though others have: '# sent 1'; comments"),
        ("a N\na\tN\n", {}, "line 1 has no tab, though others have: 'a N'$"),
        ("a O\rb O\r\rc O\r", {}, "line 1 has carriage returns in it: save the file with line ends of Unix"),
        ("a\nb\n", {}, "has no tags: column 0 of 1 is that of the words"),
        ("a O\n", {"label": "2"}, "has 2 columns without names: label_column_name must be 0 to 1, not 2"),
        ("a O\n", {"label": 5000 * "1"}, "label_column_name must be 0 to 1, not 11"),
        ("a O\n", {"text": "tokens"}, "text_column_name must be 0 to 1, not tokens"),
        ("a O\n", {"text": "1"}, "has no tags: column 1 of 2"),
    ],
)
def test_files_of_columns_that_do_not_fit(tmp_path, content, columns, message):
    with pytest.raises(DataError, match=message):
        read_file(write(tmp_path, "a.txt", content), Columns(**columns))


def test_test_data_may_be_without_tags(tmp_path):
    for split in ("train", "validation"):
        with pytest.raises(DataError, match="has no tags"):
            read_files({split: write(tmp_path, "a.txt", "a\nb\n\nc")}, Columns())
    assert pairs(read_file(write(tmp_path, "a.txt", "a\nb\n\nc"), Columns(), needs_tags=False)) == [
        (["a", "b"], None), (["c"], None)
    ]  # fmt: skip
    assert pairs(read_file(write(tmp_path, "a.txt", "a\tN\t\n\tN\t\n"), Columns(), needs_tags=False)) == [
        (["a", ""], None)
    ]
    with pytest.raises(DataError, match="line 3: a word of this sentence has an empty tag in column 1, the last is 1"):
        read_file(write(tmp_path, "a.txt", "a\tO\n\nb\t\n"), Columns(), needs_tags=False)
    name = write(tmp_path, "a.jsonl", [{"tokens": ["a"]}])
    assert pairs(read_file(name, Columns(), needs_tags=False)) == [(["a"], None)]
    with pytest.raises(DataError, match="no column 'ner_tags': set label_column_name to one of tokens"):
        read_file(name, Columns())
    DatasetDict(test=Dataset.from_list([{"tokens": ["a"]}])).save_to_disk(tmp_path / "saved")
    assert pairs(read_dataset(str(tmp_path / "saved"), None, Columns())["test"]) == [(["a"], None)]
    with pytest.raises(DataError, match="no column 'mine'"):
        read_file(write(tmp_path, "b.jsonl", ROWS), Columns(label="mine"), needs_tags=False)
    name = write(tmp_path, "c.jsonl", [{"tokens": ["a"], "mine": ["O"]}])
    assert pairs(read_file(name, Columns(label="mine"), needs_tags=False)) == [(["a"], ["O"])]


# ---- tables


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_tables(tmp_path, name):
    sentences = read_file(write(tmp_path, name, ROWS), Columns())
    assert pairs(sentences) == SENTENCES and sentences[1].place == f"{tmp_path}/{name}, row 1"


def test_columns_by_name(tmp_path):
    row = {"words": ["a"], "pos_tags": ["X"], "tags": ["Y"], "mine": ["Z"], "other": ["b"]}
    name = write(tmp_path, "a.jsonl", [row])
    assert pairs(read_file(name, Columns(task="pos"))) == [(["a"], ["X"])]
    assert pairs(read_file(name, Columns(task="chunk"))) == [(["a"], ["Y"])]
    assert pairs(read_file(name, Columns("other", "mine"))) == [(["b"], ["Z"])]


def test_class_ids_are_named(tmp_path):
    table = Dataset.from_list([{"tokens": ["a", "b"], "tags": [1, 0]}])
    assert pairs(read_file(write(tmp_path, "a.jsonl", list(table)), Columns())) == [(["a", "b"], ["1", "0"])]
    table = table.cast_column("tags", ListOf(ClassLabel(names=["O", "B-X"])))
    table.to_parquet(tmp_path / "b.parquet")
    assert pairs(read_file(str(tmp_path / "b.parquet"), Columns())) == [(["a", "b"], ["B-X", "O"])]
    table.map(lambda _: {"tags": [0, -1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'tags' has the class id -1, but there are 2 classes"):
        read_file(str(tmp_path / "b.parquet"), Columns())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, r"a\.jsonl, row 1: 2 words, but 1 tags"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "row 1: 1 words, but 2 tags"),
        ({"tokens": None, "tags": ["O"]}, "row 1: column 'tokens' has None instead of a list of words"),
        ({"tokens": ["a"], "tags": None}, "row 1: column 'tags' has None instead of a list of tags"),
        ({"tokens": [None], "tags": ["O"]}, r"row 1: column 'tokens' has \[None\] instead"),
        ({"tokens": ["a"], "tags": [None]}, r"row 1: column 'tags' has \[None\] instead"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_file(write(tmp_path, "a.jsonl", [{"tokens": ["x"], "tags": ["O"]}, row]), Columns())


def test_columns_that_are_no_lists(tmp_path):
    name = write(tmp_path, "a.jsonl", [{"tokens": "a b", "tags": "O O"}])
    with pytest.raises(DataError, match="column 'tokens' has a b instead of a list of words"):
        read_file(name, Columns())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "none.txt is no file"),
        ("a.csv", "a,O", r"a\.csv: write a word a line"),
        ("a.jsonl", "{no json", "a.jsonl cannot be read"),
        ("a.txt.gz", None, "a.txt.gz is damaged"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = str(tmp_path / (name or "none.txt"))
    if name:
        (tmp_path / name).write_text(content or "no gzip")
    with pytest.raises(DataError, match=message):
        read_file(path, Columns())


# ---- data sets


def test_folders_of_files(tmp_path):
    write(tmp_path, "train.jsonl.gz", ROWS)
    write(tmp_path, "dev.txt", CONLL)
    write(tmp_path, "test.txt", "a\n")
    write(tmp_path, "README.md", "about")
    splits = read_dataset(str(tmp_path), None, Columns())
    assert {split: pairs(rows) for split, rows in splits.items()} == {
        "train": SENTENCES, "validation": SENTENCES, "test": [(["a"], None)]
    }  # fmt: skip
    write(tmp_path, "valid.txt", CONLL)
    with pytest.raises(DataError, match=r"several files of a split: dev\.txt, .*valid\.txt"):
        read_dataset(str(tmp_path), None, Columns())


def test_data_sets_that_were_saved(tmp_path):
    table = Dataset.from_list(ROWS)
    DatasetDict(train=table, validation=table, more=table).save_to_disk(tmp_path / "saved")
    splits = read_dataset(str(tmp_path / "saved"), None, Columns())
    assert list(splits) == ["train", "validation"] and pairs(splits["validation"]) == SENTENCES
    assert splits["train"][0].place == f"{tmp_path}/saved, train, row 0"
    shutil.rmtree(tmp_path / "saved" / "train")
    with pytest.raises(DataError, match="saved' cannot be loaded: No such files"):
        read_dataset(str(tmp_path / "saved"), None, Columns())


def test_data_sets_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"has no files such as train\.txt"):
        read_dataset(str(tmp_path), None, Columns())
    monkeypatch.setattr("datasets.load_dataset", lambda *_: 1 / 0)
    with pytest.raises(DataError, match="'nobody/nothing' cannot be loaded: division"):
        read_dataset("nobody/nothing", None, Columns())


# ---- tags


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),  # IOB1
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("O I-PER I-LOC I-PER", "O B-PER B-LOC B-PER"),
        ("B-PER I-PER O", "B-PER I-PER O"),
        ("I-a-b I-a-b I-a", "B-a-b I-a-b B-a"),
        ("I I O I B", "B I O B B"),
    ],
)
def test_iob1_is_read_as_iob2(before, after):
    splits = {
        **split_of(before, "O", "B-ANY I-ANY" if "-" in before else "B I"),
        "test": [TaggedSentence(["w"], None, "t")],
    }
    mended, log = told(mend_tags, splits)
    assert mended["train"][0].tags == after.split()
    assert mended["test"] == splits["test"] and splits["train"][0].tags == before.split()
    changes = [one != two for one, two in zip(before.split(), after.split(), strict=True)]
    number = sum(changes)
    assert (f"train: {number} tags I-..." in log) if number else log == ""
    assert told(mend_tags, mended) == (mended, "")
    if number:
        place = rf"train, row 0, word {changes.index(True) + 1} \('w'\)"
        with pytest.raises(DataError, match=rf"{place}: I.* follows .*--broken_tags repair"):
            mend_tags(splits, refuse=True)
    assert mend_tags(mended, refuse=True) == mended


@pytest.mark.parametrize("tags", ["I-X E-X O S-X B-X E-X", "U-X I-X L-X O", "NN VB I", "1 0", "O", "PER LOC O"])
def test_other_schemes_are_left_as_they_are(tags):
    splits = split_of(tags)
    assert told(mend_tags, splits) == (splits, "")


def test_labels_in_order_and_those_that_training_lacks():
    train = split_of("O B-PER I-PER", "I-LOC B-LOC")
    assert label_list(train) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert label_list(split_of("VB NN NN DT")) == ["DT", "NN", "VB"]
    assert label_list(split_of("I B O")) == ["O", "B", "I"]
    assert label_list({**split_of("B-A", name="test"), **train})[-1] == "B-A", "behind those of the training data"
    splits = {**split_of("O", "B-NEW", name="validation"), **train}
    labels, log = told(label_list, splits)
    assert labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-NEW"]
    assert "validation, row 1: the tag 'B-NEW' does not occur in the training data" in log
    assert told(label_list, splits, known=labels) == (labels, "")
    assert told(label_list, split_of("O B-X", name="validation")) == (["O", "B-X"], "")
    with pytest.raises(DataError, match="validation, row 1: the model has no label 'B-NEW'; its labels are O, B-LOC"):
        label_list(splits, known=labels[:-1])
    with pytest.raises(DataError, match="there are no tags"):
        label_list({"test": [TaggedSentence(["w"], None, "test, row 0")]})


def test_data_sets_for_training():
    sentences = [*split_of("O B-X O")["train"], TaggedSentence([], [], ""), TaggedSentence(["a"], None, "")]
    assert list(to_dataset(sentences, ["O", "B-X"])) == [
        {"tokens": ["w"] * 3, "labels": [0, 1, 0], "length": 3},
        {"tokens": [], "labels": [], "length": 0},
        {"tokens": ["a"], "labels": [-100], "length": 1},
    ]
    rows = list(to_dataset(sentences, ["O", "B-X"], max_length=2, keep_empty=False))
    assert [row["labels"] for row in rows] == [[0, 1], [-100]] and rows[0]["tokens"] == ["w", "w"]
    assert to_dataset([], []).column_names == ["tokens", "labels", "length"]


# ---- scores


def test_chunks():
    assert are_chunks(["O", "B-X", "I-X"]) and are_chunks(["I-X", "O"]) and are_chunks(["B", "I", "O"])
    assert are_chunks(["U-X", "L-X", "B-X"]) and are_chunks(["I-X", "E-Y"])
    assert not any(map(are_chunks, (["NN", "VB"], ["O"], ["PER", "O"], ["0", "1"], ["-LRB-", "NN"], [])))


def slow_entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Well-formed IOB2 only: a B- and all I- of its type behind it."""
    entities = set()
    for start, tag in enumerate(tags):
        if tag[0] == "B":
            rest = list(itertools.takewhile(lambda other: other == "I" + tag[1:], tags[start + 1 :]))  # noqa: B023
            entities.add((tag[2:], start, start + len(rest)))
    return entities


def test_scores_are_those_of_whole_entities():
    rng = random.Random(0)
    labels = ["O", "B-X", "I-X", "B-Y-Z", "I-Y-Z"]
    rows = [rng.choices(labels, k=12) for _ in range(40)]
    gold = [row.tags for row in mend_tags(split_of(*map(" ".join, rows)))["train"]]
    noisy = [[tag if rng.random() < 0.8 else rng.choice(labels) for tag in row] for row in gold]
    predicted = [row.tags for row in mend_tags(split_of(*map(" ".join, noisy)))["train"]]
    right = {kind: 0 for kind in ("X", "Y-Z")}
    numbers = {"gold": dict(right), "predicted": dict(right)}
    for one, two in zip(gold, predicted, strict=True):
        for name, entities in (("gold", slow_entities(one)), ("predicted", slow_entities(two))):
            for kind, *_ in entities:
                numbers[name][kind] += 1
        for kind, *_ in slow_entities(one) & slow_entities(two):
            right[kind] += 1
    overall, types = entity_scores(gold, predicted)
    assert list(types) == ["X", "Y-Z"]
    for kind, row in types.items():
        assert row["precision"] == pytest.approx(right[kind] / numbers["predicted"][kind])
        assert row["recall"] == pytest.approx(right[kind] / numbers["gold"][kind])
        assert row["number"] == numbers["gold"][kind]
    total = [sum(part.values()) for part in (right, numbers["predicted"], numbers["gold"])]
    assert overall == {
        "precision": pytest.approx(total[0] / total[1]),
        "recall": pytest.approx(total[0] / total[2]),
        "f1": pytest.approx(2 * total[0] / (total[1] + total[2])),
    }
    assert entity_scores(gold, predicted, strict=True)[0]["f1"] == pytest.approx(overall["f1"])
    assert entity_scores(gold, noisy)[0] == overall, "as conlleval does, an I- without a beginning begins an entity"
    assert entity_scores(gold, noisy, strict=True)[0] != overall


def test_scores_of_other_schemes():
    gold, predicted = [["B-X", "I-X", "L-X", "U-Y", "O"]], [["B-X", "I-X", "L-X", "O", "U-Y"]]
    overall, types = entity_scores(gold, predicted)
    assert overall == {"precision": 0.5, "recall": 0.5, "f1": 0.5} and types["X"]["f1"] == 1
    renamed = [[[tag.replace("L-", "E-").replace("U-", "S-") for tag in row] for row in part] for part in (gold, predicted)]  # fmt: skip  # noqa: E501
    assert entity_scores(*renamed) == (overall, types)
    assert entity_scores([["U-Y", "U-Y"]], [["U-Y", "O"]])[0]["recall"] == 0.5, "each is an entity of its own"
    with pytest.raises(DataError, match="strict scores are for IOB2"):
        entity_scores(gold, predicted, strict=True)


def test_scores_of_nothing():
    zeros = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert entity_scores([["O"], []], [["O"], []]) == (zeros, {})
    assert entity_scores([["B-X"]], [["O"]]) == (zeros, {"X": {**zeros, "number": 1}})
    assert entity_scores([["O"]], [["B-X"]])[0] == zeros


def test_metrics_for_trainer():
    labels = ["O", "B-X", "I-X", "B-Y"]
    gold = np.array([[-100, 1, 2, -100], [-100, 3, 0, 0]])
    predicted = np.array([[-100, 1, 2, -100], [-100, 1, 0, -100]])
    output = SimpleNamespace(predictions=np.where(gold == -100, -100, predicted.clip(0)), label_ids=gold)
    assert tags_of(output.predictions, gold, labels) == [["B-X", "I-X"], ["B-X", "O", "O"]]
    metrics = scorer(labels)(output)
    assert scorer(labels)(SimpleNamespace(predictions=predicted.clip(0), label_ids=gold)) == metrics
    assert metrics == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 0.8}
    by_type = scorer(labels, by_type=True)(output)
    assert by_type == {
        **metrics,
        **{"X_precision": 0.5, "X_recall": 1.0, "X_f1": pytest.approx(2 / 3), "X_number": 1},
        **{"Y_precision": 0.0, "Y_recall": 0.0, "Y_f1": 0.0, "Y_number": 1},
    }
    assert scorer(["DT", "NN", "VB", "IN"])(output) == {"accuracy": 0.8}
    assert scorer(labels)(SimpleNamespace(predictions=gold * 0, label_ids=gold * 0 - 100)) == {}
    assert accuracy([["a", "b"], []], [["a", "c"], []]) == 0.5


def test_predictions_can_be_read_again(tmp_path):
    sentences = [[("Anna", "B-PER", "O"), ("New York", "B-LOC", "B-LOC"), ("", "O", "O")], [], [("b", "O", "O")]]
    write_columns(tmp_path / "out.txt", sentences)
    assert (tmp_path / "out.txt").read_text() == "Anna B-PER O\nNew_York B-LOC B-LOC\n_ O O\n\n\nb O O\n\n"
    rows = read_file(str(tmp_path / "out.txt"), Columns(label="1"))
    assert pairs(rows) == [(["Anna", "New_York", "_"], ["B-PER", "B-LOC", "O"]), (["b"], ["O"])]
