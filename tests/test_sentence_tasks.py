"""Sentence tasks: tables of all kinds, columns and labels as they come, and scores against their definitions."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from modeling_elmo.sentence_tasks import GLUE, TaskSpec, load_files, load_task, predictions_of, prepare, scorer
from modeling_elmo.text_files import DataError

ROWS = [{"sentence": "good", "label": "yes"}, {"sentence": "bad one", "label": "no"}]


def tables(train, **others):
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in {"train": train, **others}.items()})


def write(folder, name: str, rows) -> str:
    path = folder / name
    kind = name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
        return str(path)
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        lines = [separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]
        text = "\n".join(lines) + "\n"
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
def test_files_of_all_kinds(tmp_path, name):
    data = prepare(load_files({"train": write(tmp_path, name, ROWS)}), TaskSpec())
    assert list(data.train["texts"]) == [["good"], ["bad one"]]
    assert list(data.train["labels"]) == [1, 0] and data.label_names == ["no", "yes"]
    assert list(data.train["length"]) == [1, 2]


def test_a_folder_with_a_folder_for_each_task(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", "train.jsonl.gz", ROWS)
    write(tmp_path / "mine", "validation.jsonl", ROWS[:1])
    (tmp_path / "mine" / "README.md").write_text("about")
    found = load_task("mine", str(tmp_path))
    assert {split: len(table) for split, table in found.items()} == {"train": 2, "validation": 1}
    with pytest.raises(DataError, match="has no folder 'yours'; it has mine"):
        load_task("yours", str(tmp_path))
    (tmp_path / "mine" / "validation.jsonl").rename(tmp_path / "mine" / "Dev.jsonl")
    assert set(load_task("mine", str(tmp_path))) == set(found)
    write(tmp_path / "mine", "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"several files of a split: .*train\.jsonl, train\.jsonl\.gz"):
        load_task("mine", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no files such as train\.jsonl\.gz"):
        load_task("empty", str(tmp_path))
    with pytest.raises(DataError, match=r"'mine' is no task of GLUE \(cola, "):
        load_task("mine", None)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"sentence1": "a", "sentence2": "b", "idx": 3}, ("sentence1", "sentence2")),
        ({"question": "a", "sentence": "b"}, ("question", "sentence")),
        ({"premise": "a", "hypothesis": "b"}, ("premise", "hypothesis")),
        ({"text": "a", "label_text": "c"}, ("text",)),
    ],
)
def test_columns_of_sentences_are_found_by_their_names(row, columns):
    data = prepare(tables([{**row, "label": 0}]), TaskSpec())
    assert data.columns == columns
    assert list(data.train["texts"]) == [[row[column] for column in columns]]
    assert list(data.train["length"]) == [len(columns)]


def test_columns_that_are_named_come_before_those_of_the_task():
    rows = tables([{"sentence": "a", "other": "b", "label": 0}])
    assert prepare(rows, GLUE["sst2"]).columns == ("sentence",)
    assert prepare(rows, GLUE["sst2"], ["other"]).columns == ("other",)


def test_columns_that_are_missing_are_named_with_those_that_are_there():
    with pytest.raises(
        DataError, match=r"which columns hold the sentences\? Set --sentence_columns .*'words', 'label'"
    ):
        prepare(tables([{"words": "a", "label": 0}]), TaskSpec())
    with pytest.raises(DataError, match="train has no column 'tag'; its columns are sentence, label"):
        prepare(tables(ROWS), TaskSpec(), label_column="tag")
    with pytest.raises(DataError, match="validation has no column 'sentence'; its columns are text, label"):
        prepare(tables(ROWS, validation=[{"text": "a", "label": "yes"}]), TaskSpec(), ["sentence"])
    with pytest.raises(DataError, match="train, row 1: column 'sentence' has None instead of a text"):
        prepare(tables([{"sentence": "a", "label": 0}, {"sentence": None, "label": 1}]), TaskSpec())


def test_labels_of_all_kinds():
    def labels(values, spec=None, **features):
        table = Dataset.from_dict({"text": ["a"] * len(values), "label": values})
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        data = prepare(DatasetDict(train=table), spec or TaskSpec())
        return list(data.train["labels"]), data.label_names

    assert labels([10, 2, 10]) == ([1, 0, 1], ["2", "10"])
    assert labels(["b", "a"]) == ([1, 0], ["a", "b"])
    assert labels([1.0, 0.0]) == ([1, 0], ["0", "1"])
    assert labels([True, False]) == ([1, 0], ["False", "True"])
    assert labels([1.5, 0.0]) == ([1.5, 0.0], None)
    assert labels([1, 0], TaskSpec(is_regression=True)) == ([1.0, 0.0], None)
    assert labels([1], TaskSpec(label_names=("yes", "no"))) == ([1], ["yes", "no"])
    assert labels([1.0, 2.5], TaskSpec(is_regression=False)) == ([0, 1], ["1", "2.5"])
    assert labels(["2.7", "3.5", "other"], TaskSpec(is_regression=False)) == ([0, 1, 2], ["2.7", "3.5", "other"])
    assert labels(["2.7", "old", "other"]) == ([0, 1, 2], ["2.7", "old", "other"])
    assert labels(["1", "2", "other"]) == ([0, 1, 2], ["1", "2", "other"])  # those are names, and no ids
    assert labels([1, 0], label=ClassLabel(names=["x", "y", "z"])) == ([1, 0], ["x", "y", "z"])
    rte = TaskSpec(label_names=GLUE["rte"].label_names)
    assert labels([1, 0], rte) == ([1, 0], ["entailment", "not_entailment"])
    assert labels(["not_entailment", "entailment"], rte) == ([1, 0], ["entailment", "not_entailment"])


def test_ids_of_classes_are_read_by_the_split_that_has_them():
    """Splits may number their classes otherwise, or have names."""
    train = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).cast_column("label", ClassLabel(names=["z", "a"]))
    other = train.cast_column("label", ClassLabel(names=["a", "z"]))
    named = Dataset.from_dict({"text": ["a", "b"], "label": ["a", "z"]})
    data = prepare(DatasetDict(train=train, validation=other, validation_named=named), TaskSpec())
    assert data.label_names == ["z", "a"] and list(data.train["labels"]) == [0, 1]
    assert (
        list(data.validation["validation"]["labels"]) == list(data.validation["validation_named"]["labels"]) == [1, 0]
    )
    assert list(prepare(DatasetDict(train=named, validation=other), TaskSpec()).validation["validation"]["labels"]) == [
        0,
        1,
    ]


def test_labels_are_the_same_whatever_each_file_makes_of_them(tmp_path):
    """Numbers in one file are numbers as text in another, beside a word."""
    for name, rows in {
        "train.csv": [{"text": "a", "label": label} for label in ("0", "1", "other")],
        "validation.jsonl": [{"text": "a", "label": label} for label in (1, 0)],
        "test.csv": [{"text": "a", "label": label} for label in ("1.0", "other")],
    }.items():
        write(tmp_path, name, rows)
    files = {path.stem: str(path) for path in tmp_path.iterdir()}
    data = prepare(load_files(files), TaskSpec())
    assert data.label_names == ["0", "1", "other"]
    assert list(data.validation["validation"]["labels"]) == [1, 0] and list(data.test["test"]["labels"]) == [1, 2]


def test_labels_of_a_model_are_kept():
    rows = tables([{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}])
    assert list(prepare(rows, TaskSpec(), known=["yes", "no", "perhaps"]).train["labels"]) == [0, 1]
    ids = tables([{"text": "a", "label": 2}, {"text": "b", "label": 0}])
    assert list(prepare(ids, TaskSpec(), known=["yes", "no", "perhaps"]).train["labels"]) == [2, 0]
    assert list(prepare(ids, TaskSpec(), known=["2", "0"]).train["labels"]) == [0, 1]
    swapped = prepare(
        tables([{"sentence1": "a", "sentence2": "b", "label": 0}]), GLUE["wnli"], known=["entailment", "not_entailment"]
    )
    assert list(swapped.train["labels"]) == [1], "0 is the task's not_entailment"
    for zero in ("0", 0.0, "0.0", " 0"):
        rows = tables([{"sentence1": "a", "sentence2": "b", "label": zero}])
        assert list(prepare(rows, GLUE["wnli"], known=["entailment", "not_entailment"]).train["labels"]) == [1], zero
    rows = tables([{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}])
    with pytest.raises(
        DataError, match="train, row 1: the label 'no' is none of the model's; known labels: yes, perhaps"
    ):
        prepare(rows, TaskSpec(), known=["yes", "perhaps"])
    fractions = tables([{"text": "a", "label": "0.5"}, {"text": "b", "label": "1"}])
    with pytest.raises(DataError, match=r"the label 0\.5 is none of the model's"):
        prepare(fractions, TaskSpec(), known=["0", "1"])
    only_test = DatasetDict(test=Dataset.from_dict({"text": ["a"]}))
    assert prepare(only_test, TaskSpec(), known=["x", "y"]).label_names == ["x", "y"]
    with pytest.raises(DataError, match="no labels to learn or to score"):
        prepare(only_test, TaskSpec())


def test_ids_of_glue_have_the_names_that_the_hub_gives_them():
    names = {task: spec.label_names[1] for task, spec in GLUE.items() if spec.label_names}
    assert names == {
        "cola": "acceptable", "sst2": "positive", "mrpc": "equivalent", "qqp": "duplicate", "mnli": "neutral",
        "qnli": "not_entailment", "rte": "not_entailment", "wnli": "entailment",
    }  # fmt: skip
    assert GLUE["mnli"].label_names == ("entailment", "neutral", "contradiction")


def test_glue_hides_labels_of_both_test_sets_of_mnli():
    rows = [{"premise": "a", "hypothesis": "b", "label": 0}]
    hidden = [{**rows[0], "label": -1}]
    data = prepare(tables(rows, validation_matched=rows, test_matched=hidden, test_mismatched=hidden), GLUE["mnli"])
    assert (
        list(data.test) == ["test_matched", "test_mismatched"]
        and "labels" not in data.test["test_matched"].column_names
    )


def test_a_class_of_minus_one_is_a_class():
    rows = [{"text": "a", "label": -1}, {"text": "b", "label": 1}]
    assert list(prepare(tables(rows, test=rows[:1]), TaskSpec()).test["test"]["labels"]) == [0]


@pytest.mark.parametrize(
    ("values", "is_regression", "message"),
    [
        ([1.5, float("nan")], None, "row 1: the label None is no number"),
        ([1.5, -1e20], None, r"row 1: the label -1e\+20 is too large to be learnt: divide all labels"),
        ([1.5, float("inf")], True, "row 1: the label 'inf' is no number"),
        (
            ["1.5", "2", "N/A", "4,5", "3"],
            None,
            "row 2: the label 'N/A' is no number, but most .* --is_regression false",
        ),
        (["0.5", "nan", "2"], None, "row 1: the label 'nan' is no number, but most"),
        (["yes", ""], None, "row 1: the label None is none"),
        ([[1], [2]], None, r"row 0: column 'label' has \[1\] instead of a label"),
    ],
)
def test_what_is_no_label_is_told_with_its_row(values, is_regression, message):
    table = Dataset.from_dict({"text": ["a"] * len(values), "label": values})
    with pytest.raises(DataError, match=f"train, {message}"):
        prepare(DatasetDict(train=table), TaskSpec(is_regression=is_regression))


def test_an_endless_number_is_no_label():
    tables = DatasetDict({"train": Dataset.from_dict({"sentence": ["a"], "label": [5000 * "9"]})})
    with pytest.raises(DataError, match="row 0: the label '99"):
        prepare(tables, GLUE["sst2"])


def test_labels_that_training_does_not_have_are_refused():
    with pytest.raises(
        DataError, match="validation, row 0: the label 'maybe' does not occur in the training data; kno"
    ):
        prepare(tables(ROWS, validation=[{"sentence": "a", "label": "maybe"}]), TaskSpec())
    with pytest.raises(DataError, match="train, row 1: the label None is none"):
        prepare(tables([*ROWS[:1], {"sentence": "a", "label": None}]), TaskSpec())
    with pytest.raises(DataError, match="train, row 0: the label 'high' is no number"):
        prepare(tables([{"sentence1": "a", "sentence2": "b", "label": "high"}]), GLUE["stsb"])


def test_labels_are_those_of_the_training_data_or_of_the_first_split():
    others = [*ROWS, {"sentence": "a", "label": "maybe"}]
    data = prepare(tables(ROWS, test=ROWS[:1]), TaskSpec())
    assert data.label_names == ["no", "yes"] and data.num_labels == 2
    with pytest.raises(DataError, match="validation, row 2: the label 'maybe' does not occur in the training data"):
        prepare(DatasetDict(validation=Dataset.from_list(others), **tables(ROWS)), TaskSpec())
    alone = prepare(DatasetDict(validation=Dataset.from_list(others)), TaskSpec())
    assert alone.label_names == ["maybe", "no", "yes"] and alone.train is None


def test_test_data_may_have_no_labels():
    train = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    for missing in ({}, {"label": -1}, {"label": None}):
        data = prepare(tables(train, test=[{"sentence": "a", **missing}]), TaskSpec())
        assert data.test["test"].column_names == ["texts", "length"] and "labels" in data.train.column_names
    numbers = [{"sentence1": "a", "sentence2": "b", "label": 1.5}]
    hidden = [{**numbers[0], "label": -1.0}]  # as the Hub has STS-B
    assert "labels" not in prepare(tables(numbers, test=hidden), GLUE["stsb"]).test["test"].column_names
    with pytest.raises(DataError, match="test, row 1: the label -1 does not occur"):
        prepare(tables(train, test=[train[0], {"sentence": "a", "label": -1}]), TaskSpec())


def test_scores_follow_their_definitions():
    gold = np.array([1, 1, 1, 0, 0, 1])
    logits = np.eye(2)[[1, 0, 1, 0, 1, 1]]
    names = ("accuracy", "f1", "matthews_correlation", "macro_f1")
    scores = scorer(names)(SimpleNamespace(predictions=logits, label_ids=gold))
    tp, fp, fn, tn = 3, 1, 1, 1
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert scores["macro_f1"] == pytest.approx((0.75 + 0.5) / 2)
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews_correlation"] == pytest.approx((tp * tn - fp * fn) / root)

    numbers = SimpleNamespace(predictions=np.array([[1.0], [2.0], [10.0]]), label_ids=np.array([0.0, 1.0, 2.0]))
    scores = scorer(("pearson", "spearmanr"))(numbers)
    assert scores["spearmanr"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 10], [0, 1, 2])[0, 1])
    assert predictions_of(numbers.predictions).tolist() == [1, 2, 10]
    assert predictions_of((logits, None)).tolist() == [1, 0, 1, 0, 1, 1]  # of a model that returns more


@pytest.mark.parametrize("known", [None, ["equivalent", "not_equivalent"], ["other", "not_equivalent", "equivalent"]])
def test_f1_is_that_of_the_tasks_own_class(known):
    """Of equivalent pairs in MRPC, wherever a model that was trained before has that label."""
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 1, 1, 0)]
    data = prepare(tables(rows), GLUE["mrpc"], known=known)
    predicted = ["equivalent", "equivalent", "not_equivalent", "not_equivalent"]
    logits = np.eye(data.num_labels)[[data.label_names.index(name) for name in predicted]]
    output = SimpleNamespace(predictions=logits, label_ids=np.array(data.train["labels"]))
    scores = scorer(data.metrics, data.positive)(output)
    assert scores == {"f1": pytest.approx(2 * 2 / (2 * 2 + 1)), "accuracy": 0.75}


@pytest.mark.data
@pytest.mark.parametrize("name", ["cola", "sst2", "sst5", "mrpc", "stsb", "rte", "wnli", "qnli", "sick", "trec"])
def test_real_tasks(shared, name):
    data = prepare(load_task(name, str(shared / "data" / "tasks")), GLUE.get(name, TaskSpec()))
    expected = {"stsb": 1, "sst5": 5, "sick": 3, "trec": 6}.get(name, 2)
    assert data.num_labels == expected
    assert len(data.train) > 600 and len(data.validation["validation"]) > 50
