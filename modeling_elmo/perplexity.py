"""Perplexity of a finished language model on a text: `python -m modeling_elmo.perplexity MODEL TEXT [TEXT ...]`.

    python -m modeling_elmo.perplexity my-elmo heldout.txt.gz
    python -m modeling_elmo.perplexity my-elmo 'news/*.gz' --pre_tokenized --json
    python -m modeling_elmo.perplexity my-elmo heldout.txt --per_sentence scores.jsonl

A line of the text is a sentence. Each is read on its own, from the state in which texts begin; the evaluation in
pretraining carries the state from sentence to sentence instead, and so its perplexity is another one. The forward
direction predicts w1 .. wn `</S>`, the backward one wn .. w1 `<S>` (Peters et al. 2018, section 3.1), over the whole
vocabulary. The perplexity of both is exp of their mean loss, as the paper has it. Out-of-vocabulary words are `<UNK>`
to the softmax: a guess that is easy where there are many, so perplexities are also told over the known words only.

`--per_sentence` writes a line of JSON a sentence: `sentence` (the number of its line from 0, empty lines counted),
`num_words` (predicted by each direction: its words and one boundary), `num_unknown` of them, the sums in nats
`log_prob_forward` and `log_prob_backward`, and `perplexity`, `forward_perplexity`, `backward_perplexity`; sums and
perplexities also over the known words, named `known_...`. The functions `perplexity` and `sentence_scores` do the same
for texts in memory.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from .commands import command_parser, is_first_process, run_command, whole_file
from .embed import batches, windows
from .evaluation_mode import evaluation_mode
from .freed_memory import keep_freed_memory
from .language_model import IGNORE_INDEX, ElmoForPreTraining
from .loading import load_config, load_model, load_tokenizer, spelling_mismatch
from .text_files import DataError, ReadingReport, find_files, read_lines
from .tokenization_elmo import ElmoTokenizer
from .word_prediction import vocabulary_mismatch

# exp of more is no float any more; only a model that diverged loses so many nats a word.
MAX_LOSS = 700.0


class PerplexityError(ValueError):
    """Something that keeps a text from being scored; the message says what is wrong and the way out."""


@dataclass
class LogProbs:
    """Log-probabilities of some text, in nats, summed over the words that each direction predicts.

    Attributes:
        num_words: predicted words of each direction, that is the words of the text and one boundary a sentence.
        num_unknown: those that are `<UNK>` in the vocabulary of the language model.
        log_prob_forward: sum over all words that the forward direction predicts.
        log_prob_backward: sum over all words that the backward direction predicts.
        known_log_prob_forward: `log_prob_forward` without those that are `<UNK>`.
        known_log_prob_backward: `log_prob_backward` without those that are `<UNK>`.
    """

    num_words: int = 0
    num_unknown: int = 0
    log_prob_forward: float = 0.0
    log_prob_backward: float = 0.0
    known_log_prob_forward: float = 0.0
    known_log_prob_backward: float = 0.0

    @property
    def oov_rate(self) -> float:
        """Share of the predicted words that are `<UNK>`."""
        return self.num_unknown / self.num_words

    @property
    def perplexities(self) -> dict[str, float]:
        """By name: of each direction and of both, exp of the mean loss, over all and over known words."""
        sums = {
            "": (self.num_words, self.log_prob_forward, self.log_prob_backward),
            # Never without words: boundaries are known.
            "known_": (self.num_words - self.num_unknown, self.known_log_prob_forward, self.known_log_prob_backward),
        }
        losses = {}
        for prefix, (words, forward, backward) in sums.items():
            losses[f"{prefix}perplexity"] = -(forward + backward) / (2 * words)
            losses[f"{prefix}forward_perplexity"] = -forward / words
            losses[f"{prefix}backward_perplexity"] = -backward / words
        return {name: math.exp(min(loss, MAX_LOSS)) for name, loss in losses.items()}

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of both directions: the number that the paper reports."""
        return self.perplexities["perplexity"]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON can hold them."""
        return {**asdict(self), **self.perplexities}


@dataclass
class SentenceScore(LogProbs):
    """`LogProbs` of one sentence.

    Attributes:
        sentence: the number of its line from 0, empty lines counted.
    """

    sentence: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All numbers, the sentence's in front."""
        return {"sentence": self.sentence, **super().to_dict()}


@dataclass
class PerplexityReport(LogProbs):
    """`LogProbs` of a text.

    Attributes:
        num_sentences: those that have words.
    """

    num_sentences: int = 0

    def add(self, score: SentenceScore):
        """Count a sentence in."""
        self.num_sentences += 1
        for field in fields(LogProbs):
            setattr(self, field.name, getattr(self, field.name) + getattr(score, field.name))

    def to_dict(self) -> dict[str, Any]:
        """All numbers, with the rate of unknown words."""
        return {"num_sentences": self.num_sentences, **super().to_dict(), "oov_rate": self.oov_rate}

    def __str__(self) -> str:
        values = self.perplexities
        lines = [
            f"{self.num_sentences:,} sentences, {self.num_words:,} predicted words with their boundaries, "
            f"{self.oov_rate:.2%} unknown",
            f"{'perplexity':<16}{'both':>12}{'forward':>12}{'backward':>12}",
        ]
        for title, prefix in (("all words", ""), ("known words", "known_")):
            row = (values[f"{prefix}{side}perplexity"] for side in ("", "forward_", "backward_"))
            lines.append(f"{title:<16}" + "".join(f"{value:>12,.2f}" for value in row))
        return "\n".join(lines)


def perplexity(
    model: ElmoForPreTraining,
    tokenizer: ElmoTokenizer,
    lines: Iterable[str | Sequence[str]],
    on_sentence: Callable[[SentenceScore], object] = lambda score: None,
    **options: Any,
) -> PerplexityReport:
    """Perplexity of a text.

    Args:
        model: as for `sentence_scores`.
        tokenizer: the one that belongs to the model.
        lines: strings, or lists of words that are split already.
        on_sentence: is told of each sentence's score.
        **options: further arguments of `sentence_scores`.

    Returns:
        The sums over all sentences; `str()` of it is a table.

    Raises:
        PerplexityError: a text without words, and what `sentence_scores` raises.
    """
    report = PerplexityReport()
    for score in sentence_scores(model, tokenizer, lines, **options):
        report.add(score)
        on_sentence(score)
    if not report.num_sentences:
        raise PerplexityError("the text has no words: give one with a sentence a line")
    return report


def sentence_scores(
    model: ElmoForPreTraining,
    tokenizer: ElmoTokenizer,
    lines: Iterable[str | Sequence[str]],
    *,
    batch_words: int = 4096,
    window_words: int = 32768,
    on_batch: Callable[[int, int], object] = lambda sentences, words: None,
) -> Iterator[SentenceScore]:
    """Score each sentence on its own, in their order and in memory that does not grow with their number.

    Sentences are sorted by length within a window, and batched by words. One that is longer than a batch is read in
    pieces, each direction from its own end and with its state carried, which changes nothing in the result; its words
    and their characters are held as a whole, about a kilobyte a word.

    Args:
        model: put in evaluation mode while it runs; on its device and in its dtype.
        tokenizer: the one that belongs to the model.
        lines: strings, or lists of words that are split already. Those without words are left out, but counted.
        batch_words: how many words are computed at a time. Changes speed and memory, not the result.
        window_words: how many words are sorted by length together, at least one sentence.
        on_batch: is told of the sentences and the predicted words of each batch, for showing progress.

    Yields:
        A score for each sentence that has words, in their order.

    Raises:
        PerplexityError: a vocabulary or a way of spelling that is not the model's, or a loss that is no number.
    """
    if wrong := vocabulary_mismatch(model.config, tokenizer) or spelling_mismatch(model.config, tokenizer):
        raise PerplexityError(wrong)
    texts = (tokenizer.split_words(line) if isinstance(line, str) else list(line) for line in lines)
    first = 0
    for window in windows(texts, window_words):
        by_length = sorted((n for n, words in enumerate(window) if words), key=lambda n: -len(window[n]))
        scores: list[SentenceScore] = []
        for numbers in batches(by_length, [len(words) + 1 for words in window], batch_words):
            batch = score_batch(model, tokenizer, [window[n] for n in numbers], batch_words)
            for number, score in zip(numbers, batch, strict=True):
                score.sentence = first + number
                scores.append(score)
            on_batch(len(batch), sum(score.num_words for score in batch))
        first += len(window)
        yield from sorted(scores, key=lambda score: score.sentence)


@torch.inference_mode()
def score_batch(
    model: ElmoForPreTraining, tokenizer: ElmoTokenizer, sentences: list[list[str]], steps: int
) -> list[SentenceScore]:
    """Score a batch, `steps` words of each sentence at a time."""
    streams = reading_streams(tokenizer, sentences)
    losses, state = [], None
    with evaluation_mode(model):
        for start in range(0, streams["input_ids"].shape[1], steps):
            piece = {name: stream[:, start : start + steps].to(model.device) for name, stream in streams.items()}
            output = model(**piece, state=state)
            losses.append(output.word_losses.cpu())  # (2, batch, steps)
            state = output.state
    log_probs = -torch.cat(losses, dim=2).double()
    if not log_probs.isfinite().all():
        raise PerplexityError("the loss of the model is no number: its weights are damaged, or its training diverged")
    targets = torch.stack([streams["next_targets"], streams["previous_targets"]])  # (2, batch, words)
    known = log_probs.masked_fill(targets == tokenizer.lm_unk_id, 0)
    counts = [(targets[0] != IGNORE_INDEX).sum(1), (targets[0] == tokenizer.lm_unk_id).sum(1)]  # (batch,) each
    columns = [column.tolist() for column in (*counts, *log_probs.sum(2), *known.sum(2))]
    return [SentenceScore(*row) for row in zip(*columns, strict=True)]


def reading_streams(tokenizer: ElmoTokenizer, sentences: list[list[str]]) -> dict[str, Tensor]:
    """What each direction reads and predicts, in its reading order, as the lanes of `ElmoForPreTraining.forward`.

    So a piece of a sentence is a slice of its streams, in which both directions carry their states on.

    Returns:
        `input_ids`, `reversed_input_ids` (batch, words + 1, max_word_length), `next_targets`, `previous_targets` and
        `attention_mask` (batch, words + 1), with the words of the longest sentence. Nothing counts where the mask is 0.
    """
    inputs = tokenizer(
        sentences, is_split_into_words=True, padding=True, padding_side="right", return_tensors="pt",
        return_lm_labels=True, return_attention_mask=True,
    )  # fmt: skip
    ids, labels = inputs["input_ids"], inputs["labels"]  # (batch, words + 2, ...), with <S> and </S>
    last = inputs["attention_mask"].sum(1, keepdim=True) - 1  # (batch, 1) where </S> is
    steps = torch.arange(ids.shape[1] - 1)
    rows = torch.arange(len(sentences))[:, None]
    backward = (last - steps).clamp(min=1)  # (batch, words + 1) what the backward direction reads
    return {
        "input_ids": ids[:, :-1],
        "reversed_input_ids": ids[rows, backward],
        "next_targets": labels[:, 1:],
        "previous_targets": labels[rows, backward - 1],
        "attention_mask": steps < last,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("perplexity", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ElmoForPreTraining with its tokenizer")
    parser.add_argument("text", nargs="+", help="text files (a sentence a line, also .gz, .parquet, patterns)")
    parser.add_argument("--pre_tokenized", action="store_true", help="words are split at white space and only there")
    parser.add_argument("--text_column_name", help="of .parquet files (default: their first column of text)")
    parser.add_argument("--per_sentence", type=Path, metavar="FILE", help="write the scores of each sentence")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --per_sentence")
    parser.add_argument("--max_lines", type=int, metavar="N", help="read the first N lines only")
    parser.add_argument("--batch_words", type=int, default=4096, metavar="N", help="words at a time (default: 4096)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    if arguments.batch_words < 1 or (arguments.max_lines is not None and arguments.max_lines < 1):
        parser.error("--batch_words and --max_lines must be at least 1")
    if arguments.overwrite and arguments.per_sentence is None:
        parser.error("--overwrite is for the file of --per_sentence")
    return arguments


def load(name: str, device: str | None) -> tuple[ElmoForPreTraining, ElmoTokenizer]:
    """Model, in float32 and evaluation mode, and tokenizer.

    Raises:
        LoadingError: a folder without them.
        PerplexityError: one without softmax and vocabulary, or a device that there is not.
    """
    tokenizer = load_tokenizer(name)
    config = load_config(name)
    if config.lm_vocab_size is not None:
        model, new = load_model(ElmoForPreTraining, name, needs="elmo.", config=config, dtype=torch.float32)
    if config.lm_vocab_size is None or new:
        raise PerplexityError(
            f"{name} has no softmax (lm_head), as models that were converted from published weights, which come "
            "without one, or saved as an encoder: give the folder of an ElmoForPreTraining, such as train.py writes"
        )
    if wrong := vocabulary_mismatch(config, tokenizer):
        raise PerplexityError(wrong)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.requires_grad_(False).eval().to(device), tokenizer
    except (RuntimeError, AssertionError) as error:  # torch's builds without CUDA assert that there is one
        raise PerplexityError(f"no device {device!r} can be used ({error}): set --device cpu") from error


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[TextIO]:
    """A text file that appears when the block has ended without an error."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise PerplexityError(f"{path} exists: choose another file, or replace a file with --overwrite")
    with whole_file(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        yield file


class ProgressBar(tqdm):
    """Sentences that are scored, of `total`, and the speed in words."""

    def __init__(self, total: int):
        super().__init__(total=total, desc="scoring", unit=" sentences")
        self.words = 0

    def count(self, sentences: int, words: int):
        """Go on by a batch."""
        self.words += words
        seconds = max(self.format_dict["elapsed"], 1e-9)
        self.set_postfix_str(f"{self.words / seconds:,.0f} words/s", refresh=False)
        self.update(sentences)


def run(arguments: argparse.Namespace):
    """Score the text, write the sentences' scores, and print the report."""
    files = find_files(arguments.text)
    output = arguments.per_sentence
    if output is not None and output.resolve() in [Path(name).resolve() for name in files]:
        raise PerplexityError(f"{output} is a text to be scored: choose another file for --per_sentence")

    def lines(report: ReadingReport) -> Iterator[str]:
        return islice(read_lines(files, report, arguments.text_column_name), arguments.max_lines)

    def write(score: SentenceScore):
        if file is not None:
            file.write(json.dumps(score.to_dict()) + "\n")

    with new_file(output, arguments.overwrite) if output is not None else nullcontext() as file:
        model, tokenizer = load(arguments.model, arguments.device)
        # Reading twice takes little time beside the softmax, and tells how much is left.
        counting = tqdm(lines(ReadingReport()), desc="counting", unit=" lines", leave=False)
        total = sum(1 for line in counting if line.strip())
        reading = ReadingReport()
        sentences = (line.split() if arguments.pre_tokenized else line for line in lines(reading))
        with ProgressBar(total) as bar:
            report = perplexity(
                model, tokenizer, sentences, write, batch_words=arguments.batch_words, on_batch=bar.count
            )
    print(json.dumps(report.to_dict()) if arguments.json else report)
    for problem in reading.problems():
        print("warning:", problem, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`. Of several processes the first does it all."""
    if not is_first_process():
        return 0
    arguments = parse_arguments(argv)
    keep_freed_memory()
    return run_command(lambda: run(arguments), PerplexityError, DataError)


if __name__ == "__main__":
    sys.exit(main())
