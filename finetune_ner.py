"""Fine-tune an ELMo for tags: named entities, chunks, parts of speech, anything with a tag for each word.

Files of columns (a word a line, its tag in the last column, an empty line between sentences), or json, jsonl and
parquet tables with lists of words and tags, also .gz; a folder of them, or a data set of the Hub:

    python finetune_ner.py --model_name_or_path runs/news --train_file train.txt --validation_file dev.txt \\
        --test_file test.txt --output_dir out/ner
    python finetune_ner.py --model_name_or_path runs/news --dataset_name data/wnut17 --seeds 1 2 3 --output_dir out/wnut
    python finetune_ner.py --model_name_or_path runs/news --dataset_name lhoestq/conll2003 --output_dir out/conll

Other columns, such as the second one for parts of speech:

    python finetune_ner.py ... --task_name pos --label_column_name 1

Without the CRF, and what ELMo adds: the same head on words without context, and on a character CNN never trained:

    python finetune_ner.py ... --use_crf false
    python finetune_ner.py ... --features layer_0
    python finetune_ner.py ... --features random

Written to the output folder: the model (`AutoModelForTokenClassification`, `pipeline("ner")`), all_results.json, words
with their tags and those predicted (for conlleval), a table of scores by type, the layers' weights and their plot,
summary.txt. Every flag: `python finetune_ner.py --help`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modeling_elmo.arguments import ArgumentsError, flag
from modeling_elmo.elmo_trainer import ElmoTrainer
from modeling_elmo.finetuning import Task, config_with_head, labels_of, load_task_model
from modeling_elmo.finetuning_arguments import FinetuningArguments
from modeling_elmo.finetuning_report import aligned, run_script
from modeling_elmo.loading import load_config, load_tokenizer
from modeling_elmo.tagging import (
    NO_LABEL,
    Columns,
    Splits,
    are_chunks,
    entity_scores,
    label_list,
    mend_tags,
    read_dataset,
    read_files,
    scorer,
    tags_in,
    to_dataset,
    write_columns,
)
from modeling_elmo.text_files import DataError
from modeling_elmo.token_classification import ElmoForTokenClassification


@dataclass
class NerArguments(FinetuningArguments):
    """The flags of this script."""

    train_file: str | None = flag(None, "a file of columns, or a json, jsonl or parquet table, also .gz")
    validation_file: str | None = flag(None, "its validation data")
    test_file: str | None = flag(None, "its test data, tags optional")
    dataset_name: str | None = flag(
        None, "instead of files: a folder with train.*, dev.*, test.*, or a name on the Hub"
    )
    dataset_config_name: str | None = flag(None, "configuration of a data set of the Hub")
    task_name: str = flag("ner", "which tags of a table: ner, pos, chunk, ... for its column ner_tags, ...")
    text_column_name: str | None = flag(None, "column of words: a name, or in files of columns a number from 0")
    label_column_name: str | None = flag(None, "column of tags: a name, or a number from 0, or from -1 backwards")
    broken_tags: str = flag(
        "repair", "what to do with an I- that follows no tag of its type, as in IOB1: 'repair' reads it as B- and "
        "tells how many there are, 'refuse' stops there", choices=("repair", "refuse"),
    )  # fmt: skip
    use_crf: bool | None = flag(None, "score tags as a chain; default: that of the model's config, yes")
    max_seq_length: int = flag(256, "words of a sentence in training, longer ones are cut; never in evaluation")
    return_entity_level_metrics: bool = flag(False, "also the scores of each type in all_results.json")


class TaggingTrainer(ElmoTrainer):
    """`ElmoTrainer` whose predictions are decoded tags."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
            masks = {name: inputs[name] for name in ("attention_mask", "special_tokens_mask")}
            tags = self.model.decode(hidden_states=torch.stack(output.hidden_states, 2), **masks)
        return output.loss.detach(), None if prediction_loss_only else tags, inputs["labels"]


def read_data(args: NerArguments) -> Splits:
    """The sentences of each split, in well-formed IOB2 where their tags are those of chunks."""
    columns = Columns(args.text_column_name, args.label_column_name, args.task_name)
    if args.dataset_name:
        name = str(Path(args.data_dir, args.dataset_name)) if args.data_dir else args.dataset_name
        splits = read_dataset(name, args.dataset_config_name, columns)
    else:
        splits = read_files(args.files(), columns)
    if args.do_train and not any(sentence.tokens for sentence in splits.get("train", [])):
        raise DataError("there are no training data: give --train_file, or pass --no_do_train")
    return mend_tags(splits, refuse=args.broken_tags == "refuse")


def known_labels(args: NerArguments) -> list[str] | None:
    """The labels of a model that is a tagger already."""
    config = config_with_head(ElmoForTokenClassification, args)
    return None if config is None else labels_of(config)


def collate(tokenizer: Any, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples with `tokens` and `labels` as a batch for the model."""
    words = [example["tokens"] for example in examples]
    options = {"is_split_into_words": True, "padding": True, "padding_side": "right", "return_tensors": "pt"}
    batch = dict(tokenizer(words, **options, return_special_tokens_mask=True))
    labels = torch.tensor([label for example in examples for label in example["labels"]], dtype=torch.long)
    is_word = batch["special_tokens_mask"] == 0
    batch["labels"] = torch.full(is_word.shape, NO_LABEL).masked_scatter(is_word, labels)
    return batch


def make_task(name: str, args: NerArguments) -> Task:
    """The task: its data, and how its model is made."""
    tokenizer = load_tokenizer(str(args.model_name_or_path))
    splits = read_data(args)
    known = known_labels(args)
    if args.ignore_mismatched_sizes and tags_in(splits.values()) - set(known or ()):
        known = None
    labels = label_list(splits, known)
    options: dict[str, Any] = {} if args.use_crf is None else {"use_crf": args.use_crf}
    if args.label_smoothing_factor and options.get("use_crf", load_config(str(args.model_name_or_path)).use_crf):
        raise ArgumentsError(
            "--label_smoothing_factor cannot be had with the CRF, which scores whole chains: leave it out, or pass "
            "--use_crf false"
        )
    options["id2label"] = dict(enumerate(labels))
    options["label2id"] = {label: number for number, label in enumerate(labels)}
    limits = args.max_samples()
    data = {
        split: to_dataset(
            sentences[: limits[split]],
            labels,
            max_length=args.max_seq_length if split == "train" else None,
            keep_empty=split != "train",
        )
        for split, sentences in splits.items()
    }
    return Task(
        name=name,
        make_model=partial(load_task_model, ElmoForTokenClassification, **options),
        tokenizer=tokenizer,
        collate=partial(collate, tokenizer),
        train=data.get("train"),
        validation={"validation": data["validation"]} if "validation" in data else {},
        test={"test": data["test"]} if "test" in data else {},
        compute_metrics=scorer(labels, args.return_entity_level_metrics),
        best_metric="f1" if are_chunks(labels) else "accuracy",
        pipeline_tag="token-classification",
        write_predictions=partial(write_predictions, labels),
    )


def write_predictions(labels: Sequence[str], split: str, dataset: Any, output: Any, folder: Path):
    """Words with their tags and those predicted, and for chunks a table of scores by type."""
    predicted = [[labels[label] for label in row[row != NO_LABEL]] for row in output.predictions]
    gold = [[labels[label] for label in row if label != NO_LABEL] for row in dataset["labels"]]
    columns = [dataset["tokens"], gold, predicted] if any(gold) else [dataset["tokens"], predicted]
    rows = (zip(*sentence, strict=True) for sentence in zip(*columns, strict=True))
    write_columns(folder / f"{split}_predictions.txt", rows)
    if any(gold) and are_chunks(labels):
        overall, types = entity_scores(gold, predicted)
        overall["number"] = sum(row["number"] for row in types.values())
        lines = [
            [kind, *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")), str(row["number"])]
            for kind, row in [*types.items(), ("all", overall)]
        ]
        table = aligned([["type", "precision", "recall", "f1", "entities"], *lines])
        (folder / f"{split}_types.txt").write_text(table + "\n", encoding="utf-8")


def task_names(args: NerArguments) -> list[str]:
    """The one task, by its data set or its tags."""
    if not (args.dataset_name or args.files()):
        raise ArgumentsError("give --train_file and --validation_file, or --dataset_name")
    return [Path(args.dataset_name).name if args.dataset_name else args.task_name]


def main() -> int:
    return run_script("finetune_ner.py", NerArguments, __doc__, task_names, make_task, TaggingTrainer)


if __name__ == "__main__":
    sys.exit(main())
