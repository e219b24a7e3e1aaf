"""Peak memory of tokenising and of training: it does not grow with the text.

    python benchmarks/memory.py ../shared/data/pretrain/train.txt.gz --copies 10

One process tokenises the text and counts its words, another trains on what the first one left; then both again on files
that are copies of the text. Printed is what the system says of the resident memory of each, mapped files included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
TOKENISE = """
from modeling_elmo.arguments import PretrainingArguments, parse_arguments
from modeling_elmo.training_text import read_text
text = read_text(parse_arguments(PretrainingArguments))
print(f"{text.train.num_tokens:,} tokens, {text.train.num_types:,} types")
"""
VALIDATION = """
import itertools, sys
from pathlib import Path
from modeling_elmo.text_files import ReadingReport, read_lines
text, target = sys.argv[1:]
lines = itertools.islice(read_lines([text], ReadingReport()), 500)
Path(target).write_text("".join(f"{line}\\n" for line in lines), encoding="utf-8")
"""


def peak_of(command: list[str], log: Path) -> float:
    """MiB that a command needed at most; its output goes into a file.

    Linux counts what this process had when it started the other: import nothing large here.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed:\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def peaks_of(files: list[Path], folder: Path, steps: int, rounds: int) -> dict[str, float]:
    """MiB for tokenising and for training (the median of some seeds), in an empty folder."""
    # The end of a run is an evaluation: on a part of the text, of the same length for any number of copies.
    flags = (
        f"--config_name tiny --pre_tokenized --per_device_train_batch_size 64 --max_steps {steps} --vocab_size 20000"
    )
    paths = ["--validation_file", folder.parent / "validation.txt", "--data_cache_dir", folder / "cache"]
    argv = [*flags.split(), *map(str, [*paths, "--output_dir", folder / "model", "--train_file", *files])]
    folder.mkdir()
    peaks = {}
    training = ["train.py", *argv, "--overwrite_output_dir", "--seed"]
    for work, commands in {
        "tokenising": [["-c", TOKENISE, *argv]],
        "training": [[*training, str(seed)] for seed in range(rounds)],
    }.items():
        start = time.perf_counter()
        found = [peak_of(command, folder / f"{work}.log") for command in commands]
        peaks[work] = median(found)
        told = ", ".join(f"{peak:,.0f}" for peak in found)
        print(f"{work}, {len(files)} x: {told} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    print((folder / "tokenising.log").read_text().splitlines()[-1], flush=True)
    return peaks


def write_validation(text: Path, target: Path):
    """The first lines of a text, by a process that may import what it needs."""
    peak_of(["-c", VALIDATION, str(text.resolve()), str(target)], target.with_suffix(".log"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a sentence a line, its words separated by spaces; may be compressed")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--rounds", type=int, default=5, help="trainings whose median counts: their peaks differ a lot")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_validation(args.text, folder / "validation.txt")
        copies = [Path(shutil.copy(args.text, folder / f"{number}-{args.text.name}")) for number in range(args.copies)]
        one = peaks_of(copies[:1], folder / "one", args.steps, args.rounds)
        many = peaks_of(copies, folder / "many", args.steps, args.rounds)
    for work, peak in many.items():
        print(f"{work}: {args.copies} copies need {peak / one[work]:.3f} x the memory of one")
    return int(any(peak > 1.1 * one[work] for work, peak in many.items()))


if __name__ == "__main__":
    sys.exit(main())
