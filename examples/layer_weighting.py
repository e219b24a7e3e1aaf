"""Ways to weigh the layers of an ELMo, compared: each single layer, their average, the learnt mix (Peters et al. 2018,
equation 1), the same without the top layer (Reimers and Gurevych 2019, arXiv 1904.02954), and all layers side by side.

    python examples/layer_weighting.py my-elmo tasks runs/layers --task_name trec sick wnut17 --seeds 1 2 3

`tasks` has a folder for each task: sentences or pairs with labels as for finetune_glue.py, or words with tags as for
finetune_ner.py. The head is linear and the biLM frozen. Each way is trained for the same number of epochs and scored on
the validation data at the end. Written to the output folder: summary.txt with mean and standard deviation over seeds,
summary.json, layer_weighting.png, a folder for each run, and the biLM's layers (layer_cache, which may be deleted).
"""

import argparse
import contextlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from texts_and_vectors import run
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from modeling_elmo.elmo_trainer import ElmoTrainer
from modeling_elmo.finetuning import Result, Task, check_output_dir, run_all, write_json
from modeling_elmo.finetuning_report import aligned, mean_and_deviation
from modeling_elmo.loading import load_config
from modeling_elmo.sentence_tasks import load_task
from modeling_elmo.task_layers import ElmoFeatures, ElmoTaskModel, used_layers
from modeling_elmo.text_files import DataError

ROOT = Path(__file__).parents[1]


# --- The ways ----------------------------------------------------------------------------------------------------


class Concatenation(ElmoFeatures):
    """The layers side by side in the place of their mix, with the same dropout."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.layer_norm = config.scalar_mix_layer_norm
        self.dropout = nn.Dropout(config.feature_dropout)

    def forward(self, layers: Tensor) -> Tensor:
        """(batch, words, layers, hidden_size) -> (batch, words, layers * hidden_size)."""
        if self.layer_norm:
            layers = F.layer_norm(layers, layers.shape[-1:])
        return self.dropout(layers.flatten(2))


def learn(model: ElmoTaskModel):
    """Leave a model as it is: it learns the weights of its layers."""


def average(model: ElmoTaskModel):
    """Keep the weights of the layers equal, and their sum 1."""
    mix = cast(Any, model).features.scalar_mix
    nn.init.zeros_(mix.weights)
    nn.init.ones_(mix.gamma)
    mix.requires_grad_(False)


def concatenate(model: ElmoTaskModel):
    """Let the linear head of a model read its layers side by side."""
    changed: Any = model
    changed.features = Concatenation(model.config)
    holder, name = (
        (changed, "classifier") if isinstance(changed.classifier, nn.Linear) else (changed.classifier, "output")
    )
    narrow = getattr(holder, name)
    wide = nn.Linear(narrow.in_features * len(used_layers(model.config)), narrow.out_features)
    nn.init.xavier_uniform_(wide.weight)
    nn.init.zeros_(wide.bias)
    setattr(holder, name, wide)


@dataclass
class Way:
    """A way to weigh layers: which of them, and what is done to a new model that mixes them."""

    name: str
    layers: list[int]
    change: Callable[[ElmoTaskModel], object]


def ways(num_layers: int) -> list[Way]:
    """The ways for a model of so many layers, the one of words without context included."""
    every = list(range(num_layers))
    return [
        *(Way(f"layer {layer}", [layer], average) for layer in every),
        Way("average", every, average),
        Way("learnt mix", every, learn),
        Way("learnt mix without the top", every[:-1], learn),
        Way("concatenation", every, concatenate),
    ]


# --- Training ----------------------------------------------------------------------------------------------------


def load_script(name: str) -> ModuleType:
    """A script of the repository's root as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where `dataclasses` looks types up
        spec.loader.exec_module(module)
    return sys.modules[name]


def train(task_name: str, way: Way, arguments: argparse.Namespace) -> tuple[str, list[Result]]:
    """Train a task in one way with each seed; the metric that counts, and the results."""
    tables = load_task(task_name, arguments.tasks)
    is_tagging = "tokens" in next(iter(tables.values())).column_names
    script: Any = load_script("finetune_ner" if is_tagging else "finetune_glue")
    kind = script.NerArguments if is_tagging else script.GlueArguments
    own = {"dataset_name": task_name, "use_crf": False} if is_tagging else {"task_name": [task_name]}
    args = kind(
        model_name_or_path=arguments.model,
        data_dir=arguments.tasks,
        output_dir=str(Path(arguments.output_dir, task_name, way.name.replace(" ", "_"))),
        cache_dir=str(Path(arguments.output_dir, "layer_cache")),
        head="linear",
        feature_layers=way.layers,
        concat_word_vectors=False,  # the mix by itself is compared
        seeds=arguments.seeds,
        num_train_epochs=arguments.num_train_epochs,
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.per_device_train_batch_size,
        feature_dropout=arguments.feature_dropout,
        scalar_mix_layer_norm=arguments.scalar_mix_layer_norm,
        max_train_samples=arguments.max_train_samples,
        do_predict=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **own,
    )
    metrics = []

    def make_task(name: str, args: Any) -> Task:
        task: Task = script.make_task(name, args)
        if not task.validation:
            raise DataError(f"{name} has no validation data to score the ways on")
        metrics.append(f"{next(iter(task.validation))}_{task.best_metric}")

        def make_model(seed_args: Any) -> ElmoTaskModel:
            model = task.make_model(seed_args)
            way.change(model)
            return model

        return replace(task, make_model=make_model)

    trainer = script.TaggingTrainer if is_tagging else ElmoTrainer
    with contextlib.redirect_stdout(sys.stderr):  # what Trainer tells of its progress
        results = run_all(make_task, [task_name], args, trainer)
    return metrics[0], results


# --- What is shown -----------------------------------------------------------------------------------------------


Scores = dict[str, dict[str, list[float]]]  # task and metric -> way -> a score for each seed


def scores_table(scores: Scores) -> str:
    """A line for each way, a column for each task."""
    rows = [[way, *(mean_and_deviation(scores[task][way]) for task in scores)] for way in next(iter(scores.values()))]
    return aligned([["", *scores], *rows])


def plot(scores: Scores, png_file: Path):
    """Draw the score of each seed, and mean and standard deviation, a panel for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 2.4 * len(scores), 3.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (task, of_ways) in zip(panels, scores.items(), strict=True):
        for place, values in enumerate(of_ways.values()):
            axes.plot(values, [place] * len(values), "o", color="#9db7cf", markersize=4)
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(statistics.mean(values), place, xerr=deviation, fmt="o", color="#0b63a5", capsize=3)
        axes.set_title(task, fontsize=10)
        axes.set_yticks(range(len(of_ways)), list(of_ways))
        axes.grid(True, axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(png_file)


def weights_table(results: Sequence[Result]) -> str:
    """What each layer counts for in the learnt mixes of all layers, mean and standard deviation over seeds."""
    lines = []
    for task in dict.fromkeys(result.task for result in results):
        of_seeds = [next(iter(result.layer_weights.values())) for result in results if result.task == task]
        lines.append([task, *(mean_and_deviation(column) for column in zip(*of_seeds, strict=True))])
    return aligned([["weights learnt", *(f"layer {layer}" for layer in results[0].layers)], *lines])


def compare(arguments: argparse.Namespace):
    """Train all tasks in all ways, print the tables and draw the plot."""
    check_output_dir(cast(Any, arguments))
    config = load_config(arguments.model)
    chosen = ways(config.num_hidden_layers + 1)
    scores: Scores = {}
    mixes: list[Result] = []
    with tqdm(total=len(arguments.task_name) * len(chosen), desc="ways to weigh layers") as bar:
        for task in arguments.task_name:
            for way in chosen:
                metric, results = train(task, way, arguments)
                of_ways = scores.setdefault(f"{task}, {metric.split('_', 1)[1].replace('_', ' ')}", {})
                of_ways[way.name] = [result.metrics[metric] for result in results]
                mixes += results if way.name == "learnt mix" else []
                bar.update()
    text = f"{scores_table(scores)}\n\n{weights_table(mixes)}"
    print(text)
    write_json(Path(arguments.output_dir, "summary.json"), scores)
    Path(arguments.output_dir, "summary.txt").write_text(text + "\n", encoding="utf-8")
    plot(scores, Path(arguments.output_dir, "layer_weighting.png"))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("tasks", help="folder with a folder of data for each task")
    parser.add_argument("output_dir", help="folder to write")
    parser.add_argument("--task_name", nargs="+", required=True, help="folders of tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default 1 2 3")
    parser.add_argument("--num_train_epochs", type=float, default=5, help="default 5")
    parser.add_argument("--learning_rate", type=float, default=5e-3, help="default 0.005")
    parser.add_argument("--per_device_train_batch_size", type=int, default=64, help="examples a step; default 64")
    parser.add_argument("--feature_dropout", type=float, default=0.2, help="on what the head reads; default 0.2")
    parser.add_argument(
        "--scalar_mix_layer_norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="normalise the layers first, for they differ in scale; default: yes",
    )
    parser.add_argument("--max_train_samples", type=int, help="train on the first so many examples only")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="write into a folder that has files in it")
    parser.set_defaults(do_train=True, resume_from_checkpoint=None)
    arguments = parser.parse_args(argv)
    if len(set(arguments.task_name)) < len(arguments.task_name):
        parser.error("--task_name names a task twice")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    return run(compare, parse_arguments(argv), "matplotlib.figure")


if __name__ == "__main__":
    sys.exit(main())
