"""Runs side by side at equal words: a table of their validation perplexities, and one picture of their curves.

    python benchmarks/compare_runs.py --png curves.png --line 'Kneser-Ney trigram=235' \
        original=runs/original/log.jsonl better=runs/better/log.jsonl

Perplexity is that of the full softmax on the validation text, the state carried; each run needs `--eval_steps`.
"""

import argparse
from pathlib import Path

from modeling_elmo.reporting import Line, read_log

Runs = dict[str, list[Line]]
SIDES = ("forward", "backward")
COLORS = ("#0b63a5", "#d1601f", "#3c8031", "#7b4fa3", "#8a6d1d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="NAME=LOG.JSONL, or the log alone, named by its folder")
    parser.add_argument("--png", help="where to draw the curves")
    parser.add_argument("--line", action="append", default=[], help="NAME=PERPLEXITY, drawn as a level to compare with")
    args = parser.parse_args()

    runs: Runs = {}
    for run in args.runs:
        name, _, path = run.rpartition("=")
        evaluations = read_log(path)[1]
        if not evaluations:
            parser.error(f"{path} has no evaluation: was the run made with --eval_steps?")
        runs[name or Path(path).parent.name] = evaluations
    print_table(runs)
    if args.png:
        levels = {name: float(value) for name, _, value in (line.rpartition("=") for line in args.line)}
        draw(runs, levels, args.png)


def print_table(runs: Runs) -> None:
    """A row for each number of words at which all runs were evaluated, and the end of each run."""
    width = max(len(name) for name in runs)
    print(f"{'words':>12}  {'run':{width}} {'forward':>9} {'backward':>9} {'both':>9} {'median lane fw':>15}")
    by_words = {name: {line["words"]: line for line in lines} for name, lines in runs.items()}
    common = set.intersection(*(set(lines) for lines in by_words.values()))
    for words in sorted(common | {max(lines) for lines in by_words.values()}):
        for name, lines in by_words.items():
            if line := lines.get(words):
                print(
                    f"{words:12,}  {name:{width}} {line['eval_forward_perplexity']:9.1f} "
                    f"{line['eval_backward_perplexity']:9.1f} {line['eval_perplexity']:9.1f} "
                    f"{line['eval_forward_median_lane']:15.1f}"
                )


def draw(runs: Runs, levels: dict[str, float], png_file: str) -> None:
    """Both directions of each run over words read, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (name, lines), color in zip(runs.items(), COLORS * len(runs), strict=False):
        for direction, style in zip(SIDES, ("o-", "s--"), strict=True):
            values = [line[f"eval_{direction}_perplexity"] for line in lines]
            words = [line["words"] for line in lines]
            label = f"{name}, {direction} ({values[-1]:,.1f})"
            axes.plot(words, values, style, color=color, markersize=3.5, linewidth=1.2, label=label)
    for name, value in levels.items():
        axes.axhline(value, color="0.4", linewidth=1, linestyle=":")
        axes.annotate(f"{name}: {value:g}", (0.01, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(xlabel="words read by each direction", ylabel="validation perplexity per word (log scale)")
    axes.set(yscale="log")
    # A run that lost lanes at the clip has perplexities of millions, beside which nothing else could be seen.
    values = [line[f"eval_{side}_perplexity"] for lines in runs.values() for line in lines for side in SIDES]
    if max(values) > 10 * min(values):
        axes.set_ylim(0.9 * min(values), 10 * min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(png_file)


if __name__ == "__main__":
    main()
