"""Compare the training curve of a run with that of the original trainer, and draw both.

    python benchmarks/compare_curves.py runs/brown/log.jsonl ../shared/fixtures/bilm_tf_brown/curve.csv [curves.png]

Both logs hold means over 100 batches, so the run must have been made with `--logging_steps 100`.
"""

import argparse
import csv
import math

from modeling_elmo.reporting import read_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log_file", help="log.jsonl of our run")
    parser.add_argument("curve_file", help="curve.csv of the original's")
    parser.add_argument("png_file", nargs="?", help="where to draw both curves")
    args = parser.parse_args()

    training, evaluation = read_log(args.log_file)
    ours = {line["step"]: math.exp(line["loss"]) for line in training}
    with open(args.curve_file, newline="") as file:
        original = {int(row["batch"]): float(row["ppl_of_mean_last100"]) for row in csv.DictReader(file)}

    print(f"{'batch':>6} {'original':>10} {'ours':>10} {'ratio':>7}")
    both = sorted(ours.keys() & original.keys())
    for batch in both:
        print(f"{batch:>6} {original[batch]:>10.1f} {ours[batch]:>10.1f} {ours[batch] / original[batch]:>7.3f}")
    later = [ours[batch] / original[batch] for batch in both if batch >= 300]
    print(f"worst ratio from batch 300 on: {max(later):.3f}" if later else "no batch from 300 on in both logs")
    for line in evaluation:
        print(
            f"held-out perplexity at batch {line['step']}: {line['eval_forward_perplexity']:.1f} forward, "
            f"{line['eval_backward_perplexity']:.1f} backward, {line['eval_perplexity']:.1f} both"
        )
    if args.png_file:
        draw(original, ours, args.png_file)


def draw(original: dict[int, float], ours: dict[int, float], png_file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, curve, style in (("original (TensorFlow)", original, "o-"), ("ours", ours, "x--")):
        axes.plot(list(curve), list(curve.values()), style, markersize=4, label=name)
    axes.set(xlabel="batches", ylabel="training perplexity, mean of 100 batches", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(png_file)


if __name__ == "__main__":
    main()
