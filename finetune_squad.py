"""Fine-tune an ELMo to answer questions: SQuAD 1.1 and 2.0, or any questions whose answers stand in a text.

SQuAD's own files, also .gz; rows with id, question, context and answers as json, jsonl or parquet; a folder of such
files (train-v1.1.json and dev-v1.1.json); a data set of the Hub:

    python finetune_squad.py --model_name_or_path runs/news --train_file train-v1.1.json \\
        --validation_file dev-v1.1.json --output_dir out/squad
    python finetune_squad.py --model_name_or_path runs/news --dataset_name data/squad --seeds 1 2 3 --output_dir out
    python finetune_squad.py --model_name_or_path runs/news --dataset_name rajpurkar/squad --output_dir out/squad

SQuAD 2.0, where some questions have no answer:

    python finetune_squad.py --model_name_or_path runs/news --dataset_name rajpurkar/squad_v2 \\
        --version_2_with_negative --output_dir out/squad_v2

What ELMo adds: the same head on words without context, and on a character CNN that was never trained:

    python finetune_squad.py ... --features layer_0
    python finetune_squad.py ... --features random

Written to the output folder: the model (`AutoModelForQuestionAnswering`, `pipeline("question-answering")`),
predictions.json (for the official evaluation), nbest_predictions.json, in version 2.0 null_odds.json, all_results.json,
the layers' weights and their plot, summary.txt. Every flag: `python finetune_squad.py --help`.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from modeling_elmo.answer_spans import NUM_BOUNDARIES, Window
from modeling_elmo.arguments import ArgumentsError, flag
from modeling_elmo.finetuning import Metrics, Task, load_task_model, write_json
from modeling_elmo.finetuning_arguments import FinetuningArguments
from modeling_elmo.finetuning_report import run_script
from modeling_elmo.loading import load_tokenizer
from modeling_elmo.question_answering import ElmoForQuestionAnswering
from modeling_elmo.squad import (
    Prediction,
    Question,
    SquadReport,
    best_thresholds,
    check_version,
    evaluate,
    make_windows,
    predict_answers,
    read_dataset,
    read_questions,
    training_windows,
)
from modeling_elmo.text_files import DataError

logger = logging.get_logger("modeling_elmo.finetune_squad")

# What `Trainer` hands on to `compute_metrics`.
LABELS = ("start_positions", "end_positions", "place")


@dataclass
class SquadArguments(FinetuningArguments):
    """The flags of this script."""

    train_file: str | None = flag(None, "SQuAD's json, or rows as json, jsonl or parquet, also .gz")
    validation_file: str | None = flag(None, "its validation data")
    test_file: str | None = flag(None, "its test data, answers optional")
    dataset_name: str | None = flag(None, "instead of files: a folder with train*, dev*, test*, or a name on the Hub")
    dataset_config_name: str | None = flag(None, "configuration of a data set of the Hub")
    version_2_with_negative: bool = flag(False, "some questions have no answer, as in SQuAD 2.0")
    null_score_diff_threshold: float = flag(
        0.0, "version 2: there is no answer if its score is by more than this above the best span's"
    )
    max_seq_length: int = flag(384, "words that are read at once: question, part of the context, four boundaries")
    doc_stride: int = flag(128, "words that neighbouring parts of a long context share")
    max_question_length: int = flag(64, "words of a question, longer ones are cut")
    n_best_size: int = flag(20, "spans in nbest_predictions.json, for each question")
    max_answer_length: int = flag(17, "words of the longest answer; 17 as in the ELMo paper")

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_question_length", "n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise ArgumentsError(f"--{name} must be 1 or more, not {getattr(self, name)}")
        if self.label_smoothing_factor:
            raise ArgumentsError("--label_smoothing_factor cannot be had: spans have no labels to smooth; leave it out")


def read_data(args: SquadArguments, counts: SquadReport) -> dict[str, list[Question]]:
    """The questions of each split, as many as the arguments want."""
    if args.dataset_name:
        name = str(Path(args.data_dir, args.dataset_name)) if args.data_dir else args.dataset_name
        splits = read_dataset(name, args.dataset_config_name, counts)
    else:
        splits = {split: read_questions([file], counts, split != "test") for split, file in args.files().items()}
    if args.do_train and not splits.get("train"):
        raise DataError("there are no training data: give --train_file, or pass --no_do_train")
    limits = args.max_samples()
    splits = {split: questions[: limits[split]] for split, questions in splits.items()}
    for split, questions in splits.items():
        if split != "test" or any(question.answers for question in questions):
            check_version(questions, args.version_2_with_negative, f"the {split} data")
    return splits


def to_dataset(windows: list[Window], split: int) -> Dataset:
    """A row for each window; `place` is the number of the split and that of the window in it."""
    columns = {
        "question": [window.question for window in windows],
        "words": [window.words for window in windows],
        "start_positions": [window.start_position for window in windows],
        "end_positions": [window.end_position for window in windows],
        "length": [len(window.question) + len(window.words) + NUM_BOUNDARIES for window in windows],
        "place": [[split, number] for number in range(len(windows))],
    }
    return Dataset.from_dict(columns)


def collate(tokenizer: Any, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `to_dataset` as a batch for the model, which takes no notice of `place`."""
    questions, contexts = ([example[name] for example in examples] for name in ("question", "words"))
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    batch = dict(tokenizer(questions, contexts, is_split_into_words=True, **options))
    return batch | {name: torch.tensor([example[name] for example in examples]) for name in LABELS}


@dataclass
class Answers:
    """From the model's output to answers, their scores and files. `splits`: the questions of each and their windows."""

    args: SquadArguments
    splits: dict[str, tuple[list[Question], list[Window]]]

    def find(self, output: Any) -> tuple[str, list[Question], dict[str, Prediction]]:
        """The split that was predicted, its questions, and by their id what was found; windows in any order."""
        places, numbers = output.label_ids[-1].T
        split = list(self.splits)[places[0]]
        questions, windows = self.splits[split]
        order = np.argsort(numbers)
        starts, ends = (logits[order] for logits in output.predictions[:2])
        args, version_2 = self.args, self.args.version_2_with_negative
        limits = (args.n_best_size, args.max_answer_length, version_2, args.null_score_diff_threshold)
        return split, questions, predict_answers(questions, windows, starts, ends, *limits)

    def compute_metrics(self, output: Any) -> Metrics:
        """The official scores; none for questions whose answers are not known."""
        split, questions, found = self.find(output)
        version_2 = self.args.version_2_with_negative
        may_all_be_unanswerable = version_2 and split != "test"
        if not any(question.answers for question in questions) and not may_all_be_unanswerable:
            return {}
        scores = evaluate(questions, {name: one.answer for name, one in found.items()}, version_2)
        return {**scores, **best_thresholds(questions, found)} if version_2 else scores

    def write(self, split: str, dataset: Any, output: Any, folder: Path):
        """predictions.json and more; other splits than that of validation go before the names of their files."""
        _, _, found = self.find(output)
        prefix = "" if split == "validation" else f"{split}_"
        write_json(folder / f"{prefix}predictions.json", {name: one.answer for name, one in found.items()})
        write_json(folder / f"{prefix}nbest_predictions.json", {name: one.candidates for name, one in found.items()})
        if self.args.version_2_with_negative:
            write_json(folder / f"{prefix}null_odds.json", {name: one.null_odds for name, one in found.items()})


def make_task(name: str, args: SquadArguments) -> Task:
    """The task: its data, and how its model is made."""
    tokenizer = load_tokenizer(str(args.model_name_or_path))
    counts = SquadReport()
    splits = {}
    for split, questions in read_data(args, counts).items():
        options = (args.max_seq_length, args.doc_stride, counts, args.max_question_length)
        windows = make_windows(questions, tokenizer, *options)
        splits[split] = questions, training_windows(windows, counts) if split == "train" else windows
    for problem in counts.problems():
        logger.warning(problem)
    data = {split: to_dataset(windows, number) for number, (split, (_, windows)) in enumerate(splits.items())}
    args.label_names = list(LABELS)
    answers = Answers(args, splits)
    return Task(
        name=name,
        make_model=partial(load_task_model, ElmoForQuestionAnswering),
        tokenizer=tokenizer,
        collate=partial(collate, tokenizer),
        train=data.get("train"),
        validation={"validation": data["validation"]} if "validation" in data else {},
        test={"test": data["test"]} if "test" in data else {},
        compute_metrics=answers.compute_metrics,
        best_metric="f1",
        pipeline_tag="question-answering",
        write_predictions=answers.write,
    )


def task_names(args: SquadArguments) -> list[str]:
    """The one task, by its data set."""
    if not (args.dataset_name or args.files()):
        raise ArgumentsError("give --train_file and --validation_file, or --dataset_name")
    return [Path(args.dataset_name).name if args.dataset_name else "squad"]


def main() -> int:
    return run_script("finetune_squad.py", SquadArguments, __doc__, task_names, make_task)


if __name__ == "__main__":
    sys.exit(main())
