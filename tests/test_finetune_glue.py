"""finetune_glue.py: runs in this process on tiny data, what they leave behind, and mistakes at the command line."""

import csv
import json
import math
import os
import pickle
import shutil
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from conftest import TINY
from datasets import ClassLabel, Dataset
from finetuning_runs import assert_told, change_weights, command_line, run_script, save_pretrained
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from training_runs import forked, load_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoForSequenceClassification, ElmoModel
from modeling_elmo.checkpoints import checkpoints_of
from modeling_elmo.elmo_trainer import find_checkpoint
from modeling_elmo.finetuning import config_with_head, write_json
from modeling_elmo.finetuning_arguments import FinetuningArguments
from modeling_elmo.finetuning_report import confusion_table, mean_and_deviation
from modeling_elmo.layer_cache import LayerCache

WORDS = ["the", "cat", "sat", "on", "mats"]
WIDER = {**TINY, "cnn_filters": [[1, 16], [2, 32], [3, 32]], "projection_dim": 16}


def sentence(rng: np.random.Generator, extra: str) -> str:
    words = list(rng.choice(WORDS, int(rng.integers(2, 6))))
    words.insert(int(rng.integers(len(words) + 1)), extra)
    return " ".join(words)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two tasks that a tiny model learns ("sentiment", "pairs") in the layout of --data_dir, and a numeric one."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    for split, number in (("train", 64), ("validation", 24), ("test", 8)):
        rows: dict[str, list[dict]] = {"sentiment": [], "pairs": [], "stsb": []}
        for index in range(number):
            label = int(rng.integers(2))
            extra = ["awful", "good"][label]
            rows["sentiment"].append({"text": sentence(rng, extra), "label": "np"[label]})
            same, other = [sentence(rng, ["awful", "good"][which]) for which in (label, int(rng.integers(2)))]
            rows["pairs"].append({"premise": same, "hypothesis": other, "label": int("good" in same)})
            rows["stsb"].append({"sentence1": same, "sentence2": other, "label": label * 2.5, "idx": index})
        for task, content in rows.items():
            (folder / task).mkdir(exist_ok=True)
            lines = [json.dumps(row) for row in content]
            (folder / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def bilm(tmp_path_factory) -> Path:
    """A pretrained model, as train.py leaves it."""
    torch.manual_seed(1)
    return save_pretrained(ElmoForPreTraining(ElmoConfig(**WIDER)), tmp_path_factory.mktemp("bilm"))


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_glue")


@pytest.fixture
def values(data, bilm, tmp_path) -> dict[str, object]:
    """The flags of a short run."""
    return {
        "model_name_or_path": bilm, "data_dir": data, "task_name": "sentiment", "output_dir": tmp_path / "out",
        "learning_rate": 0.02, "head_dim": 4, "feature_dropout": 0.0, "head_dropout": 0.0, "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
    }  # fmt: skip


@pytest.fixture
def run(script, monkeypatch, values):
    """Calls the script with flags given as keywords; gives its exit code."""
    return lambda **flags: run_script(script, monkeypatch, {**values, **flags})


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def test_a_task_by_name(run, tmp_path, capsys, bilm):
    assert run(head="linear", num_train_epochs=12, learning_rate=0.1) == 0
    out = tmp_path / "out"
    metrics = results(out)
    assert metrics["validation_accuracy"] > 0.9 and metrics["test_accuracy"] > 0.9
    table = capsys.readouterr().out
    assert "validation_accuracy" in table and "layers of features.scalar_mix  0: 0." in table
    assert (out / "summary.txt").read_text() in table + "\n"
    assert (out / "layer_weights.png").read_bytes().startswith(b"\x89PNG")
    weights = json.loads((out / "layer_weights.json").read_text())
    assert weights["layers"] == [0, 1, 2] and sum(weights["features.scalar_mix"]) == pytest.approx(1)

    with open(out / "validation_predictions.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = [row["prediction"] == row["label"] for row in rows]
    assert len(rows) == 24 and np.mean(right) == pytest.approx(metrics["validation_accuracy"])
    assert (out / "validation_confusion.txt").read_text().startswith("gold \\ predicted  n")

    model = AutoModelForSequenceClassification.from_pretrained(out)
    trained, pretrained = model.elmo.state_dict(), ElmoModel.from_pretrained(bilm).state_dict()
    assert all(weight.equal(pretrained[name]) for name, weight in trained.items())  # frozen
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(out))
    assert [answer["label"] for answer in classify(["the good cat", "awful mats"])] == ["p", "n"]


def test_labels_that_a_test_set_hides_are_not_needed(run, data, tmp_path):
    """GLUE hides them: -1 in every row."""
    files = {f"{split}_file": str(data / f"pairs/{split}.jsonl") for split in ("train", "validation")}
    rows = [{**json.loads(line), "label": -1} for line in (data / "pairs/test.jsonl").read_text().splitlines()]
    files["test_file"] = str(tmp_path / "test.jsonl")
    Path(files["test_file"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(**files, task_name=None, num_train_epochs=1) == 0
    lines = (tmp_path / "out/test_predictions.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 1 + len(rows)
    metrics = results(tmp_path / "out")
    assert not {"test_loss", "test_accuracy"} & set(metrics) and "validation_accuracy" in metrics


def same_model(one: Path, other: Path, but: tuple[str, ...] = ()):
    """Fails unless two folders hold the same weights and metrics, but for speed and what ends as `but` says."""
    first, second = results(one), results(other)
    assert first.keys() == second.keys()
    left_out = ("runtime", "per_second", *but)
    for name, value in first.items():
        assert name.endswith(left_out) or value == pytest.approx(second[name], abs=1e-5), name
    model, expected = (ElmoForSequenceClassification.from_pretrained(folder) for folder in (one, other))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=0, atol=1e-4)


def test_cached_layers_change_nothing(run, tmp_path):
    """Same seed, with dropout, pairs included: the same model comes out."""
    flags = {"task_name": "pairs", "head_dropout": 0.2, "feature_dropout": 0.2}
    assert run(**flags) == 0
    assert run(**flags, output_dir=tmp_path / "plain", cache_features="false") == 0
    assert (tmp_path / "out" / "_layer_cache").is_dir() and not (tmp_path / "plain" / "_layer_cache").exists()
    same_model(tmp_path / "out", tmp_path / "plain")


def test_two_processes_train_the_model_of_one(run, values, tmp_path):
    """With half the examples of a step each. Those that are scored are odd in number, so one is read twice, which
    Trainer's losses show."""
    flags = {"task_name": "pairs", "max_eval_samples": 23, "seeds": [1, 2], "use_cpu": None}
    assert run(**flags) == 0
    two = {**values, **flags, "output_dir": tmp_path / "two", "per_device_train_batch_size": 4}
    code, told = forked(command_line(two), tmp_path / "told", 2, script="finetune_glue")
    assert code == 0, told
    assert told.count("layers of features.scalar_mix") == 1 and "MISSING" not in told
    for seed in (1, 2):
        same_model(tmp_path / f"two/seed_{seed}", tmp_path / f"out/seed_{seed}", but=("loss",))
        predictions = [tmp_path / folder / f"seed_{seed}/validation_predictions.tsv" for folder in ("two", "out")]
        assert predictions[0].read_text() == predictions[1].read_text()
    code, told = forked(command_line(two), tmp_path / "told", 2, script="finetune_glue")
    assert code == 2 and told.count("has files in it") == 1 and "Traceback" not in told


def test_several_tasks_and_seeds(run, tmp_path, capsys):
    assert run(task_name=["sentiment", "stsb"], seeds=[1, 2], num_train_epochs=1, max_train_samples=20) == 0
    out = tmp_path / "out"
    table = capsys.readouterr().out
    assert "sentiment  validation_accuracy" in table and "stsb       validation_spearmanr" in table
    summary = json.loads((out / "summary.json").read_text())
    assert [(run["task"], run["seed"]) for run in summary] == [
        ("sentiment", 1), ("sentiment", 2), ("stsb", 1), ("stsb", 2),
    ]  # fmt: skip
    losses = [results(out / "sentiment" / f"seed_{seed}")["validation_loss"] for seed in (1, 2)]
    assert losses[0] != losses[1]
    mean, deviation = np.mean(losses), np.std(losses, ddof=1)
    assert f"sentiment validation_loss {mean:.4f} ± {deviation:.4f} 2" in " ".join(table.split())


def test_mistakes_in_any_task_are_told_before_one_is_trained(run, data, tmp_path, capsys):
    tasks = shutil.copytree(data, tmp_path / "tasks")
    (tasks / "pairs" / "validation.jsonl").unlink()
    (tasks / "pairs" / "test.jsonl").write_text(json.dumps({"premise": None, "hypothesis": "a", "label": 1}) + "\n")
    (tasks / "three").mkdir()
    (tasks / "three" / "train.jsonl").write_text("".join(json.dumps({"text": c, "label": c}) + "\n" for c in "abc"))
    assert run(num_train_epochs=1, output_dir=tmp_path / "classifier") == 0
    capsys.readouterr()
    for flags, message in (
        ({"task_name": ["sentiment", "movies"]}, "has no folder 'movies'"),
        ({"task_name": ["sentiment", "pairs"]}, "test, row 0: column 'premise' has None instead of a text"),
        ({"task_name": ["sentiment", "three"], "dataloader_drop_last": "true"}, "3 training examples make no batch"),
        (
            {"task_name": ["sentiment", "three"], "model_name_or_path": tmp_path / "classifier"},
            "do not fit ElmoForSequenceClassification with 3 labels",
        ),
    ):
        assert run(**flags, data_dir=tasks) == 2
        assert message in capsys.readouterr().err
        assert not any((tmp_path / "out").iterdir())


def test_data_are_read_once_for_all_seeds(run, script, monkeypatch):
    monkeypatch.setattr(script, "read_data", read := Mock(wraps=script.read_data))
    assert run(seeds=[1, 2], num_train_epochs=1, max_train_samples=8) == 0
    read.assert_called_once()


def test_regression_with_own_files(run, data, tmp_path):
    files = {f"{split}_file": data / "stsb" / f"{split}.jsonl" for split in ("train", "validation")}
    assert run(task_name=None, data_dir=None, head="linear", num_train_epochs=20, learning_rate=0.1, **files) == 0
    metrics = results(tmp_path / "out")
    assert metrics["validation_pearson"] > 0.6
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"


ONE_STEP = {"warmup_steps": 0, "optim": "sgd", "max_steps": 1, "max_grad_norm": 1e9, "head": "linear"}


def test_the_layers_weights_have_a_learning_rate_of_their_own(run, tmp_path):
    moved = []
    for rate in (0.1, 1.0):
        assert run(**ONE_STEP, scalar_mix_learning_rate=rate, output_dir=tmp_path / str(rate)) == 0
        model = ElmoForSequenceClassification.from_pretrained(tmp_path / str(rate))
        moved.append(model.features.scalar_mix.weights.detach())  # from zeros
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[1], 10 * moved[0])


def test_weight_decay_spares_the_mix(run, tmp_path):
    models = []
    for decay in (0.0, 1.0):
        assert run(**ONE_STEP, weight_decay=decay, output_dir=tmp_path / str(decay)) == 0
        models.append(ElmoForSequenceClassification.from_pretrained(tmp_path / str(decay)))
    without, with_decay = (model.features.scalar_mix for model in models)
    assert without.gamma.equal(with_decay.gamma) and without.weights.equal(with_decay.weights)
    assert not models[0].classifier.output.weight.equal(models[1].classifier.output.weight)


def test_noise_on_characters(run, tmp_path):
    weights = []
    for alpha in (None, 5):
        flags = {"neftune_noise_alpha": alpha, "cache_features": "false", "output_dir": tmp_path / str(alpha)}
        assert run(**ONE_STEP, **flags) == 0
        weights.append(load_file(tmp_path / str(alpha) / "model.safetensors")["classifier.output.weight"])
    assert not weights[0].equal(weights[1])


def test_batches_are_dropped_in_training_only(run, tmp_path):
    sizes = {"per_device_train_batch_size": 10, "per_device_eval_batch_size": 7}
    assert run(**sizes, dataloader_drop_last="true", num_train_epochs=1, head="linear") == 0
    out = tmp_path / "out"
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6  # of 64 examples
    assert torch.load(out / "training_args.bin", weights_only=False).dataloader_drop_last
    for split, number in (("validation", 24), ("test", 8)):
        assert len((out / f"{split}_predictions.tsv").read_text().splitlines()) == 1 + number


def test_the_bilm_is_trained_on_request_with_its_own_learning_rate(run, tmp_path, bilm):
    one_step = {**ONE_STEP, "finetune_bilm": "true"}
    assert run(**one_step, bilm_learning_rate=1e-3) == 0
    model = ElmoForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not model.config.freeze_bilm and not (tmp_path / "out" / "_layer_cache").exists()
    before, after = ElmoModel.from_pretrained(bilm).state_dict(), model.elmo.state_dict()
    small = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert run(**one_step, bilm_learning_rate=1e-2, output_dir=tmp_path / "fast") == 0
    after = ElmoForSequenceClassification.from_pretrained(tmp_path / "fast").elmo.state_dict()
    large = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert small > 0 and large == pytest.approx(10 * small, rel=0.01)


@pytest.mark.parametrize("features", ["layer_0", "random"])
def test_baselines(run, tmp_path, bilm, features):
    assert run(features=features, num_train_epochs=1) == 0
    model = ElmoForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.feature_layers == [0]
    encoder = ElmoModel.from_pretrained(bilm).word_encoder
    same = model.elmo.word_encoder.projection.weight.equal(encoder.projection.weight)
    assert same is (features == "layer_0")


def test_a_head_goes_on_unless_all_weights_are_to_be_new(tmp_path):
    ElmoConfig(architectures=["ElmoForSequenceClassification"]).save_pretrained(tmp_path)
    for features, goes_on in (("elmo", True), ("layer_0", True), ("random", False)):
        arguments = Mock(model_name_or_path=tmp_path, features=features)
        assert bool(config_with_head(ElmoForSequenceClassification, arguments)) == goes_on


def test_the_head_reads_the_layers_that_are_named(run, tmp_path):
    assert run(feature_layers=[0, 1], concat_word_vectors="false", num_train_epochs=1) == 0
    config = ElmoForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.feature_layers == [0, 1] and not config.concat_word_vectors


def test_a_finished_model_is_evaluated_and_trained_further(run, tmp_path):
    assert run() == 0
    out = tmp_path / "out"
    flags = {"do_train": "false", "train_sampling_strategy": "group_by_length"}
    assert run(model_name_or_path=out, output_dir=tmp_path / "eval", **flags) == 0
    for split in ("validation", "test"):  # in the order of the data
        name = f"{split}_predictions.tsv"
        assert (tmp_path / "eval" / name).read_text() == (out / name).read_text()
    again = results(tmp_path / "eval")
    for name in ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss"):
        assert again[name] == pytest.approx(results(out)[name], abs=1e-6), name


def test_an_interrupted_training_goes_on(run, tmp_path, capsys):
    flags = {"task_name": "pairs", "head_dropout": 0.2, "save_total_limit": 5, "load_best_model_at_end": "false"}
    assert run(**flags) == 0
    checkpoint = tmp_path / "out" / "checkpoint-8"
    assert run(**flags, output_dir=tmp_path / "seeds", resume_from_checkpoint=checkpoint, seeds=[1, 2]) == 2
    assert "takes one checkpoint to one training" in capsys.readouterr().err
    assert run(**flags, output_dir=tmp_path / "again", resume_from_checkpoint=checkpoint) == 0
    assert run(**flags, output_dir=tmp_path / "again", resume_from_checkpoint=checkpoint) == 2
    assert "has files in it" in capsys.readouterr().err, "of a run that this checkpoint is not of"
    again = results(tmp_path / "again")
    assert run(**flags, output_dir=tmp_path / "again", resume_from_checkpoint="last") == 0  # at its end already
    assert results(tmp_path / "again")["validation_loss"] == pytest.approx(again["validation_loss"], abs=1e-6)
    whole, parts = (ElmoForSequenceClassification.from_pretrained(tmp_path / name) for name in ("out", "again"))
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, parts.state_dict()[name], rtol=0, atol=1e-6, msg=name)


def test_checkpoints_that_were_not_finished_are_left_out(run, tmp_path, capsys):
    """Of a run that was killed while it wrote one: the one before serves, or else the run begins."""
    flags = {"task_name": "pairs", "save_total_limit": 5, "load_best_model_at_end": "false", "num_train_epochs": 2}
    assert run(**flags) == 0
    *_, before, last = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    expected = (tmp_path / "out" / "model.safetensors").read_bytes()
    (last / "optimizer.pt").unlink()
    (last / "trainer_state.json").write_text("")
    assert run(**flags, resume_from_checkpoint="last") == 0
    assert f"{last} was not written to its end" in capsys.readouterr().err
    assert json.loads((last / "trainer_state.json").read_text())["global_step"] == int(last.name[11:])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
    half = tmp_path / "half" / before.name
    half.mkdir(parents=True)
    (half / "config.json").touch()
    others = {"checkpoint-1": "[]", "checkpoint-2": 100_000 * "["}
    for name, state in others.items():
        half.with_name(name).mkdir()
        (half.with_name(name) / "trainer_state.json").write_text(state)
    assert run(**flags, output_dir=tmp_path / "half") == 2
    assert run(**flags, output_dir=tmp_path / "half", resume_from_checkpoint="last") == 0
    told = capsys.readouterr().err
    assert all(f"{half.with_name(name)} was not written to its end" in told for name in (before.name, *others))


def test_a_checkpoint_that_is_half_deleted_is_left_out(run, bilm, tmp_path, capsys):
    """`Trainer` deletes the newest if another was best, file by file, and would go on without some of them."""
    flags = {"task_name": "pairs", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    assert run(**flags, save_total_limit=2, do_eval="false", do_predict="false") == 0
    first, last = checkpoints_of(tmp_path / "out")
    args = FinetuningArguments(str(tmp_path / "out"), resume_from_checkpoint="last", model_name_or_path=str(bilm))
    assert find_checkpoint(args) == str(last)
    other = Mock(output_dir=args.output_dir, resume_from_checkpoint="last", process_index=1)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (last / name).read_bytes()
        (last / name).unlink()
        assert find_checkpoint(args) == str(first)
        assert f"{last} was not written to its end, or is half deleted, and is left out" in capsys.readouterr().err
        assert find_checkpoint(other) == str(first) and not capsys.readouterr().err, "told once"
        (last / name).write_bytes(content)
    for checkpoint in (first, last):
        (checkpoint / "scheduler.pt").unlink()
    assert find_checkpoint(args) == str(last) and not capsys.readouterr().err, "of another kind"


def test_checkpoints_of_weights_alone_go_on(run, tmp_path):
    flags = {"task_name": "pairs", "save_strategy": "steps", "save_steps": 1, "save_only_model": "true"}
    flags |= {"do_eval": "false", "do_predict": "false"}
    assert run(**flags, max_steps=1) == 0 and not (tmp_path / "out/checkpoint-1/optimizer.pt").exists()
    assert run(**flags, max_steps=2, resume_from_checkpoint="last") == 0
    assert [path.name for path in checkpoints_of(tmp_path / "out")][-1] == "checkpoint-2"


def test_an_earlier_checkpoint_that_is_taken_up_gives_up_the_later_ones(run, tmp_path, monkeypatch):
    """As it writes the first of its own; else "last" would be of the course that was left, or half of each."""
    flags = {"task_name": "pairs", "save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 5}
    flags |= {"do_eval": "false", "do_predict": "false"}
    assert run(**flags) == 0
    first, second, _ = checkpoints_of(tmp_path / "out")
    with monkeypatch.context() as patch:  # killed while it writes
        patch.setattr("transformers.Trainer._save_optimizer_and_scheduler", Mock(side_effect=KeyboardInterrupt))
        assert run(**flags, resume_from_checkpoint=first) == 130
    assert checkpoints_of(tmp_path / "out") == [first, second] and not (second / "trainer_state.json").exists()


def test_results_that_are_damaged_are_replaced_by_an_evaluation(run, tmp_path):
    assert run() == 0
    results = tmp_path / "out" / "all_results.json"
    for content in (b"{", b"[]", b"\xff", 100_000 * b"["):
        results.write_bytes(content)
        assert run(model_name_or_path=tmp_path / "out", do_train="false") == 0
        assert any(name.startswith("validation") for name in json.loads(results.read_bytes()))


def test_half_a_surrogate_pair_is_kept_in_results(tmp_path):
    """As JSON files of questions may hold one, also in their ids."""
    write_json(tmp_path / "x.json", {"a\ud800": "b\udfff"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a\ud800": "b\udfff"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"cut"),
        ("config.json", b"{"),
        ("optimizer.pt", b"cut"),
        ("optimizer.pt", None),
        ("scheduler.pt", None),
        ("rng_state.pth", None),
        ("rng_state.pth", pickle.dumps(Path("evil"))),
    ],
    ids=["weights", "config", "optimizer", "no_optimizer", "no_schedule", "no_random_state", "code"],
)
def test_a_damaged_checkpoint_is_told(run, tmp_path, capsys, name, content):
    flags = {"task_name": "pairs", "num_train_epochs": 2}
    assert run(**flags) == 0
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        file = checkpoint / name
        file.write_bytes(content) if content is not None else file.unlink()
    assert run(**{**flags, "num_train_epochs": 3}, resume_from_checkpoint="last") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is damaged or another model's (" in error and "or begin anew with --overwrite_output_dir" in error


def test_a_full_disk_is_told(run, monkeypatch, capsys):
    def save_file(*_, **__):
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", save_file)
    assert run() == 2
    assert "too large (os error 27); --resume_from_checkpoint last goes on\n" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("torch.save", Mock(side_effect=RuntimeError("unexpected pos 40448")))
    assert run(overwrite_output_dir="true") == 2
    assert "cannot be written: unexpected pos 40448; --resume_from_checkpoint" in capsys.readouterr().err


def full_disk_of_one_process(name: str, rank: str):
    """`name` cannot be written in that process."""
    if os.environ["RANK"] == rank:
        full = OSError("No space left on device")
        patch(name, side_effect=full).start()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("transformers.modeling_utils.safe_save_file", "0"),  # the others wait for the weights
        ("transformers.Trainer._save_optimizer_and_scheduler", "0"),
        ("transformers.Trainer._save_rng_state", "1"),
    ],
)
def test_a_full_disk_of_one_process_is_told_once(values, tmp_path, name, rank):
    flags = {**values, "max_train_samples": 8, "num_train_epochs": 2, "use_cpu": None}
    full = partial(full_disk_of_one_process, name, rank)
    code, told = forked(command_line(flags), tmp_path / "told", 2, script="finetune_glue", prepare=full)
    assert code == 2 and "Traceback" not in told, told
    assert told.count("goes on\n") == told.count("No space left on device; --resume_from_checkpoint last goes on") == 1


def test_control_c_is_told(run, monkeypatch, capsys):
    monkeypatch.setattr("transformers.Trainer.training_step", Mock(side_effect=KeyboardInterrupt))
    assert run() == 128 + signal.SIGINT
    assert capsys.readouterr().err.endswith("finetune_glue.py: stopped\n")


def test_a_finished_model_keeps_its_labels(run, data, tmp_path, capsys):
    """Whatever the order in which other data have them, as names or as ids, or without any."""
    names = ["sad", "glad"]  # not in the order of the alphabet
    texts, ids = {}, {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (data / "sentiment" / f"{split}.jsonl").open()]
        texts[split], ids[split] = [row["text"] for row in rows], ["np".index(row["label"]) for row in rows]
    train = Dataset.from_dict({"text": texts["train"], "label": ids["train"]})
    train.cast_column("label", ClassLabel(names=names)).to_parquet(tmp_path / "train.parquet")
    own: dict = {"task_name": None, "data_dir": None, "validation_file": tmp_path / "train.parquet"}
    flags = {"head": "linear", "learning_rate": 0.1, "num_train_epochs": 12}
    assert run(**own, **flags, train_file=tmp_path / "train.parquet") == 0

    def rows_with(label_of) -> Path:
        return bad_rows(
            tmp_path,
            [{"text": text, "label": label_of(label)} for text, label in zip(texts["test"], ids["test"], strict=True)],
        )

    own |= {"model_name_or_path": tmp_path / "out", "do_train": "false"}
    for kind, label_of in (("names", names.__getitem__), ("ids", int)):
        assert run(**{**own, "validation_file": rows_with(label_of)}, output_dir=tmp_path / kind) == 0
        assert results(tmp_path / kind)["validation_accuracy"] > 0.8, kind
    expected = (tmp_path / "names" / "validation_predictions.tsv").read_text().splitlines()
    own["validation_file"] = None
    assert run(**own, test_file=rows_with(lambda label: None), output_dir=tmp_path / "unlabelled") == 0
    predicted = (tmp_path / "unlabelled" / "test_predictions.tsv").read_text().splitlines()
    assert predicted == [line.rpartition("\t")[0] for line in expected]
    assert "test_loss" not in results(tmp_path / "unlabelled")

    own["validation_file"] = file = rows_with("np".__getitem__)
    capsys.readouterr()
    assert run(**own, output_dir=tmp_path / "other") == 2
    assert "is none of the model's; known labels: sad, glad" in capsys.readouterr().err
    own |= {"do_train": "true", "train_file": file, "max_steps": 1, "output_dir": tmp_path / "other"}
    assert run(**own) == 2
    assert "pass --ignore_mismatched_sizes true" in capsys.readouterr().err
    assert run(**own, ignore_mismatched_sizes="true") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "has no head for this task that could be evaluated"),
        ({"ignore_mismatched_sizes": "true"}, "has no head for this task that could be evaluated"),
        ({"features": "random"}, "--features random has nothing to evaluate without training"),
    ],
)
def test_a_model_without_a_head_cannot_be_evaluated(run, capsys, flags, message):
    assert_told(run, capsys, {"do_train": "false", **flags}, message)


def test_scores_of_a_model_go_beside_those_of_its_training(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(num_train_epochs=1) == 0
    before, card = results(out), (out / "README.md").read_text()
    assert run(model_name_or_path=out, do_train="false", max_eval_samples=4) == 0
    assert (out / "README.md").read_text() == card, "of the model's training"
    assert results(out)["train_loss"] == before["train_loss"]
    assert results(out)["validation_loss"] != before["validation_loss"]
    capsys.readouterr()
    assert run(output_dir=tmp_path / "copy", num_train_epochs=1) == 0
    assert run(model_name_or_path=out, do_train="false", output_dir=tmp_path / "copy") == 2
    assert "has files in it" in capsys.readouterr().err
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert run(resume_from_checkpoint="last") == 2, "there is nothing to go on from, and a model to be lost"
    (tmp_path / "killed" / "seed_1").mkdir(parents=True)  # before its first checkpoint
    assert run(output_dir=tmp_path / "killed", resume_from_checkpoint="last", seeds=[1, 2], num_train_epochs=1) == 0
    other = {"model_name_or_path": tmp_path / "killed" / "seed_1", "do_predict": "false"}
    both = {"do_train": "false", "output_dir": tmp_path / "scores", "overwrite_output_dir": "true"}
    assert run(model_name_or_path=out, **both) == 0 and "test_accuracy" in results(tmp_path / "scores")
    assert run(**other, **both) == 0 and "test_accuracy" not in results(tmp_path / "scores")


def test_flags_of_trainer_are_heard(run, tmp_path):
    weights = {}
    for name, flags in {
        "seed": {"seed": 7},
        "seeds": {"seeds": 7},
        "default": {},
        "loss": {"metric_for_best_model": "loss", "num_train_epochs": 3},
        "none": {"do_eval": "false"},
    }.items():
        assert run(output_dir=tmp_path / name, **{"num_train_epochs": 1, **flags}) == 0
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["seed"] == weights["seeds"] != weights["default"]
    history = json.loads((tmp_path / "loss" / "trainer_state.json").read_text())
    losses = [line["eval_loss"] for line in history["log_history"] if "eval_loss" in line]
    assert history["best_metric"] == min(losses) and len(losses) == 3
    history = json.loads((tmp_path / "none" / "trainer_state.json").read_text())
    assert not any("eval_loss" in line for line in history["log_history"])
    assert not any(name.startswith("validation") for name in results(tmp_path / "none"))


def test_test_data_choose_no_checkpoint(run, data, tmp_path):
    files = {f"{split}_file": data / "sentiment" / f"{split}.jsonl" for split in ("train", "test")}
    assert run(task_name=None, data_dir=None, num_train_epochs=1, head="linear", **files) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_metric"] is None and not any("eval_loss" in line for line in state["log_history"])
    assert "test_accuracy" in results(tmp_path / "out")


def test_layers_that_cannot_be_kept(run, tmp_path, capsys):
    assert run(num_train_epochs=1) == 0
    (data_file,) = (tmp_path / "out" / "_layer_cache").glob("*/layers.bin")
    data_file.write_bytes(data_file.read_bytes()[:1000])  # of a disk that was full, say
    assert run(num_train_epochs=1, output_dir=tmp_path / "again", cache_dir=tmp_path / "out" / "_layer_cache") == 0
    for name in ("train_loss", "validation_loss"):
        assert results(tmp_path / "again")[name] == results(tmp_path / "out")[name]
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert run(output_dir=tmp_path / "third", cache_dir=tmp_path / "file") == 2
    assert "compute them each time with --cache_features false" in capsys.readouterr().err


def slow_layers():
    """They take longer than processes wait for each other."""
    start, compute = torch.distributed.init_process_group, LayerCache._write
    patch("torch.distributed.init_process_group", partial(start, timeout=timedelta(seconds=6))).start()
    patch.object(LayerCache, "_write", lambda self, window: (window and time.sleep(8), compute(self, window))).start()


@pytest.mark.slow
def test_layers_may_take_longer_than_processes_wait_for_each_other(values, tmp_path):
    flags = {**values, "max_train_samples": 8, "do_eval": False, "do_predict": False, "use_cpu": None}
    code, told = forked(command_line(flags), tmp_path / "told", 2, script="finetune_glue", prepare=slow_layers)
    assert code == 0, told


def full_disk_of_the_second_process():
    if os.environ["RANK"] == "1":
        patch.object(LayerCache, "add", side_effect=OSError("No space left on device")).start()


@pytest.mark.slow
def test_layers_that_one_process_cannot_keep(values, tmp_path):
    flags = {**values, "use_cpu": None}
    code, told = forked(
        command_line(flags), tmp_path / "told", 2, script="finetune_glue", prepare=full_disk_of_the_second_process
    )
    assert code == 2 and told.count("(No space left on device): make room") == 1 and "Traceback" not in told, told


def bad_rows(tmp_path, rows) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": "/nowhere/at_all"}, "/nowhere/at_all has no ELMo"),
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"task_name": "movies"}, "has no folder 'movies'; it has pairs, sentiment, stsb"),
        ({"task_name": None}, "give --task_name"),
        ({"task_name": None, "data_dir": None, "train_file": "none.csv"}, "none.csv is no file"),
        ({"label_column_name": "mood"}, "no column 'mood'; its columns are text, label"),
        ({"sentence_columns": ["words"]}, "no column 'words'; its columns are text, label"),
        ({"learning_rat": 1}, "unknown argument '--learning_rat'"),
        ({"head": "transformer"}, "head"),
        ({"feature_layers": [0, 3]}, "feature_layers must be different numbers from 0 to num_hidden_layers=2"),
        ({"feature_layers": [1], "features": "layer_0"}, "leave --feature_layers out"),
        ({"task_name": ["pairs", "pairs"]}, "--task_name pairs pairs: one task twice"),
        (
            {"task_name": ["pairs", "stsb"], "train_file": "a.csv"},
            "--task_name pairs stsb: the files that are given are one task",
        ),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere is no checkpoint"),
        ({"output_dir": "/dev/null"}, "--output_dir /dev/null cannot be written"),
        ({"sentence_columns": ["a", "b", "c"]}, "--sentence_columns: one or two, not 3"),
        ({"max_eval_samples": -3}, "--max_eval_samples must be 1 or more, not -3"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be 1 or more"),
        ({"seeds": [1, 1]}, "--seeds 1 1: the same seed gives the same model"),
        ({"remove_unused_columns": "true"}, "--remove_unused_columns cannot be had"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "load_best_model_at_end"),
        ({"metric_for_best_model": "beauty"}, "eval_beauty"),
        (
            {"eval_do_concat_batches": "false"},
            "--eval_do_concat_batches false cannot be had: scores need all predictions",
        ),
        (
            {"include_num_input_tokens_seen": "true"},
            "layers on disk stand in for characters: add --cache_features false",
        ),
        ({"use_liger_kernel": "true"}, "--use_liger_kernel cannot be had: Liger has no kernels for ELMo"),
        ({"neftune_noise_alpha": 5}, "layers on disk stand in for characters: add --cache_features false"),
        (
            {"task_name": "stsb", "label_smoothing_factor": 0.1},
            "--label_smoothing_factor cannot be had: numbers are no",
        ),
        ({"seed": -1}, "--seed and --seeds must be from 0 to 4294967295, not -1"),
        ({"seeds": [1, 2**32]}, "--seed and --seeds must be from 0 to 4294967295, not 4294967296"),
        ({"learning_rate": -1}, "--learning_rate must be 0 or more, not -1.0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps must be 1 or more, not 0"),
        ({"dataloader_drop_last": "true", "max_train_samples": 5}, "5 training examples make no batch of 8"),
        ({"report_to": "nonsense"}, "nonsense is not supported, only"),
        ({"fsdp": "full_shard"}, "finetune_glue.py: --fsdp cannot be had: torch shards no scalars"),
        ({"deepspeed": "x.json"}, "deepspeed"),
        ({"optim": "lomo"}, "finetune_glue.py: You need to install `lomo_optim`"),
        ({"adam_beta1": 2}, "finetune_glue.py: Invalid beta parameter"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "finetune_glue.py: One of min_lr or min_lr_rate"),
    ],
)
def test_mistakes_are_told_in_a_line(run, capsys, flags, message):
    assert_told(run, capsys, flags, message)


def test_a_launcher_that_was_told_to_shard_is_refused(run, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert run() == 2
    assert "--fsdp cannot be had: torch shards no scalars" in capsys.readouterr().err


def test_a_hub_out_of_reach(run, monkeypatch, capsys):
    def create_repo(*args, **kwargs):
        raise HTTPError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    assert run(push_to_hub="true") == 2
    told = capsys.readouterr().err
    assert told == f"finetune_glue.py: --push_to_hub: no connection to {ENDPOINT} (no route to host)\n", "at once"


def test_nothing_is_overwritten_unless_asked_for(run, tmp_path, capsys):
    assert run(num_train_epochs=1) == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run(task_name="pairs") == 2
    assert "has files in it" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run(task_name="pairs", max_steps=3, overwrite_output_dir="true") == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"  # what is not of a run stays


def test_a_metric_that_is_no_number_has_no_deviation():
    """Such as the correlation with predictions that are all the same."""
    assert mean_and_deviation([0.5, math.nan]) == "nan ± nan" and mean_and_deviation([0.25, 0.75]) == "0.5000 ± 0.3536"


def test_rows_of_the_confusion_table_are_the_right_labels():
    table = [line.split() for line in confusion_table([0, 0, 1], [0, 1, 1], ["a", "b"]).splitlines()]
    assert table[2:] == [["a", "1", "1", "2"], ["b", "0", "1", "1"]]


def test_checkpoints_of_an_overwritten_run_are_gone(run, tmp_path, monkeypatch):
    """Else the newest would be one of the earlier run, and "last" would go on from it."""
    kept = {"load_best_model_at_end": "false", "save_total_limit": 9}
    for epochs in (2, 1):
        assert run(num_train_epochs=epochs, overwrite_output_dir="true", **kept) == 0
        assert len(list((tmp_path / "out").glob("checkpoint-*"))) == epochs
    with monkeypatch.context() as patch:  # killed while one goes
        patch.setattr("modeling_elmo.elmo_trainer.shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
        assert run(max_steps=1, overwrite_output_dir="true", **kept) == 130
    assert not list((tmp_path / "out").glob("checkpoint-*/trainer_state.json")), "else it would pass for whole"
    (tmp_path / "out" / "checkpoint-1-mine").mkdir()  # what is not of a run stays
    assert run(max_steps=1, overwrite_output_dir="true", **kept) == 0
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-1-mine"}


def test_a_head_that_does_not_fit_is_refused(run, data, tmp_path, capsys, caplog):
    assert run(num_train_epochs=1) == 0
    rows = [{"text": f"word {label}", "label": label} for label in ("x", "y", "z")] * 4
    file = bad_rows(tmp_path, rows)
    flags = {"task_name": None, "data_dir": None, "train_file": file, "validation_file": file}
    assert run(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "other", **flags) == 2
    assert "do not fit ElmoForSequenceClassification with 3 labels" in capsys.readouterr().err
    flags |= {"ignore_mismatched_sizes": "true", "learning_rate": 0.0, "max_steps": 1}
    assert run(model_name_or_path=tmp_path / "out", output_dir=tmp_path / "other", **flags) == 0
    assert "out goes on, and new are classifier.output.bias, classifier.output.weight" in caplog.text
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "other"))
    new = [name for name in before if before[name].shape != after[name].shape]
    assert new == ["classifier.output.bias", "classifier.output.weight"]
    assert after["classifier.output.weight"].shape[0] == 3 and after["classifier.output.weight"].std() > 0
    assert all(torch.equal(before[name], after[name]) for name in before if name not in new)


def test_a_bilm_of_another_size_is_never_new(run, tmp_path, bilm, capsys):
    folder = shutil.copytree(bilm, tmp_path / "damaged")
    name = "elmo.word_encoder.projection.weight"
    change_weights(folder, {name: torch.ones(15, 80)})
    assert run(model_name_or_path=folder, ignore_mismatched_sizes="true") == 2
    error = capsys.readouterr().err
    assert f"{name} has the shape (15, 80), its config asks for (16, 80)" in error and "do not fit" not in error


def test_empty_sentences_are_texts_too(run, tmp_path):
    rows = [{"text": "", "label": "empty"}, {"text": "a word", "label": "full"}] * 8
    file = bad_rows(tmp_path, rows)
    files = {"task_name": None, "data_dir": None, "train_file": file, "validation_file": file}
    assert run(**files, head="linear", num_train_epochs=12, learning_rate=0.1) == 0
    assert results(tmp_path / "out")["validation_accuracy"] == 1.0
