"""The curve of a pretraining run, from its log: `python -m modeling_elmo.reporting LOG [PICTURE]`.

    python -m modeling_elmo.reporting runs/tiny/log.jsonl              # as text
    python -m modeling_elmo.reporting runs/tiny/log.jsonl curve.png    # and as a picture

The functions `terminal_curve` and `plot_curve` do the same.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .commands import command_parser, run_command

Line = dict[str, Any]
NOTHING_LOGGED = "nothing logged yet"
# The two columns of dots of a Braille cell from top to bottom, as bits of its code point behind U+2800.
BRAILLE_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def read_log(log_file: str | Path) -> tuple[list[Line], list[Line]]:
    """The lines of a run's log.jsonl about training and those about evaluation.

    A last line that was cut off when the run was stopped is left out; a file that is not there is an empty log.
    """
    training: list[Line] = []
    evaluation: list[Line] = []
    path = Path(log_file)
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        (evaluation if "eval_loss" in line else training).append(line)
    return training, evaluation


def plot_curve(log_file: str | Path, png_file: str | Path) -> None:
    """Draw perplexity over words read, both directions, training and validation, into a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter
    except ImportError as error:
        raise ImportError(f"no curve was drawn ({error}): pip install 'modeling-elmo[plot]'") from error

    training, evaluation = read_log(log_file)
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for direction, color in (("forward", "#0b63a5"), ("backward", "#d1601f")):
        for lines, prefix, style in ((training, "", "-"), (evaluation, "eval_", "o--")):
            if lines:
                label = f"{direction}, {'validation' if prefix else 'training'}"
                if prefix:
                    label += f" (last: {lines[-1][f'eval_{direction}_perplexity']:.1f})"
                axes.plot(
                    [line["words"] for line in lines],
                    [line[f"{prefix}{direction}_perplexity"] for line in lines],
                    style,
                    color=color,
                    alpha=1 if prefix else 0.55,
                    linewidth=1.4,
                    markersize=5,
                    label=label,
                )
    if training or evaluation:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, NOTHING_LOGGED, transform=axes.transAxes, ha="center")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("words read by each direction")
    axes.set_ylabel("perplexity per word (log scale)")
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png_file)


def terminal_curve(log_file: str | Path, width: int = 80, height: int = 16) -> str:
    """The same curve as text of at most `width` columns and `height` lines, the mean of both directions over steps.

    Training is a line of Braille dots, validation is marked with "o".
    """
    training, evaluation = read_log(log_file)
    train = [(line["step"], line["loss"]) for line in training]
    valid = [(line["step"], line["eval_loss"]) for line in evaluation]
    if not train + valid:
        return NOTHING_LOGGED
    rows, columns = max(height - 3, 2), max(width - 8, 10)
    first, last = min(step for step, _ in train + valid), max(step for step, _ in train + valid)
    low, high = min(loss for _, loss in train + valid), max(loss for _, loss in train + valid)

    def dot(step: float, loss: float) -> tuple[int, int]:
        """Dot column and dot row of a point; a cell has 2 x 4 dots."""
        x = (step - first) / max(last - first, 1)
        y = min(max((high - loss) / max(high - low, 1e-6), 0), 1)  # a rounded tick may lie a little outside
        return round(x * (2 * columns - 1)), round(y * (4 * rows - 1))

    cells = [[0] * columns for _ in range(rows)]
    marks: dict[tuple[int, int], str] = {}
    for (step, loss), (next_step, next_loss) in zip(train, train[1:] or train, strict=False):
        (x, y), (next_x, next_y) = dot(step, loss), dot(next_step, next_loss)
        length = max(abs(next_x - x), abs(next_y - y), 1)
        for place in range(length + 1):
            column, row = round(x + (next_x - x) * place / length), round(y + (next_y - y) * place / length)
            cells[row // 4][column // 2] |= BRAILLE_DOTS[column % 2][row % 4]
    for step, loss in valid:
        column, row = dot(step, loss)
        marks[row // 4, column // 2] = "o"

    ticks = {dot(first, math.log(value))[1] // 4: f"{value:g}" for value in tick_values(math.exp(low), math.exp(high))}
    lines = ["perplexity (log scale), mean of both directions; line: training, o: validation"[:width]]
    for row in range(rows):
        drawn = "".join(marks.get((row, column)) or chr(0x2800 + cells[row][column]) for column in range(columns))
        axis = "┤" if row in ticks else "│"
        lines.append(f"{ticks.get(row, ''):>6} {axis}{drawn}".replace("\u2800", " ").rstrip())
    lines.append(" " * 7 + "└" + "─" * columns)
    lines.append(" " * 8 + f"{first:<{columns // 2 - 2}}step{last:>{columns - columns // 2 - 2}}")
    return "\n".join(lines)


def tick_values(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5, 10, 20, ...) between two perplexities; the ends themselves where there are none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in values if low <= value <= high] or [float(f"{value:.4g}") for value in (low, high)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    parser = command_parser("reporting", __doc__)
    parser.add_argument("log_file", metavar="LOG", help="log.jsonl in the folder of a run")
    parser.add_argument("png_file", metavar="PICTURE", nargs="?", help="also draw it into this file, as a PNG")
    arguments = parser.parse_args(argv)

    def run():
        if not Path(arguments.log_file).is_file():
            raise FileNotFoundError(f"no file {arguments.log_file}: give log.jsonl in the folder of a run")
        try:
            print(terminal_curve(arguments.log_file))
            if arguments.png_file:
                plot_curve(arguments.log_file, arguments.png_file)
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{arguments.log_file} is not the log of a run") from error

    return run_command(run, ImportError, ValueError)


if __name__ == "__main__":
    sys.exit(main())
