"""The scripts that fine-tune, from the command line to what it came to: a table of metrics over tasks and seeds, and a
plot of the layers' weights."""

import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from transformers.utils import logging

from .arguments import ArgumentsError, parse_arguments
from .commands import is_first_process, lenient_output, one_line
from .elmo_trainer import ElmoTrainer
from .finetuning import SPEEDS, Result, Task, check_output_dir, run_all, write_json
from .finetuning_arguments import FinetuningArguments
from .freed_memory import keep_freed_memory
from .loading import LoadingError
from .processes import on_main
from .publish import PublishError, explain
from .text_files import DataError

Arguments = TypeVar("Arguments", bound=FinetuningArguments)


def summary_table(results: Sequence[Result]) -> str:
    """A line for each task and metric of what was scored, with mean and standard deviation over seeds, and one for the
    layers' weights.

    The standard deviation is that of a sample (n - 1), and is left out for a single seed.
    """
    lines = []
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        for name, values in metrics_over_seeds(of_task).items():
            if name.startswith(("validation_", "test_")):
                lines.append((task, name, mean_and_deviation(values), str(len(values))))
        for mix, layers in of_task[0].layer_weights.items():
            columns = zip(*(result.layer_weights[mix] for result in of_task), strict=True)
            weights = [statistics.mean(column) for column in columns]
            text = "  ".join(f"{layer}: {w:.2f}" for layer, w in zip(of_task[0].layers, weights, strict=True))
            if len(layers) > 1:
                lines.append((task, f"layers of {mix}", text, str(len(of_task))))
    return aligned([("task", "metric", "mean ± deviation", "seeds"), *lines])


def metrics_over_seeds(results: Sequence[Result]) -> dict[str, list[float]]:
    """For each metric its value for each seed; those that tell speed are left out."""
    names = [name for name in results[0].metrics if not name.endswith(SPEEDS)]
    return {name: [float(result.metrics[name]) for result in results if name in result.metrics] for name in names}


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "0.8123 ± 0.0045", or the value alone if there is one."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.4f}"  # a metric may be no number


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text whose columns stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def confusion_table(gold: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> str:
    """How often each label (rows) was taken for each (columns)."""
    counts = [[0] * len(names) for _ in names]
    for right, guess in zip(gold, predicted, strict=True):
        counts[right][guess] += 1
    rows = [[name, *map(str, row), str(sum(row))] for name, row in zip(names, counts, strict=True)]
    return aligned([["gold \\ predicted", *names, "all"], *rows])


def plot_layer_weights(results: Sequence[Result], png_file: str | Path) -> None:
    """Bars of what each layer counts for in each scalar mix, by task; whiskers go from the lowest seed to the highest.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"no plot was drawn ({error}): pip install 'modeling-elmo[plot]'") from error

    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.task, []).append(result)
    bars = [(task, mix) for task, group in groups.items() for mix in group[0].layer_weights]
    layers = results[0].layers
    figure = Figure(figsize=(max(4.0, 1.6 + 1.2 * len(bars)), 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colors = ["#9db7cf", "#0b63a5", "#d1601f", "#6b8e23", "#7a5195"]
    width = 0.8 / len(layers)
    for number, layer in enumerate(layers):
        values = [[result.layer_weights[mix][number] for result in groups[task]] for task, mix in bars]
        means = [statistics.mean(column) for column in values]
        spread = [
            [mean - min(column) for mean, column in zip(means, values, strict=True)],
            [max(column) - mean for mean, column in zip(means, values, strict=True)],
        ]
        places = [bar + (number - (len(layers) - 1) / 2) * width for bar in range(len(bars))]
        label = "0, the word" if layer == 0 else str(layer)
        axes.bar(places, means, width, yerr=spread, capsize=3, color=colors[number % len(colors)], label=label)
    many_mixes = len(bars) > len(groups)
    names = [f"{task}\n{mix.removesuffix('.scalar_mix')}" if many_mixes else task for task, mix in bars]
    axes.set_xticks(range(len(bars)), names)
    axes.set_ylabel("share in the scalar mix")
    axes.axhline(1 / len(layers), color="#888888", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.legend(title="layer", frameon=False, ncols=len(layers))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png_file)


def report(results: Sequence[Result], folder: Path) -> str:
    """Write summary.json, summary.txt and layer_weights.png into `folder`; returns the text."""
    text = summary_table(results)
    write_json(folder / "summary.json", [vars(result) for result in results])
    (folder / "summary.txt").write_text(text + "\n", encoding="utf-8")
    if len(results[0].layers) > 1:
        try:
            plot_layer_weights(results, folder / "layer_weights.png")
        except ImportError as error:
            text += f"\n{error}"
    return text


@lenient_output()
def run_script(
    script: str,
    arguments_class: type[Arguments],
    description: str | None,
    task_names: Callable[[Arguments], list[str]],
    make_task: Callable[[str, Arguments], Task],
    trainer_class: type[ElmoTrainer] = ElmoTrainer,
) -> int:
    """What the scripts' `main` does: train all tasks that the command line asks for, and print the table.

    Returns:
        The exit code: 2 for a mistake in the arguments or the data, told in one line on stderr.
    """
    keep_freed_memory()
    logging.disable_progress_bar()  # of transformers: a bar for each file that is written
    logging.set_verbosity_error()  # a new head is no news here
    try:
        args = parse_arguments(arguments_class, description=description)
        names = task_names(args)
        on_main(partial(check_output_dir, args))  # before another process writes into it
        make: Any = make_task
        results = run_all(make, names, args, trainer_class)
        if args.process_index == 0:
            print(report(results, Path(str(args.output_dir))))
        return 0
    except (ArgumentsError, DataError, LoadingError, PublishError) as error:
        told, code = str(error), 2
    except (OSError, SafetensorError) as error:  # of a full disk, or of the Hub
        told, code = f"{one_line(explain(error))}; --resume_from_checkpoint last goes on", 2
    except KeyboardInterrupt:
        told, code = "stopped", 128 + signal.SIGINT
    if is_first_process():  # each process has the same
        print(f"{script}: {told}", file=sys.stderr)
    return code
