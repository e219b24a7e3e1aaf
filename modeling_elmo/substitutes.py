"""Words that could stand in the place of a word, as a pretrained ELMo sees it: `python -m modeling_elmo.substitutes`.

    python -m modeling_elmo.substitutes runs/mine "He sat on the [bank] of the river ."
    python -m modeling_elmo.substitutes runs/mine --json < sentences.txt      # a sentence a line

The model needs its softmax, as `train.py` leaves it; published weights come without one.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence

from .commands import command_parser, run_command
from .perplexity import load
from .text_files import ReadingReport, decoded_lines
from .tokenization_elmo import ElmoTokenizer
from .word_prediction import Substitutes, find_substitutes

MARKED = re.compile(r"\[([^\[\]]+)\]")


def read_marked(text: str, tokenizer: ElmoTokenizer, pre_tokenized: bool) -> tuple[list[str], int]:
    """The words of a sentence and the place of the one in brackets.

    Raises:
        ValueError: not exactly one word is in brackets.
    """
    split = str.split if pre_tokenized else tokenizer.split_words
    marks = list(MARKED.finditer(text))
    if len(marks) != 1:
        raise ValueError(
            f"{len(marks)} words are in brackets in {text.strip()[:60]!r}: mark one, as in 'the [bank] of'"
        )
    before, word, behind = split(text[: marks[0].start()]), marks[0][1].strip(), split(text[marks[0].end() :])
    return [*before, word, *behind], len(before)


def show(words: Sequence[str], position: int, found: Substitutes) -> str:
    """A table of both directions together, and of each alone."""
    lines = [" ".join([*words[:position], f"[{words[position]}]", *words[position + 1 :]])]
    columns = [
        [title, *(f"{substitute.probability:7.4f}  {substitute.word}" for substitute in column)]
        for title, column in zip(("both", "from the left", "from the right"), found, strict=True)
    ]
    width = max(len(cell) for column in columns for cell in column) + 3
    for row in range(max(map(len, columns))):
        cells = (column[row] if row < len(column) else "" for column in columns)
        lines.append("  " + "".join(f"{cell:{width}}" for cell in cells).rstrip())
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("substitutes", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ELMo with its softmax, such as train.py writes")
    parser.add_argument("sentence", nargs="*", help="sentences with one word in brackets each; default: standard input")
    parser.add_argument("--top_k", type=int, default=10, help="words to show; default 10")
    parser.add_argument("--pre_tokenized", action="store_true", help="words are split at white space and only there")
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of tables")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        parser.error("--top_k must be 1 or more")
    return arguments


def run(arguments: argparse.Namespace):
    """Find and print the substitutes of each sentence."""
    model, tokenizer = load(arguments.model, arguments.device)
    report = ReadingReport()
    sentences: Iterable[str] = arguments.sentence or decoded_lines(sys.stdin.buffer, report)
    for sentence in sentences:
        if not sentence.strip():
            continue
        words, position = read_marked(sentence, tokenizer, arguments.pre_tokenized)
        found = find_substitutes(model, tokenizer, words, position, arguments.top_k)
        if arguments.json:
            lists = {name: [[item.word, item.probability] for item in part] for name, part in found._asdict().items()}
            print(json.dumps({"words": words, "position": position, **lists}))
        else:
            print(show(words, position, found) + "\n")
    for problem in report.problems():
        print("warning:", problem, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    arguments = parse_arguments(argv)
    return run_command(lambda: run(arguments), ValueError)


if __name__ == "__main__":
    sys.exit(main())
