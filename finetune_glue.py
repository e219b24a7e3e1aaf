"""Fine-tune an ELMo for sentences: the tasks of GLUE, sentiment, any table of sentences or pairs with their labels.

Tasks of GLUE by name, several with a table of all, three seeds with mean and standard deviation:

    python finetune_glue.py --model_name_or_path runs/news --task_name sst2 --output_dir out/sst2
    python finetune_glue.py --model_name_or_path runs/news --task_name cola mrpc stsb --seeds 1 2 3 --output_dir out

Own files (json, jsonl, csv, tsv, parquet, also .gz), or a folder with a folder for each task:

    python finetune_glue.py --model_name_or_path runs/news --train_file a.csv --validation_file b.csv --output_dir out
    python finetune_glue.py --model_name_or_path runs/news --data_dir tasks --task_name trec sick --output_dir out

On several GPUs:

    accelerate launch finetune_glue.py --model_name_or_path runs/news --task_name qnli --output_dir out

What ELMo adds: the same head on words without context, and on a character CNN that was never trained:

    python finetune_glue.py ... --features layer_0
    python finetune_glue.py ... --features random

Written to the output folder: the model (`AutoModelForSequenceClassification`, `pipeline("text-classification")`),
all_results.json, predictions, a confusion table, the layers' weights and their plot, summary.txt.
Every flag: `python finetune_glue.py --help`.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from modeling_elmo.arguments import ArgumentsError, flag
from modeling_elmo.finetuning import Task, config_with_head, labels_of, load_task_model
from modeling_elmo.finetuning_arguments import FinetuningArguments
from modeling_elmo.finetuning_report import confusion_table, run_script
from modeling_elmo.loading import load_tokenizer
from modeling_elmo.sentence_tasks import (
    GLUE,
    SentenceData,
    TaskSpec,
    load_files,
    load_task,
    predictions_of,
    prepare,
    scorer,
)
from modeling_elmo.sequence_classification import ElmoForSequenceClassification
from modeling_elmo.text_files import DataError


@dataclass
class GlueArguments(FinetuningArguments):
    """The flags of this script."""

    task_name: list[str] = field(
        default_factory=list, metadata={"help": f"tasks of GLUE ({', '.join(GLUE)}), or folders of --data_dir"}
    )
    train_file: str | None = flag(None, "a table instead of a task: json, jsonl, csv, tsv or parquet, also .gz")
    validation_file: str | None = flag(None, "its validation data")
    test_file: str | None = flag(None, "its test data, labels optional")
    sentence_columns: list[str] = field(
        default_factory=list, metadata={"help": "one or two columns of sentences; default: by their usual names"}
    )
    label_column_name: str = flag("label", "the column of labels or numbers")
    is_regression: bool | None = flag(None, "whether labels are numbers; default: if some have a fraction")
    max_seq_length: int = flag(256, "words of a sentence or pair, boundaries included; longer ones are cut")


def read_data(name: str, args: GlueArguments) -> SentenceData:
    """The data of a task, or of the files that were given."""
    tables = load_files(args.files()) if args.files() else load_task(name, args.data_dir)
    spec = GLUE.get(name, TaskSpec(is_regression=args.is_regression))
    known = known_labels(args)
    if known == [] and spec.is_regression is None and not args.do_train:
        spec = replace(spec, is_regression=True)
    options = (tables, spec, args.sentence_columns, args.label_column_name)
    try:
        data = prepare(*options, known or None)
    except DataError as error:
        if not known or not args.do_train:
            raise
        data = prepare(*options)  # those of another task
        if len(data.label_names or ()) == len(known) and not args.ignore_mismatched_sizes:
            raise DataError(f"{error}; to train for other labels, pass --ignore_mismatched_sizes true") from error
    if args.do_train and data.train is None:
        raise DataError("there are no training data: give --train_file, or pass --no_do_train")
    if args.do_train and data.label_names is not None and len(data.label_names) < 2:
        raise DataError(f"all examples have one label, {data.label_names[0]!r}: there is nothing to learn")
    return data


def known_labels(args: GlueArguments) -> list[str] | None:
    """The labels of a model that is a classifier already; an empty list if it gives a number."""
    config = config_with_head(ElmoForSequenceClassification, args)
    if config is None:
        return None
    if config.num_labels == 1 or config.problem_type == "regression":
        return []
    names = labels_of(config)
    # Those that transformers gives by itself say nothing of what the ids mean: new ones may take their place.
    return None if args.do_train and all(name.startswith("LABEL_") for name in names) else names


def collate(tokenizer: Any, max_length: int, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples with `texts` and, unless they are test data without, `labels` as a batch for the model."""
    import torch

    columns = list(zip(*(example["texts"] for example in examples), strict=True))
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    batch = dict(tokenizer(*map(list, columns), truncation=True, max_length=max_length, **options))
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch


def make_task(name: str, args: GlueArguments) -> Task:
    """A task: its data, and how its model is made."""
    data = read_data(name, args)
    tokenizer = load_tokenizer(str(args.model_name_or_path))
    names = data.label_names
    if names is None and args.label_smoothing_factor:
        raise ArgumentsError("--label_smoothing_factor cannot be had: numbers are no labels to smooth; leave it out")
    options: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if names is not None:
        options = {"id2label": dict(enumerate(names)), "label2id": {label: i for i, label in enumerate(names)}}
        options["problem_type"] = "single_label_classification"
    return Task(
        name=name,
        make_model=partial(load_task_model, ElmoForSequenceClassification, **options),
        tokenizer=tokenizer,
        collate=partial(collate, tokenizer, args.max_seq_length),
        train=first(data.train, args.max_train_samples),
        validation={split: first(table, args.max_eval_samples) for split, table in data.validation.items()},
        test={split: first(table, args.max_predict_samples) for split, table in data.test.items()},
        compute_metrics=scorer(data.metrics if names is not None else ("spearmanr", "pearson"), data.positive),
        best_metric=data.metrics[0] if names is not None else "spearmanr",
        pipeline_tag="text-classification",
        write_predictions=partial(write_predictions, names),
    )


def first(table: Any, number: int | None) -> Any:
    """The first rows of a table, if there is one, all by default."""
    return table if table is None or number is None else table.select(range(min(number, len(table))))


def write_predictions(names: list[str] | None, split: str, dataset: Any, output: Any, folder: Path):
    """A table of predictions for each text, and how often each label was taken for another."""
    predicted, labels = predictions_of(output.predictions).tolist(), dataset[:].get("labels", [])
    columns = {"prediction": predicted, "label": labels} if labels else {"prediction": predicted}
    with open(folder / f"{split}_predictions.tsv", "w", encoding="utf-8") as file:
        file.write("\t".join(["index", *columns]) + "\n")
        for index, row in enumerate(zip(*columns.values(), strict=True)):
            shown = row if names is None else [names[label] for label in row]
            file.write("\t".join(" ".join(str(cell).split()) for cell in [index, *shown]) + "\n")
    if names is not None and labels:
        table = confusion_table(labels, predicted, names)
        (folder / f"{split}_confusion.txt").write_text(table + "\n", encoding="utf-8")


def task_names(args: GlueArguments) -> list[str]:
    """The tasks of the command line; "task" for own files."""
    if len(args.sentence_columns) > 2:
        raise ArgumentsError(f"--sentence_columns: one or two, not {len(args.sentence_columns)}")
    if not (args.task_name or args.files()):
        raise ArgumentsError(f"give --task_name ({', '.join(GLUE)}) or --train_file and --validation_file")
    if len(args.task_name) > 1 and args.files():
        raise ArgumentsError(f"--task_name {' '.join(args.task_name)}: the files that are given are one task")
    if len(set(args.task_name)) < len(args.task_name):
        raise ArgumentsError(f"--task_name {' '.join(args.task_name)}: one task twice")
    return args.task_name or ["task"]


def main() -> int:
    return run_script("finetune_glue.py", GlueArguments, __doc__, task_names, make_task)


if __name__ == "__main__":
    sys.exit(main())
