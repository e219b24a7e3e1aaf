"""What ELMo adds to a task model: each task with the same head on four kinds of features, over three seeds.

    python benchmarks/finetune_table.py runs/two_hours ../shared/data/tasks runs/table            # what is measured
    python benchmarks/finetune_table.py runs/two_hours ../shared/data/tasks runs/table --commands # of each cell
    python benchmarks/finetune_table.py runs/two_hours ../shared/data/tasks runs/table --run      # what is missing

Each cell is a run of a finetune_*.py script into runs/table/TASK/FEATURES. One that is finished is not run again, so
the table may be filled in several sittings.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from modeling_elmo.finetuning_report import mean_and_deviation

ROOT = Path(__file__).parents[1]


@dataclass
class Cells:
    """A line of the table: a task, the metric that counts, the flags of its runs, and what to compare them with: the
    cheap baseline of ../shared/data (TF-IDF or overlap features, most frequent tag), and an aim for ELMo."""

    script: str
    metric: str
    baseline: float | None
    aim: float | None
    flags: str


# The same for every task and kind of features, unless a task says otherwise behind it.
COMMON = "--scalar_mix_layer_norm true --seeds 1 2 3 --overwrite_output_dir "
# Dropout of the features, 0.5 by default as in the paper, makes training too slow for a table.
GLUE = (
    "--data_dir {data} --task_name {task} --head_dim 150 --feature_dropout 0 --head_dropout 0.1 --learning_rate 1e-3 "
    "--num_train_epochs "
)
LONG = "--feature_dropout 0.2 --learning_rate 2e-3 --num_train_epochs "
TASKS = {
    "sst2": Cells("finetune_glue.py", "validation_accuracy", 0.804, 0.86, GLUE + "2 --seeds 1"),
    "sst5": Cells("finetune_glue.py", "validation_accuracy", 0.392, 0.43, GLUE + "5"),
    "trec": Cells("finetune_glue.py", "validation_accuracy", 0.852, 0.93, GLUE + "8"),
    "cola": Cells("finetune_glue.py", "validation_matthews_correlation", 0.170, 0.15, GLUE + "8"),
    "mrpc": Cells("finetune_glue.py", "validation_f1", 0.837, 0.84, GLUE + "6"),
    "stsb": Cells("finetune_glue.py", "validation_spearmanr", 0.653, 0.70, GLUE + "6"),
    "qnli": Cells("finetune_glue.py", "validation_accuracy", 0.735, 0.76, GLUE + "4 --seeds 1"),
    "sick": Cells("finetune_glue.py", "validation_accuracy", 0.756, 0.80, GLUE + "6"),
    "rte": Cells("finetune_glue.py", "validation_accuracy", 0.581, None, GLUE + "6"),
    "wnut17": Cells(
        "finetune_ner.py", "validation_f1", 0.096, 0.30,
        "--train_file {data}/wnut17/train.jsonl.gz --validation_file {data}/wnut17/validation.jsonl.gz "
        + LONG + "15",
    ),
    "squad": Cells(
        "finetune_squad.py", "validation_f1", None, 50.0,  # of 100, as the official evaluation counts
        "--train_file {data}/squad/train.jsonl.gz --validation_file {data}/squad/validation.jsonl.gz "
        + LONG + "2 --seeds 1 --train_sampling_strategy group_by_length",
    ),
}  # fmt: skip
FEATURES = {
    "head alone": "--features random",
    "+ layer 0": "--features layer_0",
    "+ ELMo": "",
    # 1e-4, the default, is for a biLM that knows more than some million words; 3e-3 was too much on sst2.
    "+ ELMo fine-tuned": "--finetune_bilm true --bilm_learning_rate 1e-3",
}


def command(task: str, features: str, args: argparse.Namespace) -> list[str]:
    """The command of a cell."""
    cells = TASKS[task]
    flags = f"{COMMON} {cells.flags.format(data=shlex.quote(str(args.data)), task=task)} {FEATURES[features]}"
    fixed = ["--model_name_or_path", str(args.model), "--output_dir", str(folder_of(task, features, args))]
    flags += " --disable_tqdm true"
    flags += f" --bf16 {'false' if args.float32 else 'true'}" + " --use_cpu" * args.use_cpu
    return ["python", cells.script, *fixed, *shlex.split(flags)]


def folder_of(task: str, features: str, args: argparse.Namespace) -> Path:
    """Where a cell is written: runs/table/trec/elmo_fine-tuned."""
    return args.output / task / features.removeprefix("+ ").lower().replace(" ", "_")


def measured(task: str, features: str, args: argparse.Namespace) -> list[float] | None:
    """The metric of each seed; `None` for a cell that has not been run."""
    path = folder_of(task, features, args) / "summary.json"
    if not path.is_file():
        return None
    return [run["metrics"][TASKS[task].metric] for run in json.loads(path.read_text())]


def table(args: argparse.Namespace) -> str:
    """The table in Markdown."""
    lines = ["| task | metric | baseline | aim | " + " | ".join(FEATURES) + " |", "| --- " * (4 + len(FEATURES)) + "|"]
    for task in args.tasks:
        values = [measured(task, features, args) for features in FEATURES]
        shown = ["" if value is None else mean_and_deviation(value) for value in values]
        aims = ["" if value is None else f"{value:g}" for value in (TASKS[task].baseline, TASKS[task].aim)]
        metric = TASKS[task].metric.removeprefix("validation_").replace("_", " ")
        lines.append("| " + " | ".join([task, metric, *aims, *shown]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a pretrained ELMo")
    parser.add_argument("data", type=Path, help="folder with a folder for each task")
    parser.add_argument("output", type=Path, help="where the runs are")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--commands", action="store_true", help="print the command of each cell")
    parser.add_argument("--run", action="store_true", help="run what is missing first")
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--float32", action="store_true", help="for a processor without products in bfloat16")
    args = parser.parse_args()
    failed = False
    for task in args.tasks:
        for features in args.features:
            words = command(task, features, args)
            if args.commands:
                print(shlex.join(words))
            elif args.run and measured(task, features, args) is None:
                print(f"{task}, {features}", file=sys.stderr, flush=True)
                args.output.parent.mkdir(parents=True, exist_ok=True)
                with open(args.output.with_name(f"{args.output.name}.log"), "a") as log:
                    code = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, stdout=log, stderr=log).returncode
                if code:
                    print(f"exit code {code}: see {log.name}", file=sys.stderr)
                    failed = True
    if not args.commands:
        print(table(args))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
