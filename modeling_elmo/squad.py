"""SQuAD: its data, questions over windows of long paragraphs, the answers found there, and the official scores.

Version 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250) and 2.0 (2018, arXiv 1806.03822), where some questions have no
answer. Nothing here needs a network, but a data set of the Hub.
"""

import collections
import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .answer_spans import NUM_BOUNDARIES, Answer, Window, best_answers, context_scores, split_texts, window_bounds
from .tables import SPLIT_NAMES, load_splits
from .text_files import DAMAGE, DataError, decompressed, unreadable, way_to_read

COLUMNS = ("id", "question", "context", "answers")
PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
# Stands in for the best span of a context without words: worse than all that are found.
NO_SPAN = Answer(-2e4, 0, 0)


@dataclass
class Question:
    """A question, its context and its right answers: none if it has no answer.

    Attributes:
        answer_starts: the first character of each answer in the context; `None` if it does not stand there.
    """

    id: str
    question: str
    context: str
    answers: list[str] = field(default_factory=list)
    answer_starts: list[int | None] = field(default_factory=list)

    @property
    def span(self) -> tuple[int, int] | None:
        """First character and the one behind the last of the first answer that stands in the context."""
        for text, start in zip(self.answers, self.answer_starts, strict=True):
            if start is not None:
                return start, start + len(text)
        return None


@dataclass
class SquadReport:
    """What was met while reading and cutting: counts, to be shown to the user."""

    questions: int = 0
    unanswerable: int = 0
    moved_answers: int = 0
    lost_answers: int = 0
    cut_questions: int = 0
    left_out: int = 0

    def problems(self) -> list[str]:
        """What was mended or left out, a line each."""
        counts = [
            (self.moved_answers, "answers do not stand at their answer_start, but elsewhere, once: that was taken"),
            (self.lost_answers, "answers do not stand at their answer_start, nor just once elsewhere"),
            (self.left_out, "questions whose answer does not stand in the context were left out of training"),
            (self.cut_questions, "questions were too long and were cut"),
        ]
        return [f"{count:,} {what}" for count, what in counts if count]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_questions(files: Sequence[str], report: SquadReport, need_answers: bool = True) -> list[Question]:
    """Questions from files, also compressed (.gz, .bz2, .xz, .zst).

    Args:
        files: .json as SQuAD is published (data > paragraphs > qas), rows as .json or .jsonl, or .parquet, with the
            columns id, question, context and answers (`{"text": [...], "answer_start": [...]}`).
        report: counts what was read.
        need_answers: whether rows must have answers.

    Raises:
        DataError: a file that cannot be read or is of another form; missing columns; an id twice.
    """
    return check_rows(((name, row) for name in files for row in read_rows(name)), report, need_answers)


def read_dataset(name: str, config_name: str | None, report: SquadReport) -> dict[str, list[Question]]:
    """The splits train, validation and test, as far as they are there, of a data set; those of "test" may be without
    answers. Otherwise as `read_questions`.

    Args:
        name: a folder of files such as train-v1.1.json and dev-v1.1.json or train.jsonl.gz and validation.jsonl.gz,
            one that `datasets` saved, or a data set of the Hub.
    """
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "dataset_dict.json")):
        files: dict[str, list[str]] = {}
        for file in sorted(os.listdir(name)):
            if split := SPLIT_NAMES.get(re.split(r"[-_.]", file.lower())[0]):
                files.setdefault(split, []).append(os.path.join(name, file))
        if not files:
            raise DataError(f"{name} has no files such as train-v1.1.json and dev-v1.1.json, or train.jsonl.gz")
        return {split: read_questions(names, report, split != "test") for split, names in files.items()}
    return {
        split: check_rows(((f"{name}, {split}", row) for row in table), report, split != "test")
        for split, table in load_splits(name, config_name).items()
    }


def read_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one file, each a question with its context."""
    if way_to_read(name) == ".parquet":
        yield from parquet_rows(name)
        return
    try:
        with open(name, "rb") as file:
            text = decompressed(file, name).read().decode("utf-8-sig")
    except (*DAMAGE, UnicodeDecodeError) as error:
        raise unreadable(name, error) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: of JSON, and numbers with thousands of digits
        content = json_lines(text, name)
    if isinstance(content, Mapping):
        content = content.get("data", [content])
    if not isinstance(content, list):
        raise DataError(f"{name} has no list of questions, nor one named 'data'")
    for number, item in enumerate(content, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"{name}, entry {number} must be an object with {', '.join(COLUMNS)}, not {item!r:.60}")
        yield from nested_rows(item, name, number) if "paragraphs" in item else [item]


def json_lines(text: str, name: str) -> list[Any]:
    """The objects of a text with one a line."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number} is not JSON: {error}") from error
    return rows


def nested_rows(article: Mapping[str, Any], name: str, number: int) -> Iterator[Mapping[str, Any]]:
    """The questions of an article of SQuAD's own files."""
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {**question, "context": paragraph["context"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{name}, article {number} is not as in SQuAD's files (paragraphs > context, qas > id, question, answers): "
            f"{type(error).__name__} {error}"
        ) from error


def parquet_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a .parquet file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(name) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise unreadable(name, error) from error


def check_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], report: SquadReport, need_answers: bool = True
) -> list[Question]:
    """Questions from rows, each with the name of its source. Raises a `DataError` for a row that is none."""
    questions: dict[str, Question] = {}
    for source, row in rows:
        missing = [name for name in COLUMNS if name not in row and (need_answers or name != "answers")]
        if missing:
            raise DataError(f"{source} has no column {', '.join(missing)}; its columns are {', '.join(row)}")
        where = f"{source}, question {row['id']!r}"
        for name in ("question", "context"):
            if not isinstance(row[name], str):
                raise DataError(f"{where}: {name} must be a text, not {row[name]!r:.60}")
        question = Question(str(row["id"]), row["question"], row["context"])
        if question.id in questions:
            raise DataError(f"{where}: the id occurs twice")
        for text, start in answers_of(row.get("answers"), where):
            question.answers.append(text)
            question.answer_starts.append(place(text, start, question.context, report))
        report.questions += 1
        report.unanswerable += not question.answers
        questions[question.id] = question
    return list(questions.values())


def answers_of(answers: Any, where: str) -> list[tuple[str, int]]:
    """Texts and starts from `{"text": [...], "answer_start": [...]}` or a list of `{"text", "answer_start"}`."""
    answers = [] if answers is None else answers
    try:
        if isinstance(answers, Mapping):
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
        if not all(isinstance(text, str) and start == int(start) for text, start in pairs):
            raise TypeError("a text or a start of another type")
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # OverflowError: of infinity
        raise DataError(
            f"{where}: answers must be {{'text': [...], 'answer_start': [...]}} with as many of both, "
            f"not {answers!r:.80} ({type(error).__name__} {error})"
        ) from error
    return [(text, int(start)) for text, start in pairs if text]


def place(text: str, start: int, context: str, report: SquadReport) -> int | None:
    """Where an answer starts: `start` if it stands there, else the only other place; `None` if there is none."""
    if start >= 0 and context.startswith(text, start):
        return start
    first = context.find(text)
    if first >= 0 and context.find(text, first + 1) < 0:
        report.moved_answers += 1
        return first
    report.lost_answers += 1
    return None


def check_version(questions: Sequence[Question], version_2: bool, source: str):
    """Raise a `DataError` if there are questions without answers that version 1.1 does not know."""
    without = [question.id for question in questions if not question.answers]
    if without and not version_2:
        raise DataError(
            f"{len(without):,} questions of {source} have no answer (the first: {without[0]!r}): pass "
            "--version_2_with_negative to learn and score when there is none"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def make_windows(
    questions: Sequence[Question],
    tokenizer: Any,
    max_length: int,
    stride: int,
    report: SquadReport,
    max_question_length: int = 64,
) -> list[Window]:
    """What the model reads: each question with each part of its context, and where the answer is.

    All questions get windows of the same contexts at the same places, so that these are encoded once.

    Args:
        max_length: words of a window, question and boundaries included.
        stride: words of the context that neighbouring windows share.
        report: counts the questions of more than `max_question_length` words, which are cut.

    Raises:
        DataError: a stride that is not less than the words beside the longest question.
    """
    distinct = list(dict.fromkeys(question.context for question in questions))
    contexts = dict(zip(distinct, split_texts(tokenizer, distinct), strict=True))
    texts = [words for words, _ in split_texts(tokenizer, [question.question for question in questions])]
    report.cut_questions += sum(len(words) > max_question_length for words in texts)
    longest = min(max(map(len, texts), default=0), max_question_length)
    windows = []
    for number, (question, text) in enumerate(zip(questions, texts, strict=True)):
        words, offsets = contexts[question.context]
        try:
            bounds = window_bounds(len(words), max_length - NUM_BOUNDARIES - longest, stride)
        except ValueError as error:
            raise DataError(
                f"beside a question of {longest} words and {NUM_BOUNDARIES} boundaries, {error}: make max_seq_length "
                f"({max_length}) larger, or doc_stride ({stride}) smaller"
            ) from error
        for begin, end in bounds:
            window = Window(number, text[:max_question_length], words[begin:end], offsets[begin:end])
            window.start_position, window.end_position = answer_positions(question, offsets, begin, end, window.begin)
            windows.append(window)
    return windows


def answer_positions(question: Question, offsets: np.ndarray, begin: int, end: int, shift: int) -> tuple[int, int]:
    """First and last word of the answer in the window of words `begin` to `end`, whose first has position `shift`.

    An answer that begins or ends within a word has the whole word. 0 for an answer that is not in the window as a
    whole, and if there is none; -100 if it is not known where it is.
    """
    if not question.answers:
        return 0, 0
    if question.span is None:
        return -100, -100
    first = int(np.searchsorted(offsets[:, 1], question.span[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], question.span[1], side="left")) - 1
    if first > last:  # white space
        return -100, -100
    return (first - begin + shift, last - begin + shift) if begin <= first and last < end else (0, 0)


def training_windows(windows: Sequence[Window], report: SquadReport) -> list[Window]:
    """Those whose answer is known; counts the questions that are left out."""
    report.left_out += len({window.example for window in windows if window.start_position < 0})
    return [window for window in windows if window.start_position >= 0]


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@dataclass
class Prediction:
    """What was found for a question.

    Attributes:
        answer: the text, empty for no answer.
        best_text: the best of all spans.
        null_odds: by how much the score of no answer is above that of this span; `None` in version 1.1.
        candidates: the best spans (in version 2.0 also no answer), best first, with `probability` among these.
    """

    answer: str
    best_text: str
    null_odds: float | None
    candidates: list[dict[str, Any]]


def predict_answers(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best_size: int = 20,
    max_answer_length: int = 17,
    version_2: bool = False,
    null_threshold: float = 0.0,
) -> dict[str, Prediction]:
    """The answers to questions by their id, cut from the contexts.

    Args:
        windows: of the questions, in any order.
        start_logits: (windows, positions), what the model made of them.
        end_logits: (windows, positions).
        n_best_size: candidates for each question.
        max_answer_length: words of the longest answer; 17 as in the ELMo paper.
        version_2: whether there may be no answer: there is none if `null_odds` is above `null_threshold`.

    Raises:
        ValueError: logits of fewer or more windows than there are.
    """
    if not len(windows) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"there are {len(windows)} windows, but predictions for {len(start_logits)}: give one for each"
        )
    starts, ends = context_scores(start_logits, windows), context_scores(end_logits, windows)
    found = best_answers(windows, starts, ends, len(questions), max_answer_length, n_best_size)
    nulls = np.full(len(questions), np.inf)  # (questions,): the window that is least sure that there is none
    np.minimum.at(nulls, [window.example for window in windows], start_logits[:, 0] + end_logits[:, 0])
    predictions = {}
    for question, answers, null in zip(questions, found, nulls.tolist(), strict=True):
        best = answers[0] if answers else NO_SPAN
        null_odds = null - best.score if version_2 else None
        if version_2:
            answers = sorted([*answers, Answer(null, 0, 0)], key=lambda answer: -answer.score)[:n_best_size]
        text = question.context[best.start : best.end]
        predictions[question.id] = Prediction(
            answer="" if null_odds is not None and null_odds > null_threshold else text,
            best_text=text,
            null_odds=null_odds,
            candidates=candidates_of(answers, question.context),
        )
    return predictions


def candidates_of(answers: Sequence[Answer], context: str) -> list[dict[str, Any]]:
    """Answers as JSON has them, with the softmax of their scores."""
    scores = np.array([answer.score for answer in answers])
    weights = np.exp(scores - scores.max(initial=-np.inf))
    return [
        {"text": context[start:end], "probability": weight, "score": score, "start": start, "end": end}
        for (score, start, end), weight in zip(answers, (weights / weights.sum()).tolist(), strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def normalized(text: str) -> str:
    """An answer as it is compared: lower case, no (ASCII) punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 for the same words, else 0."""
    return float(normalized(prediction) == normalized(answer))


def f1(prediction: str, answer: str, version_2: bool = False) -> float:
    """The overlap of the words of both; between answers without words 1 in version 2.0, but 0 in version 1.1."""
    predicted, right = normalized(prediction).split(), normalized(answer).split()
    if version_2 and not (predicted and right):
        return float(predicted == right)
    common = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


def best_scores(prediction: str, answers: Sequence[str], version_2: bool) -> tuple[float, float]:
    """Exact match and F1 with the answer that fits best. No prediction is right if there is no answer."""
    if version_2:
        answers = [answer for answer in answers if normalized(answer)] or [""]
    return (
        max((exact_match(prediction, answer) for answer in answers), default=0.0),
        max((f1(prediction, answer, version_2) for answer in answers), default=0.0),
    )


def evaluate(questions: Sequence[Question], texts: Mapping[str, str], version_2: bool = False) -> dict[str, float]:
    """The official scores, in per cent; a question without a prediction counts as wrong.

    Args:
        texts: the answers by id.
        version_2: as in the evaluation of version 2.0: also "" may be right.

    Returns:
        Version 1.1: `exact_match`, `f1`. Version 2.0: `exact`, `f1`, `total`, and the same for questions that have an
        answer (`HasAns_exact`, ...) and those that have none (`NoAns_exact`, ...), if there are such.
    """
    missing = "\0"  # equals no answer
    scores = np.array([best_scores(texts.get(each.id, missing), each.answers, version_2) for each in questions])
    scores = scores.reshape(-1, 2)  # (questions, exact and f1)
    if not version_2:
        return dict(zip(("exact_match", "f1"), mean_percent(scores), strict=True))
    has_answer = np.array([bool(question.answers) for question in questions], dtype=bool)
    result: dict[str, float] = {}
    for prefix, chosen in (("", has_answer | True), ("HasAns_", has_answer), ("NoAns_", ~has_answer)):
        if chosen.any():
            exact, overlap = mean_percent(scores[chosen])
            result |= {f"{prefix}exact": exact, f"{prefix}f1": overlap, f"{prefix}total": int(chosen.sum())}
    return result


def mean_percent(scores: np.ndarray) -> list[float]:
    """(questions, 2) -> the mean of each column in per cent, 0 without questions."""
    return (100 * scores.mean(0)).tolist() if len(scores) else [0.0, 0.0]


def best_thresholds(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> dict[str, float]:
    """The scores of version 2.0 with the best threshold for each, as the official evaluation finds it.

    Returns:
        `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`: best chosen on the very questions that are
        scored, so an upper bound.
    """
    odds = np.array([predictions[question.id].null_odds for question in questions], dtype=float)
    has_answer = np.array([bool(question.answers) for question in questions], dtype=bool)
    texts = [predictions[question.id].best_text for question in questions]
    scores = np.array(
        [best_scores(text, question.answers, True) for text, question in zip(texts, questions, strict=True)]
    ).reshape(-1, 2)
    # From "no answer" everywhere on, the questions are answered one by one, those with the least odds first.
    gains = np.where(has_answer[:, None], scores, -np.array([[bool(text)] for text in texts], dtype=float))
    order = np.argsort(odds, kind="stable")
    result = {}
    for name, gain in zip(("exact", "f1"), gains.T, strict=True):
        totals = (~has_answer).sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
        best = int(totals.argmax())
        result[f"best_{name}"] = 100 * float(totals[best]) / max(len(questions), 1)
        result[f"best_{name}_thresh"] = float(odds[order[best - 1]]) if best else 0.0
    return result
