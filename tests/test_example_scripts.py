"""The example scripts of transformers, unmodified, fine-tune an ELMo folder as they do any other model."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetuning_runs import save_pretrained
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from modeling_elmo import (
    ElmoConfig,
    ElmoForQuestionAnswering,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
    ElmoTokenizer,
)

pytestmark = pytest.mark.slow

# Python runs a module of this name before any script. It stands in for metrics that `evaluate` would download.
SITECUSTOMIZE = """
import collections

import evaluate
from seqeval.metrics import accuracy_score as tag_accuracy, f1_score, precision_score, recall_score
from sklearn.metrics import accuracy_score, mean_squared_error


def seqeval(references, predictions):
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score, "accuracy": tag_accuracy}
    return {f"overall_{name}": score(references, predictions) for name, score in scores.items()}


def overlap(right, given):
    right, given = right.split(), given.split()
    common = sum((collections.Counter(right) & collections.Counter(given)).values())
    return 2 * common / (len(right) + len(given)) if right or given else 1.0


def squad(references, predictions):
    given = {row["id"]: row["prediction_text"] for row in predictions}
    assert given.keys() == {row["id"] for row in references}
    pairs = [(row["answers"]["text"] or [""], given[row["id"]]) for row in references]
    exact = sum(text in answers for answers, text in pairs) / len(pairs)
    f1 = sum(max(overlap(answer, text) for answer in answers) for answers, text in pairs) / len(pairs)
    return {"exact_match": 100 * exact, "f1": 100 * f1}


METRICS = {
    "accuracy": lambda references, predictions: {"accuracy": accuracy_score(references, predictions)},
    "mse": lambda references, predictions: {"mse": mean_squared_error(references, predictions)},
    "seqeval": seqeval,
    "squad": squad,
    "squad_v2": squad,
}


class Metric:
    def __init__(self, name, *args, **kwargs):
        self.function = METRICS[name]

    def compute(self, predictions, references):
        return self.function(references, predictions)


evaluate.load = Metric
"""

FILLERS = "the a film book of in was is seems very quite last first week year"
GOOD, BAD, NAMES, PLACES = (
    "good great fine",
    "bad poor awful",
    "Anna Boris Clara David Erik",
    "Rome Paris London Berlin",
)
NUM_ROWS = {"train": 64, "validation": 16, "test": 8}
SIZES = {
    "char_embedding_dim": 16,
    "cnn_filters": [[1, 16], [2, 32], [3, 32]],
    "num_highway_layers": 1,
    "lstm_dim": 16,
    "projection_dim": 16,
    "dropout": 0.0,
    "feature_dropout": 0.0,
    "head_dim": 24,
    "head_dropout": 0.0,
}


@pytest.fixture(scope="module")
def scripts() -> Path:
    """The folder of the scripts."""
    if "TRANSFORMERS_EXAMPLES" not in os.environ:
        pytest.skip(
            "needs transformers' example scripts: `git clone https://github.com/huggingface/transformers`, check out "
            "the tag of the installed version, and set TRANSFORMERS_EXAMPLES to its folder examples/pytorch"
        )
    for package in ("evaluate", "seqeval", "sklearn"):
        pytest.importorskip(package)
    return Path(os.environ["TRANSFORMERS_EXAMPLES"]).resolve(strict=True)


@pytest.fixture(scope="module")
def bilm(tmp_path_factory) -> Path:
    """The folder of a biLM without a head. Its weights are random, but words differ enough to be learnt from."""
    torch.manual_seed(0)
    model = ElmoModel(ElmoConfig(**SIZES))
    with torch.no_grad():
        model.word_encoder.projection.weight.mul_(40)
    return save_pretrained(model, tmp_path_factory.mktemp("bilm"))


# ---- rows of data, by a source of random numbers


def some(chance: random.Random, words: str, low: int = 2, high: int = 6) -> list[str]:
    return chance.choices(words.split(), k=chance.randint(low, high))


def pair(chance: random.Random) -> dict:
    label, words = chance.choice([("yes", GOOD), ("no", BAD)])
    return {"sentence1": " ".join(some(chance, FILLERS)), "sentence2": " ".join(some(chance, words)), "label": label}


def sentence(chance: random.Random) -> dict:
    row = pair(chance)
    return {"sentence": row["sentence2"], "label": row["label"]}


def scored_sentence(chance: random.Random) -> dict:
    row = sentence(chance)
    return {**row, "label": {"yes": 1.0, "no": -1.0}[row["label"]]}


def tagged_words(chance: random.Random) -> dict:
    row = {"tokens": [], "ner_tags": []}
    for _ in range(chance.randint(3, 7)):
        words, tags = chance.choice([(FILLERS, ["O"]), (NAMES, ["B-PER", "I-PER"]), (PLACES, ["B-LOC"])])
        row["tokens"] += some(chance, words, len(tags), len(tags))
        row["ner_tags"] += tags
    return row


def question(chance: random.Random) -> dict:
    """One in four has no answer. Long contexts need more than one window."""
    before, after = some(chance, FILLERS, 3, 12), some(chance, FILLERS)
    if chance.random() < 0.25:
        return {"question": "Where?", "context": " ".join(before + after), "answers": {"text": [], "answer_start": []}}
    place, start = chance.choice(PLACES.split()), len(" ".join([*before, ""]))
    answers = {"text": [place], "answer_start": [start]}
    return {"question": "Where?", "context": " ".join([*before, place, *after]), "answers": answers}


# ---- runs


def find_script(scripts: Path, name: str) -> Path:
    found = [path for path in sorted(scripts.rglob(name)) if "legacy" not in path.parts]
    assert found, f"there is no {name} in {scripts}"
    return found[0]


def write_data(folder: Path, make_row, is_squad: bool) -> list[object]:
    """Files of lines, or as those of SQuAD; gives the options that name them."""
    chance, options = random.Random(0), []
    for split, number in NUM_ROWS.items():
        rows = [make_row(chance) for _ in range(number)]
        if is_squad:
            text = json.dumps({"data": [{"id": f"{split}{index}", **row} for index, row in enumerate(rows)]})
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path = folder / f"{split}.json"
        path.write_text(text)
        options += [f"--{split}_file", path]
    return options


def run_script(script: Path, folder: Path, model: Path, output: Path, *options: object) -> dict:
    """A process that never imports the package: it loads the code in `model`. Gives the metrics."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    command = [sys.executable, script, "--model_name_or_path", model, "--trust_remote_code", "--output_dir", output]
    command += ["--use_cpu", "--save_strategy", "no", "--report_to", "none", *options]
    caches = {"HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    process = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **caches, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-6000:]
    return json.loads((output / "all_results.json").read_text())


def fine_tune(scripts: Path, name: str, bilm: Path, folder: Path, make_row, *options: object) -> dict:
    """Train, evaluate and predict; the results are in `folder / "output"`."""
    data = write_data(folder, make_row, is_squad=name == "run_qa.py")
    steps = ["--do_train", "--do_eval", "--do_predict", "--max_steps", 60, "--learning_rate", 0.01]
    steps += ["--per_device_train_batch_size", 16, "--max_seq_length", 20]
    output = folder / "output"
    metrics = run_script(find_script(scripts, name), folder, bilm, output, *data, *steps, *options)
    assert metrics["train_samples"] >= NUM_ROWS["train"] and metrics["eval_samples"] >= NUM_ROWS["validation"]
    for file in ("train_results.json", "eval_results.json", "trainer_state.json", "README.md"):
        assert (output / file).is_file()
    return metrics


def reload(auto_class, folder: Path, bilm: Path):
    """The saved model; the frozen biLM in it is still the one that it was made from."""
    assert type(AutoTokenizer.from_pretrained(folder)) is ElmoTokenizer
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = ElmoModel.from_pretrained(bilm).state_dict()
    for key, value in model.elmo.state_dict().items():
        assert torch.equal(value, weights[key]), key
    return model


def predictions(folder: Path, name: str) -> list[str]:
    """The last column of a table with a line of names and a line for each row of the test data."""
    lines = [line.split("\t") for line in (folder / name).read_text().splitlines()]
    assert lines[0] == ["index", "prediction"]
    assert [line[0] for line in lines[1:]] == [str(row) for row in range(NUM_ROWS["test"])]
    return [line[1] for line in lines[1:]]


def test_run_glue(scripts, bilm, tmp_path):
    metrics = fine_tune(scripts, "run_glue.py", bilm, tmp_path, pair)
    assert metrics["eval_accuracy"] > 0.8
    model = reload(AutoModelForSequenceClassification, tmp_path / "output", bilm)
    assert type(model) is ElmoForSequenceClassification
    assert model.num_labels == 2  # their names are lost: the script takes them from a config that is not the model's
    assert set(predictions(tmp_path / "output", "predict_results_None.txt")) == {"no", "yes"}


def test_run_classification(scripts, bilm, tmp_path):
    metrics = fine_tune(scripts, "run_classification.py", bilm, tmp_path, sentence, "--pad_to_max_length", False)
    assert metrics["eval_accuracy"] > 0.8
    model = reload(AutoModelForSequenceClassification, tmp_path / "output", bilm)
    assert type(model) is ElmoForSequenceClassification
    assert model.config.problem_type == "single_label_classification" and model.config.id2label == {0: "no", 1: "yes"}
    assert set(predictions(tmp_path / "output", "predict_results.txt")) == {"no", "yes"}


def test_run_classification_for_regression(scripts, bilm, tmp_path):
    metrics = fine_tune(scripts, "run_classification.py", bilm, tmp_path, scored_sentence)
    assert metrics["eval_mse"] < 0.5, "that of the mean is 1"
    model = reload(AutoModelForSequenceClassification, tmp_path / "output", bilm)
    assert model.config.problem_type == "regression" and model.num_labels == 1
    assert len({float(score) for score in predictions(tmp_path / "output", "predict_results.txt")}) > 1


def test_run_ner(scripts, bilm, tmp_path):
    metrics = fine_tune(scripts, "run_ner.py", bilm, tmp_path, tagged_words)
    assert metrics["eval_accuracy"] > 0.8 and metrics["eval_f1"] > 0.7
    model = reload(AutoModelForTokenClassification, tmp_path / "output", bilm)
    assert type(model) is ElmoForTokenClassification
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-PER", 3: "O"}
    given = [json.loads(line)["ner_tags"] for line in (tmp_path / "test.json").read_text().splitlines()]
    lines = [line.split() for line in (tmp_path / "output" / "predictions.txt").read_text().splitlines()]
    assert list(map(len, lines)) == list(map(len, given)), "a tag for each word"

    script, again = find_script(scripts, "run_ner.py"), tmp_path / "again"
    data = ["--train_file", tmp_path / "train.json", "--validation_file", tmp_path / "validation.json"]
    repeated = run_script(script, tmp_path, tmp_path / "output", again, *data, "--do_eval")
    for key in ("eval_accuracy", "eval_f1", "eval_loss"):
        assert repeated[key] == pytest.approx(metrics[key], abs=1e-6), "the saved model is the trained one"


@pytest.mark.parametrize("some_have_no_answer", [False, True])
def test_run_qa(scripts, bilm, tmp_path, some_have_no_answer):
    def make_row(chance: random.Random) -> dict:
        rows = iter(lambda: question(chance), None)
        return next(row for row in rows if some_have_no_answer or row["answers"]["text"])

    options = ["--doc_stride", 4]
    if some_have_no_answer:
        options += ["--version_2_with_negative", "--max_steps", 120, "--learning_rate", 0.005]
    metrics = fine_tune(scripts, "run_qa.py", bilm, tmp_path, make_row, *options)
    assert metrics["eval_samples"] > NUM_ROWS["validation"], "long contexts are split"
    assert metrics["eval_f1"] > 60
    output = tmp_path / "output"
    assert type(reload(AutoModelForQuestionAnswering, output, bilm)) is ElmoForQuestionAnswering
    for split, prefix in {"validation": "eval", "test": "predict"}.items():
        contexts = {row["id"]: row["context"] for row in json.loads((tmp_path / f"{split}.json").read_text())["data"]}
        answers = json.loads((output / f"{prefix}_predictions.json").read_text())
        assert answers.keys() == contexts.keys()
        assert all(answer in contexts[key] for key, answer in answers.items())
        assert {bool(answer) for answer in answers.values()} == ({False, True} if some_have_no_answer else {True})
