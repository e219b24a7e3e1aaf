"""finetune_squad.py: runs in this process on tiny data, what they leave behind, and mistakes at the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuning_runs import assert_told, run_script, save_pretrained
from test_modeling import make_model
from test_squad import ROWS, lines, nested, write
from training_runs import load_script
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from modeling_elmo import ElmoForPreTraining, ElmoModel
from modeling_elmo.question_answering_pipeline import ElmoQuestionAnsweringPipeline
from modeling_elmo.squad import SquadReport, evaluate, read_questions

WORDS = ["the", "cat", "sat", "on", "mat", "and", "saw", "red", "dogs"]


def row(rng: np.random.Generator, name: str, answerable: bool = True) -> dict:
    """The answer is the number, and there is none without one."""
    words = [str(word) for word in rng.choice(WORDS, int(rng.integers(4, 9)))]
    answer = str(rng.choice(["1990", "2007"]))
    if answerable:
        words.insert(int(rng.integers(len(words) + 1)), answer)
    context = " ".join(words)
    answers = {"text": [answer], "answer_start": [context.index(answer)]} if answerable else None
    return {
        "id": name,
        "question": "which year ?",
        "context": context,
        "answers": answers or {"text": [], "answer_start": []},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Version 1 and version 2, as rows by split; the test data of version 1 without answers."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    for version in (1, 2):
        (folder / f"v{version}").mkdir()
        for split, number in (("train", 48), ("validation", 16), ("test", 6)):
            rows = [row(rng, f"{split}{n}", version == 1 or rng.random() < 0.6) for n in range(number)]
            if (version, split) == (1, "test"):
                rows = [{name: each[name] for name in ("id", "question", "context")} for each in rows]
            write(folder / f"v{version}" / f"{split}.jsonl", lines(rows))
    return folder


@pytest.fixture(scope="module")
def bilm(tmp_path_factory) -> Path:
    """A pretrained model, whose layers tell words apart."""
    torch.manual_seed(1)
    return save_pretrained(make_model(cls=ElmoForPreTraining), tmp_path_factory.mktemp("bilm"))


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_squad")


@pytest.fixture
def run(script, monkeypatch, data, bilm, tmp_path):
    """Calls the script with flags given as keywords; gives its exit code."""

    def run_with(version: int = 1, **flags: object) -> int:
        files = {f"{split}_file": data / f"v{version}" / f"{split}.jsonl" for split in ("train", "validation", "test")}
        values = {
            "model_name_or_path": bilm, "output_dir": tmp_path / "out", **files, "learning_rate": 0.1,
            "head": "linear", "feature_dropout": 0.0, "num_train_epochs": 8, "per_device_train_batch_size": 16,
            "version_2_with_negative": version == 2, **flags,
        }  # fmt: skip
        return run_script(script, monkeypatch, values)

    return run_with


# Faster than an evaluation and a checkpoint each epoch.
AT_THE_END = {"eval_strategy": "no", "save_strategy": "no"}


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def questions_of(file: Path, need_answers: bool = True) -> list:
    return read_questions([str(file)], SquadReport(), need_answers)


def test_version_1(run, data, tmp_path, capsys, bilm):
    assert run() == 0
    out = tmp_path / "out"
    metrics = load(out / "all_results.json")
    assert metrics["validation_f1"] > 90 and metrics["validation_exact_match"] > 90
    assert "test_runtime" in metrics and not {"test_loss", "test_f1"} & set(metrics)  # there are no answers
    table = capsys.readouterr().out
    assert "squad  validation_exact_match" in table and "layers of features.scalar_mix  0: 0." in table
    weights = load(out / "layer_weights.json")
    assert weights["layers"] == [0, 1, 2] and sum(weights["features.scalar_mix"]) == pytest.approx(1)

    questions = questions_of(data / "v1" / "validation.jsonl")
    predictions, candidates = load(out / "predictions.json"), load(out / "nbest_predictions.json")
    assert predictions.keys() == candidates.keys() == {one.id for one in questions}
    scores = evaluate(questions, predictions)
    assert metrics["validation_f1"] == scores["f1"] and metrics["validation_exact_match"] == scores["exact_match"]
    for one in questions:
        best = candidates[one.id][0]
        assert best["text"] == predictions[one.id] == one.context[best["start"] : best["end"]]
        assert 10 <= len(candidates[one.id]) <= 20
    tests = questions_of(data / "v1" / "test.jsonl", need_answers=False)
    found = load(out / "test_predictions.json")
    assert found.keys() == {one.id for one in tests} and set(found.values()) <= {"1990", "2007"}
    assert not (out / "null_odds.json").exists()

    model = AutoModelForQuestionAnswering.from_pretrained(out)
    trained, pretrained = model.elmo.state_dict(), ElmoModel.from_pretrained(bilm).state_dict()
    assert all(weight.equal(pretrained[name]) for name, weight in trained.items())  # frozen
    qa = ElmoQuestionAnsweringPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(out))
    assert qa(question="which year ?", context="the cat saw 2007 dogs")["answer"] == "2007"


def test_version_2(run, data, tmp_path):
    assert run(version=2, num_train_epochs=12, **AT_THE_END) == 0
    out = tmp_path / "out"
    metrics = load(out / "all_results.json")
    assert metrics["validation_f1"] > 80 and metrics["validation_best_f1"] >= metrics["validation_f1"]
    assert metrics["validation_NoAns_total"] + metrics["validation_HasAns_total"] == 16
    predictions, odds = load(out / "predictions.json"), load(out / "null_odds.json")
    assert all((text == "") == (odds[name] > 0) for name, text in predictions.items()) and "" in predictions.values()
    scores = evaluate(questions_of(data / "v2" / "validation.jsonl"), predictions, version_2=True)
    assert {name: metrics[f"validation_{name}"] for name in scores} == scores
    assert "test_f1" in metrics and (out / "test_null_odds.json").is_file()

    flags = {"model_name_or_path": out, "do_train": "false", "test_file": None}
    assert run(version=2, output_dir=tmp_path / "never", null_score_diff_threshold=-1000, **flags) == 0
    assert set(load(tmp_path / "never" / "predictions.json").values()) == {""}


def test_the_network_of_the_papers_with_and_without_cached_layers(run, tmp_path):
    """Same seed, with dropout: the same model comes out."""
    flags = {"head": "recurrent", "head_dim": 6, "num_train_epochs": 1, "feature_dropout": 0.1, "test_file": None}
    assert run(**flags) == 0
    assert run(**flags, output_dir=tmp_path / "plain", cache_features="false") == 0
    assert (tmp_path / "out" / "_layer_cache").is_dir() and not (tmp_path / "plain" / "_layer_cache").exists()
    first, second = (load(tmp_path / name / "all_results.json") for name in ("out", "plain"))
    assert first["validation_loss"] == pytest.approx(second["validation_loss"], abs=1e-3)
    assert set(load(tmp_path / "out" / "layer_weights.json")) == {
        "layers", "features.scalar_mix", "spans.attention_mix.scalar_mix",
    }  # fmt: skip


def test_long_contexts_are_read_in_windows(run, data, tmp_path):
    assert run(max_seq_length=12, doc_stride=3, test_file=None, **AT_THE_END) == 0
    out = tmp_path / "out"
    assert load(out / "predictions.json").keys() == {f"validation{n}" for n in range(16)}
    assert load(out / "all_results.json")["validation_f1"] > 80


def test_no_window_is_dropped(run, tmp_path):
    flags = {"dataloader_drop_last": "true", "per_device_eval_batch_size": 7, "num_train_epochs": 1, "test_file": None}
    assert run(version=2, **flags, **AT_THE_END) == 0
    odds = load(tmp_path / "out" / "null_odds.json")
    assert len(odds) == 16 and np.isfinite(list(odds.values())).all()


def test_a_folder_several_seeds_and_fewer_samples(run, data, tmp_path, capsys):
    files = dict.fromkeys(("train_file", "validation_file", "test_file"))
    limits = {
        "max_train_samples": 16,
        "max_eval_samples": 5,
        "max_predict_samples": 2,
        "num_train_epochs": 1,
        **AT_THE_END,
    }
    assert run(version=2, **files, data_dir=data, dataset_name="v2", seeds=[1, 2], **limits) == 0
    assert "v2    validation_f1" in capsys.readouterr().out
    for seed in (1, 2):
        folder = tmp_path / "out" / f"seed_{seed}"
        assert len(load(folder / "predictions.json")) == 5 and len(load(folder / "test_predictions.json")) == 2


def test_questions_that_all_have_no_answer_are_scored(run, data, tmp_path):
    rows = [json.loads(line) for line in (data / "v2" / "validation.jsonl").open()]
    file = write(tmp_path / "none.jsonl", "".join(json.dumps(row) + "\n" for row in rows if not row["answers"]["text"]))
    assert run(version=2, validation_file=file, test_file=None, num_train_epochs=1) == 0
    metrics = load(tmp_path / "out" / "all_results.json")
    assert metrics["validation_NoAns_total"] == metrics["validation_total"] > 0


def test_training_data_whose_answers_are_all_lost(run, tmp_path, capsys):
    rows = [{**each, "answers": {"text": ["Atlantis"], "answer_start": [0]}} for each in ROWS[:2]]
    file = write(tmp_path / "train.json", json.dumps(nested(rows)))
    assert run(train_file=file, test_file=None) == 2
    assert "the train data have nothing to train on" in capsys.readouterr().err


def test_what_was_mended_is_told(run, tmp_path, caplog):
    rows = [dict(each) for each in ROWS[:2]]
    rows += [{**rows[0], "id": "4", "answers": {"text": ["Boston"], "answer_start": [0]}}]
    rows += [{**rows[0], "id": "5", "answers": {"text": ["1990"], "answer_start": [0]}}]
    file = write(tmp_path / "train.json", json.dumps(nested(rows)))
    assert run(train_file=file, validation_file=file, test_file=None, num_train_epochs=1) == 0
    told = "\n".join(caplog.messages)
    for line in (
        "2 answers do not stand",
        "2 answers do not stand at their answer_start, but",
        "1 questions whose answer",
    ):
        assert line in told
    assert load(tmp_path / "out" / "predictions.json").keys() == {"1", "2", "4", "5"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": "/nowhere/at_all"}, "/nowhere/at_all has no ELMo"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"train_file": "none.json"}, "none.json cannot be read"),
        ({"train_file": None}, "there are no training data"),
        ({"train_file": None, "validation_file": None, "test_file": None}, "give --train_file and --validation_file"),
        ({"version": 2, "version_2_with_negative": "false"}, "have no answer (the first: 'train"),
        ({"doc_stride": 380}, "cannot share 380 with the next: make max_seq_length (384) larger, or doc_stride (380)"),
        ({"max_seq_length": 6}, "make max_seq_length (6) larger"),
        ({"max_answer_length": 0}, "--max_answer_length must be 1 or more, not 0"),
        ({"n_best_size": 0}, "--n_best_size must be 1 or more, not 0"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor cannot be had: spans have no labels to smooth"),
        ({"max_answer_len": 9}, "unknown argument '--max_answer_len': did you mean 'max_answer_length'?"),
        ({"train_file": "TEST"}, "has no column answers; its columns are id, question, context"),
    ],
)
def test_mistakes_are_told_in_a_line(run, data, capsys, flags, message):
    flags = {name: data / "v1" / "test.jsonl" if value == "TEST" else value for name, value in flags.items()}
    assert_told(run, capsys, flags, message)
