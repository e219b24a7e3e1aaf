"""Sentence tasks: where their data come from, what their labels are, and how they are scored.

The nine of GLUE by name (Wang et al. 2018, arXiv 1804.07461), and any table with one or two columns of sentences and
one of labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from .text_files import DataError

Metrics = dict[str, float]
SPLITS = ("train", "validation", "test")
FILE_TYPES = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
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
NO_LABELS = {None, -1}  # how test sets hide them


@dataclass
class SentenceData:
    """A task's data, ready to train on: columns `texts` (one or two strings), `length`, `labels`.

    `labels` are class ids, or numbers if `label_names` is `None`. A test set may have none.
    """

    train: Dataset | None
    validation: dict[str, Dataset]
    test: Dataset | None
    label_names: list[str] | None
    metrics: tuple[str, ...]
    columns: tuple[str, ...] = field(default=())

    @property
    def num_labels(self) -> int:
        """How many scores the model gives."""
        return len(self.label_names) if self.label_names is not None else 1


def load_files(files: dict[str, str]) -> DatasetDict:
    """Tables from files (json, jsonl, csv, tsv, parquet, also .gz) by split.

    Raises:
        DataError: a file that is not there, of an unknown kind, or that cannot be read.
    """
    tables = {}
    for split, name in files.items():
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{name} is no file")
        suffix = next((part for part in reversed(path.name.lower().split(".")) if part in FILE_TYPES), None)
        if suffix is None:
            raise DataError(f"{name}: a table must end in .{', .'.join(FILE_TYPES)}, compressed or not")
        options: dict[str, Any] = {"sep": "\t"} if suffix == "tsv" else {}
        try:
            tables[split] = load_dataset(FILE_TYPES[suffix], data_files=name, split="train", **options)
        except Exception as error:  # `datasets` raises whatever its parsers raise
            cause = str(error.__cause__ or error).strip().splitlines()
            raise DataError(f"{name} cannot be read: {cause[0] if cause else type(error).__name__}") from error
    return DatasetDict(tables)


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
        splits = [*SPLITS, "validation_matched", "validation_mismatched"]
        paths = sorted(path for path in folder.iterdir() if set(path.name.split(".")) & set(FILE_TYPES))
        files = {path.name.split(".")[0]: str(path) for path in paths if path.name.split(".")[0] in splits}
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
    tables: DatasetDict, spec: TaskSpec, columns: Sequence[str] | None = None, label_column: str = "label"
) -> SentenceData:
    """Texts, lengths and label ids from tables; a test set whose labels are all missing gets no column of them.

    Args:
        columns: one or two columns of sentences; by default the task's, or the usual names.

    Raises:
        DataError: missing columns, missing texts or labels, labels of validation that training does not have.
    """
    first = next(iter(tables.values()))
    columns = tuple(columns or spec.columns or _guess_columns(first))
    for split, table in tables.items():
        for column in [*columns, *([label_column] if split != "test" else [])]:
            if column not in table.column_names:
                raise DataError(f"{split} has no column {column!r}; its columns are {', '.join(table.column_names)}")
    names, to_id = _labels(tables, spec, label_column)
    prepared = {}
    for split, table in tables.items():
        texts = list(zip(*(_strings(table, column, split) for column in columns), strict=True))
        rows: dict[str, list[Any]] = {"texts": [list(row) for row in texts]}
        rows["length"] = [sum(len(text.split()) for text in row) for row in texts]
        labels = _column(table, label_column)
        if split != "test" or not set(labels) <= NO_LABELS:
            rows["labels"] = [to_id(value, split, row) for row, value in enumerate(labels)]
        prepared[split] = Dataset.from_dict(rows)
    validation = {split: prepared[split] for split in prepared if split.startswith("validation")}
    return SentenceData(prepared.get("train"), validation, prepared.get("test"), names, spec.metrics, columns)


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


def _labels(
    tables: DatasetDict, spec: TaskSpec, column: str
) -> tuple[list[str] | None, Callable[[Any, str, int], float | int]]:
    """The names of the labels (`None` for numbers), and what turns a label into an id."""
    source = tables.get("train") or next(iter(tables.values()))
    feature = source.features.get(column)
    values = [value for value in _column(source, column) if value is not None]
    is_regression = spec.is_regression
    if is_regression is None:
        is_regression = any(isinstance(value, float) and value != int(value) for value in values)
    if is_regression:
        return None, _to_number
    if spec.label_names:
        distinct: list[Any] = list(range(len(spec.label_names)))
        names = list(spec.label_names)
    elif isinstance(feature, ClassLabel):
        distinct, names = list(range(feature.num_classes)), list(feature.names)
    else:
        distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        names = [f"{value:g}" if isinstance(value, float) else str(value) for value in distinct]
    ids = {value: number for number, value in enumerate(distinct)}

    def to_id(value: Any, split: str, row: int) -> int:
        if isinstance(value, str) and value not in ids and value in names:
            return names.index(value)
        if value not in ids:
            where = "is none" if value is None else "does not occur in the training data"
            raise DataError(f"{split}, row {row}: the label {value!r} {where}; known labels: {', '.join(names)}")
        return ids[value]

    return names, to_id


def _to_number(value: Any, split: str, row: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{split}, row {row}: the label {value!r} is no number, but this is a regression") from error


def scorer(names: Sequence[str]) -> Callable[[Any], Metrics]:
    """`compute_metrics` for `Trainer` with these metrics: accuracy, f1 (of label 1), macro_f1, matthews_correlation,
    pearson, spearmanr.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
    except ImportError as error:
        raise DataError("scores need scikit-learn: pip install 'modeling-elmo[finetune]'") from error

    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "accuracy": accuracy_score,
        "f1": f1_score,
        "macro_f1": lambda gold, predicted: f1_score(gold, predicted, average="macro"),
        "matthews_correlation": matthews_corrcoef,
        "pearson": lambda gold, predicted: pearsonr(gold, predicted).statistic,
        "spearmanr": lambda gold, predicted: spearmanr(gold, predicted).statistic,
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
