"""Sentence tasks: where their data come from, what their labels are, and how they are scored.

The nine of GLUE by name (Wang et al. 2018, arXiv 1804.07461), and any table with one or two columns of sentences and
one of labels.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from .tables import SPLIT_NAMES, files_by_split, is_table, read_table_file
from .text_files import DataError

Metrics = dict[str, float]
# What the names of files begin with, and the split they hold; all but training data have two parts in MNLI.
SPLITS = {
    f"{name}{part}": f"{split}{part}"
    for name, split in SPLIT_NAMES.items()
    for part in (["", "_matched", "_mismatched"] if split != "train" else [""])
}
LARGEST_LABEL = 1e18  # the squares of larger differences are soon beyond float32
# Columns that are taken for sentences when nothing else is said, the first that fits.
SENTENCE_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("sentence",), ("text",),
)  # fmt: skip


@dataclass
class TaskSpec:
    """Columns, names of labels and metrics of a task. `is_regression`: `None` to be told by the labels."""

    columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    is_regression: bool | None = None
    validation: tuple[str, ...] = ("validation",)


GLUE = {
    "cola": TaskSpec(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    "sst2": TaskSpec(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": TaskSpec(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "qqp": TaskSpec(("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "stsb": TaskSpec(("sentence1", "sentence2"), None, ("spearmanr", "pearson"), True),
    "mnli": TaskSpec(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "qnli": TaskSpec(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "rte": TaskSpec(("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "wnli": TaskSpec(("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",)),
}  # fmt: skip
GLUE_ON_HUB = "nyu-mll/glue"
WHOLE_NUMBER = re.compile(r"^(-?(?:0|[1-9][0-9]*))\.0+$")  # 3.0


@dataclass
class SentenceData:
    """A task's data, ready to train on: columns `texts` (one or two strings), `length`, `labels`.

    `labels` are class ids, or numbers if `label_names` is `None`. Test data may have none. `positive` is the class that
    the task's F1 is of.
    """

    train: Dataset | None
    validation: dict[str, Dataset]
    test: dict[str, Dataset]
    label_names: list[str] | None
    metrics: tuple[str, ...]
    columns: tuple[str, ...] = field(default=())
    positive: int = 1

    @property
    def num_labels(self) -> int:
        """How many scores the model gives."""
        return len(self.label_names) if self.label_names is not None else 1


def load_files(files: dict[str, str]) -> DatasetDict:
    """Tables from files by split; see `read_table_file`."""
    return DatasetDict({split: read_table_file(name) for split, name in files.items()})


def load_task(name: str, data_dir: str | None) -> DatasetDict:
    """The tables of a named task: from `data_dir/name`, or a GLUE task from the Hub.

    Raises:
        DataError: an unknown name, a folder without files, or a Hub that cannot be reached.
    """
    if data_dir is not None:
        folder = Path(data_dir, name)
        if not folder.is_dir():
            there = sorted(path.name for path in Path(data_dir).iterdir()) if Path(data_dir).is_dir() else []
            raise DataError(f"--data_dir {data_dir} has no folder {name!r}; it has {', '.join(there) or 'nothing'}")
        files = files_by_split((path for path in folder.iterdir() if is_table(path.name)), SPLITS)
        if not files:
            raise DataError(f"{folder} has no files such as train.jsonl.gz and validation.jsonl.gz")
        return load_files(files)
    if name not in GLUE:
        raise DataError(
            f"{name!r} is no task of GLUE ({', '.join(GLUE)}): give its files by --data_dir or --train_file"
        )
    try:
        return load_dataset(GLUE_ON_HUB, name)
    except Exception as error:
        raise DataError(f"{GLUE_ON_HUB} cannot be loaded ({error}): give the files by --data_dir") from error


def prepare(
    tables: DatasetDict,
    spec: TaskSpec,
    columns: Sequence[str] | None = None,
    label_column: str = "label",
    known: Sequence[str] | None = None,
) -> SentenceData:
    """Texts, lengths and label ids from tables; test data whose labels are all missing get no column of them.

    Args:
        columns: one or two columns of sentences; by default the task's, or the usual names.
        known: the labels of a model that was fine-tuned before: ids are its own.

    Raises:
        DataError: missing columns, missing texts or labels, labels that training or the model does not have.
    """
    first = next(iter(tables.values()))
    columns = tuple(columns or spec.columns or _guess_columns(first))
    for split, table in tables.items():
        for column in [*columns, *([] if split.startswith("test") else [label_column])]:
            if column not in table.column_names:
                raise DataError(f"{split} has no column {column!r}; its columns are {', '.join(table.column_names)}")
    labels = {split: _labels(table, label_column, split, spec.label_names) for split, table in tables.items()}
    names = _label_names(tables, labels, spec, label_column, known)
    to_id: Callable[[str | None, str], float] = _to_number if names is None else _id_of(names, known is not None)
    hidden = {None, "-1"} - set(names or ())  # how test data hide them
    prepared = {}
    for split, table in tables.items():
        texts = list(zip(*(_strings(table, column, split) for column in columns), strict=True))
        rows: dict[str, list[Any]] = {"texts": [list(row) for row in texts]}
        rows["length"] = [sum(len(text.split()) for text in row) for row in texts]
        if not split.startswith("test") or not set(labels[split]) <= hidden:
            rows["labels"] = [to_id(value, f"{split}, row {row}") for row, value in enumerate(labels[split])]
        prepared[split] = Dataset.from_dict(rows)
    validation = {split: table for split, table in prepared.items() if split.startswith("validation")}
    test = {split: table for split, table in prepared.items() if split.startswith("test")}
    of_task = (spec.label_names or ())[1:2]  # a model's own labels may be in another order
    positive = next((number for number, name in enumerate(names or ()) if name in of_task), 1)
    return SentenceData(prepared.get("train"), validation, test, names, spec.metrics, columns, positive)


def _guess_columns(table: Dataset) -> tuple[str, ...]:
    for columns in SENTENCE_COLUMNS:
        if set(columns) <= set(table.column_names):
            return columns
    raise DataError(f"which columns hold the sentences? Set --sentence_columns to one or two of {table.column_names}")


def _column(table: Dataset, name: str) -> list[Any]:
    """The values of a column, `None` if there is no such column (a test set without labels)."""
    # All at once: a column by itself would be read row by row.
    return table.select_columns(name)[:][name] if name in table.column_names else [None] * len(table)


def _strings(table: Dataset, column: str, split: str) -> list[str]:
    values = _column(table, column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{split}, row {row}: column {column!r} has {value!r} instead of a text")
    return values


def _labels(table: Dataset, column: str, split: str, task_names: Sequence[str] | None) -> list[str | None]:
    """The labels of a table as text, whatever it holds: names of classes, numbers (3.0 as "3"), truth values.

    Ids of classes become names, by the table itself (each split's may number them in its own way) or by the task.
    """
    feature = table.features.get(column)
    names = feature.names if isinstance(feature, ClassLabel) else task_names or ()
    by_id = {str(number): name for number, name in enumerate(names)}

    def text_of(value: Any, row: int) -> str | None:
        if isinstance(value, list | dict):
            raise DataError(f"{split}, row {row}: column {column!r} has {value!r:.60} instead of a label")
        text = "" if value is None or value != value else WHOLE_NUMBER.sub(r"\1", str(value).strip())  # NaN
        return (text if text in names else by_id.get(text, text)) or None

    return [text_of(value, row) for row, value in enumerate(_column(table, column))]


def _label_names(
    tables: DatasetDict, labels: dict[str, list[str | None]], spec: TaskSpec, column: str, known: Sequence[str] | None
) -> list[str] | None:
    """The names of the labels in the order of their ids; `None` for numbers."""
    source = "train" if "train" in tables else next(iter(tables))
    if spec.is_regression or (spec.is_regression is None and known is None and _are_numbers(labels[source], source)):
        return None
    if known is not None:
        return list(known)
    if spec.label_names:
        return list(spec.label_names)
    feature = tables[source].features.get(column)
    distinct = {label for label in labels[source] if label is not None}
    names = list(feature.names) if isinstance(feature, ClassLabel) else sorted(distinct, key=_by_number)
    if not names:
        raise DataError(f"the {source} data have no labels to learn or to score")
    return names


def _are_numbers(labels: Sequence[str | None], split: str) -> bool:
    """Whether labels are to be predicted as numbers: those of which some have a fraction.

    Raises:
        DataError: most are such numbers, and some are none.
    """
    given = {row: label for row, label in enumerate(labels) if label is not None}
    numbers = {row: number for row, label in given.items() if (number := _number(label)) is not None}
    if all(number == int(number) for number in numbers.values()):
        return False
    others = [row for row in given if row not in numbers]
    if 0 < len(others) < len(numbers):
        raise DataError(
            f"{split}, row {others[0]}: the label {given[others[0]]!r} is no number, but most are, with fractions: "
            "correct it, or pass --is_regression false if labels are names of classes"
        )
    return not others


def _number(label: str) -> float | None:
    """The finite number that a label is, or `None`."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _by_number(label: str) -> tuple[bool, float, str]:
    """Numbers by size, then names."""
    number = _number(label)
    return number is None, number or 0.0, label


def _id_of(names: Sequence[str], are_the_models: bool) -> Callable[[str | None, str], int]:
    """What turns a label into its id: a name does, and an id itself where no name is a number."""
    ids = {name: number for number, name in enumerate(names)}
    if all(_number(name) is None for name in names):
        ids |= {str(number): number for number in ids.values()}

    def to_id(label: str | None, place: str) -> int:
        if label is None or label not in ids:
            shown = label if label is None or _number(label) is not None else repr(label)
            where = "is none of the model's" if are_the_models else "does not occur in the training data"
            where = "is none" if label is None else where
            raise DataError(f"{place}: the label {shown} {where}; known labels: {', '.join(names)}")
        return ids[label]

    return to_id


def _to_number(label: str | None, place: str) -> float:
    number = None if label is None else _number(label)
    if number is None:
        raise DataError(f"{place}: the label {label!r} is no number, but this is a regression")
    if abs(number) > LARGEST_LABEL:
        raise DataError(f"{place}: the label {label} is too large to be learnt: divide all labels by the same number")
    return number


def scorer(names: Sequence[str], positive: int = 1) -> Callable[[Any], Metrics]:
    """`compute_metrics` for `Trainer` with these metrics: accuracy, f1 (of the class `positive`), macro_f1,
    matthews_correlation, pearson, spearmanr.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    except ImportError as error:
        raise DataError(f"scores need scikit-learn ({error}): pip install 'modeling-elmo[finetune]'") from error

    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "accuracy": accuracy_score,
        "f1": lambda gold, predicted: f1_score(gold == positive, predicted == positive),
        "macro_f1": lambda gold, predicted: f1_score(gold, predicted, average="macro"),
        "matthews_correlation": matthews_corrcoef,
        "pearson": lambda gold, predicted: pearsonr(gold, predicted).statistic if len(gold) > 1 else math.nan,
        "spearmanr": lambda gold, predicted: spearmanr(gold, predicted).statistic if len(gold) > 1 else math.nan,
    }

    def compute(prediction: Any) -> Metrics:
        gold = np.asarray(prediction.label_ids)
        predicted = predictions_of(prediction.predictions)
        return {name: float(functions[name](gold, predicted)) for name in names}

    return compute


def predictions_of(logits: Any) -> np.ndarray:
    """Class ids from logits (examples, labels), or numbers from (examples, 1)."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
