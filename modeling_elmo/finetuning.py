"""Fine-tuning with `Trainer`: what the scripts for sentences, tags and questions share.

The biLM is frozen as in the paper, so its layers are computed once and kept on disk (`layer_cache.py`); each script
brings its data, its collator and its metrics.
"""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from .arguments import ArgumentsError
from .commands import listing, whole_file
from .configuration_elmo import ElmoConfig
from .elmo_trainer import LAST, ElmoTrainer, find_checkpoint, remove_checkpoints
from .finetuning_arguments import FinetuningArguments, told_in_a_line
from .layer_cache import CachedCollator, LayerCache
from .loading import MismatchError, load_config, load_model
from .model_card import count_parameters, finetuned_card, write_card
from .processes import on_all, on_main
from .publish import publish
from .task_layers import ElmoTaskModel, used_layers
from .text_files import DataError
from .tokenization_elmo import ElmoTokenizer

logger = logging.get_logger(__name__)

Metrics = dict[str, float]
# Metrics that tell how fast it went.
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "train_loss", "epoch", "total_flos", "preparation_time")
# Of the head and its training, what its card tells.
HEAD_RECIPE = (
    *("head", "head_dim", "feature_layers", "concat_word_vectors", "scalar_mix_layer_norm"),
    *("feature_dropout", "head_dropout"),
)
RECIPE = (
    *("features", "finetune_bilm", "learning_rate", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "weight_decay", "seed"),
)
CACHE_FOLDER = "_layer_cache"  # Trainer uploads nothing whose name begins so


def config_with_head(model_class: type[ElmoTaskModel], args: FinetuningArguments) -> ElmoConfig | None:
    """The config of a model that was fine-tuned with this head before; `None` for any other ELMo, and where all weights
    are to be new."""
    config = load_config(str(args.model_name_or_path))
    goes_on = model_class.__name__ in (config.architectures or []) and args.features != "random"
    return config if goes_on else None


def labels_of(config: ElmoConfig) -> list[str]:
    """The names of a model's labels, in the order of their ids."""
    names: Any = config.id2label
    return [names[number] for number in range(len(names))]


def load_task_model(model_class: type[ElmoTaskModel], args: FinetuningArguments, **options: Any) -> ElmoTaskModel:
    """The model to train: the biLM of `args.model_name_or_path` under a head, new unless it has this very one.

    With `args.ignore_mismatched_sizes` a head for other labels will do, as an intermediate task leaves it (Phang et al.
    2018, "Sentence encoders on STILTs"): its layers go on, and those that depend on the number of labels are new.

    Args:
        model_class: the class with the head.
        args: which biLM, and which head.
        **options: what the task sets in the config, such as `num_labels`, `id2label`.

    Raises:
        LoadingError: no ELMo there, or one without its biLM.
        ArgumentsError: a head of other labels; options that it cannot have.
    """
    name = str(args.model_name_or_path)
    config = load_config(name, **args.head_options(), **options)
    try:
        config.validate_elmo()  # what the flags have changed
    except ValueError as error:
        raise ArgumentsError(str(error)) from error
    set_seed(args.seed)
    if args.features == "random":
        if not args.do_train:
            raise ArgumentsError("--features random has nothing to evaluate without training: leave --no_do_train out")
        return model_class(config)
    try:
        model, new = load_model(model_class, name, "elmo.", args.ignore_mismatched_sizes, config=config)
    except MismatchError as error:
        raise ArgumentsError(
            f"the weights of {name} do not fit {model_class.__name__} with {config.num_labels} labels: start from the "
            "pretrained ELMo or from a model that was fine-tuned for the same labels and head, or pass "
            f"--ignore_mismatched_sizes true for a new last layer. {error}"
        ) from error
    if new and not args.do_train:
        raise ArgumentsError(
            f"{name} has no head for this task that could be evaluated ({listing(new)} would be random): train one, or "
            "name a model that was fine-tuned"
        )
    kept = {weight for weight in model.state_dict() if not weight.startswith("elmo.")} - set(new)
    if args.ignore_mismatched_sizes and any("scalar_mix." not in weight for weight in kept):
        logger.warning(f"the head of {name} goes on, and new are {', '.join(new) or 'no weights'}")
    return model


def check_output_dir(args: FinetuningArguments):
    """Make the output folder, or raise an `ArgumentsError` if it has something in it that would be lost."""
    folder = Path(args.output_dir or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentsError(f"--output_dir {folder} cannot be written: {error.strerror}") from error
    name = args.resume_from_checkpoint
    if name in LAST:
        goes_on = any(folder.rglob(f"checkpoint-*/{TRAINER_STATE_NAME}"))
    else:
        goes_on = name is not None and Path(os.path.realpath(name)).is_relative_to(folder.resolve())
    if goes_on:
        return
    if not args.do_train and _is_the_models(folder, args):
        return  # the scores of a model go beside it
    content = [path for path in folder.rglob("*") if path.is_file() and CACHE_FOLDER not in path.parts]
    if name in LAST:  # what is left of a run that was killed while it wrote its first checkpoint
        content = [path for path in content if not re.search(r"checkpoint-\d+/", path.relative_to(folder).as_posix())]
    if content and not args.overwrite_output_dir:
        raise ArgumentsError(
            f"--output_dir {folder} has files in it, such as {content[0].name}: name another folder, or pass "
            "--overwrite_output_dir to write over them"
        )


def _is_the_models(folder: Path, args: FinetuningArguments) -> bool:
    return folder.resolve() == Path(str(args.model_name_or_path)).resolve()


def with_cache(
    args: FinetuningArguments,
    model: ElmoTaskModel,
    collate: Callable[[list[Any]], Any],
    datasets: Sequence[Dataset],
) -> Callable[[list[Any]], Any]:
    """The collator to train with: with layers from disk if the biLM is frozen, which are computed here if need be."""
    if not args.cache_features or not model.bilm_is_frozen:
        return collate

    def cached() -> LayerCache:
        folder = args.cache_dir or Path(str(args.output_dir), CACHE_FOLDER)
        cast(Any, model).to(args.device)
        try:
            cache = LayerCache(folder, model, args.cache_dtype)
            for dataset in datasets:
                cache.add(_encoded(dataset, collate), total=len(dataset))
        except OSError as error:
            raise ArgumentsError(
                f"the layers cannot be kept in {folder} ({error}): make room, name another folder with --cache_dir, or "
                "compute them each time with --cache_features false"
            ) from error
        return cache

    # The others wait at the cache's lock: at a barrier their patience would end after half an hour.
    return CachedCollator(collate, on_all(cached))


def _encoded(dataset: Dataset, collate: Callable[[list[Any]], Any]) -> Iterator[Mapping[str, Any]]:
    for start in range(0, len(dataset), 256):
        yield collate([dataset[number] for number in range(start, min(start + 256, len(dataset)))])


@dataclass
class Task:
    """What a script hands over for training.

    Attributes:
        make_model: makes a new model, with the head and the seed of the arguments that it gets.
        validation: by name, such as "validation_matched"; the first one decides which checkpoint is best.
        test: likewise by name; it may have no labels.
        compute_metrics: from an `EvalPrediction` to named numbers.
        best_metric: the one that decides.
        pipeline_tag: the Hub's name of such tasks.
        write_predictions: called with split, data set, `PredictionOutput` and folder, for each split predicted.
    """

    name: str
    make_model: Callable[[FinetuningArguments], ElmoTaskModel]
    tokenizer: ElmoTokenizer
    collate: Callable[[list[Any]], Any]
    train: Dataset | None
    validation: dict[str, Dataset]
    test: dict[str, Dataset]
    compute_metrics: Callable[[Any], Metrics]
    best_metric: str
    pipeline_tag: str
    write_predictions: Callable[[str, Dataset, Any, Path], None]


@dataclass
class Result:
    """What came out of one training.

    Attributes:
        metrics: those of the end: `train_...`, and `SPLIT_...` of each split.
        layer_weights: for each scalar mix, the share of each of `layers`.
    """

    task: str
    seed: int
    metrics: Metrics
    layers: list[int]
    layer_weights: dict[str, list[float]]


def run_task(task: Task, args: FinetuningArguments, trainer_class: type[ElmoTrainer] = ElmoTrainer) -> Result:
    """Train, evaluate and predict as the arguments say, and write everything into `args.output_dir`."""
    folder = Path(str(args.output_dir))
    model = _new_model(task, args)
    train, splits = _chosen_data(task, args)
    if not (args.do_eval and task.validation):
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    checkpoint = find_checkpoint(args)
    if args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = f"eval_{task.best_metric}", True
    with told_in_a_line():  # rather now than after the layers were computed
        trainer = trainer_class(
            model=model,
            args=args,
            data_collator=task.collate,
            train_dataset=train,
            eval_dataset=next(iter(splits.values()), None),
            processing_class=task.tokenizer,
            compute_metrics=task.compute_metrics,
        )
    trainer.data_collator = with_cache(args, model, task.collate, [*([train] if train else []), *splits.values()])
    metrics: Metrics = {}
    scores: dict[str, Metrics] = {}
    if train is not None:
        metrics.update(_trained(trainer, checkpoint))
        trainer.save_model()
        trainer.save_state()
    for split, dataset in splits.items():
        output = trainer.predict(dataset, metric_key_prefix=split)  # type: ignore[arg-type]
        scores[split] = _of_labels(output.metrics or {}, split)
        metrics.update(scores[split])
        on_main(partial(task.write_predictions, split, dataset, output, folder))
    layers, weights = used_layers(model.config), model.layer_weights()
    if trainer.is_world_process_zero():
        earlier = folder / "all_results.json"
        if train is None and _is_the_models(folder, args) and earlier.is_file():  # of its training
            with suppress(ValueError, TypeError, RecursionError):  # damaged, and replaced in any case
                metrics = {**json.loads(earlier.read_text(encoding="utf-8")), **metrics}
        write_json(folder / "all_results.json", metrics)
        write_json(folder / "layer_weights.json", {"layers": layers, **weights})
        if train is not None:
            _share(task, trainer, scores)
    return Result(task.name, args.seed, metrics, layers, weights)


def _share(task: Task, trainer: ElmoTrainer, scores: Mapping[str, Metrics]):
    """Write the card of what was trained, and upload the folder again if that was asked for: now it has all results."""
    args, model = cast(FinetuningArguments, trainer.args), cast(ElmoTaskModel, trainer.model)
    folder = Path(str(args.output_dir))
    parameters = count_parameters(model.state_dict())
    parameters["head"] = model.num_parameters() - sum(parameters.values())
    card = finetuned_card(
        model.config,
        repo_name=trainer.hub_model_id or folder.resolve().name,
        parameters=parameters,
        pipeline_tag=task.pipeline_tag,
        base_model=str(args.model_name_or_path),
        data_name=Path(args.files().get("train", task.name)).name,
        recipe={
            **{name: getattr(model.config, name) for name in HEAD_RECIPE},
            "feature_layers": used_layers(model.config),
            **{name: getattr(args, name) for name in RECIPE},
        },
        scores={
            split: {n.removeprefix(f"{split}_"): value for n, value in of_split.items() if not n.endswith(SPEEDS)}
            for split, of_split in scores.items()
        },
    )
    write_card(folder, card)
    if args.push_to_hub:
        trainer._finish_current_push()
        publish(folder, str(trainer.hub_model_id), args.hub_private_repo, args.hub_token, args.hub_revision)


def _new_model(task: Task, args: FinetuningArguments) -> ElmoTaskModel:
    # Files may be there for some processes only.
    return on_all(partial(task.make_model, args))


def _chosen_data(task: Task, args: FinetuningArguments) -> tuple[Dataset | None, dict[str, Dataset]]:
    """The data to train on and those to score, by split, as the arguments say.

    Raises:
        DataError: some of them have nothing to train on or to score.
    """
    train = task.train if args.do_train else None
    splits = {**(task.validation if args.do_eval else {}), **(task.test if args.do_predict else {})}
    for split, dataset in {**({} if train is None else {"train": train}), **splits}.items():
        if len(dataset) == 0:
            raise DataError(f"the {split} data have nothing to train on or to score")
    batch = args.train_batch_size * args.world_size
    if train is not None and args.dataloader_drop_last and len(train) < batch:
        raise DataError(
            f"{len(train)} training examples make no batch of {batch}, and --dataloader_drop_last leaves smaller ones "
            "out: leave that flag out, or make --per_device_train_batch_size smaller"
        )
    return train, splits


def _trained(trainer: ElmoTrainer, checkpoint: str | None) -> Metrics:
    try:
        return trainer.train(resume_from_checkpoint=checkpoint).metrics
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise ArgumentsError(str(error.args[0])) from error


def _of_labels(metrics: Metrics, split: str) -> Metrics:
    """Without the loss, if it is that of labels which are not known, as nothing but times beside it tells."""
    times = {name: value for name, value in metrics.items() if name.endswith(SPEEDS)}
    return times if metrics.keys() - times.keys() == {f"{split}_loss"} else metrics


def run_all(
    make_task: Callable[[str, FinetuningArguments], Task],
    names: Sequence[str],
    args: FinetuningArguments,
    trainer_class: type[ElmoTrainer] = ElmoTrainer,
) -> list[Result]:
    """Train each task with each seed, in folders of their own if there are several: OUTPUT_DIR/TASK/seed_N.

    Args:
        make_task: makes a named task; called for all before the first is trained, so that no mistake comes up late.
    """
    if args.resume_from_checkpoint not in (None, *LAST) and len(names) * len(args.seeds) > 1:
        raise ArgumentsError("--resume_from_checkpoint takes one checkpoint to one training; with several pass 'last'")
    tasks = [on_all(partial(make_task, name, args)) for name in names]
    for task in tasks[1:]:  # the first one's own training tells at once
        _chosen_data(task, args)
        _new_model(task, args)
    results = []
    cache_dir = args.cache_dir or str(Path(str(args.output_dir), CACHE_FOLDER))
    for task in tasks:
        for seed in args.seeds:
            own = copy.copy(args)
            parts = [task.name] * (len(names) > 1) + [f"seed_{seed}"] * (len(args.seeds) > 1)
            own.output_dir, own.seed, own.cache_dir = str(Path(str(args.output_dir), *parts)), seed, cache_dir
            on_all(partial(Path(own.output_dir).mkdir, parents=True, exist_ok=True))
            if args.do_train and not args.resume_from_checkpoint:
                on_main(partial(remove_checkpoints, Path(own.output_dir)))
            results.append(run_task(task, own, trainer_class))
    return results


def write_json(path: Path, content: Any):
    """Write a file that is there as a whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as scratch:  # half a surrogate pair, which UTF-8 cannot hold, as JSON escapes it
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
