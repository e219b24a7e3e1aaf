"""finetune_ner.py: runs in this process on tiny data, what they leave behind, and mistakes at the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuning_runs import assert_told, run_script, save_pretrained
from test_modeling import make_model
from training_runs import load_script
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from modeling_elmo import ElmoForPreTraining, ElmoModel
from modeling_elmo.tagging import Columns, accuracy, entity_scores, read_file
from modeling_elmo.token_classification_pipeline import ElmoTokenClassificationPipeline

PLAIN = ["the", "cat", "sat", "on", "mat", "and", "saw", "red", "dogs"]
NAMES = {"PER": ["Annabella", "Bartholomew"], "LOC": ["Xy", "Zq"]}


def sentence(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Words with a part of speech and a tag; a name is one of two, then perhaps "III"."""
    rows = []
    for _ in range(int(rng.integers(2, 5))):
        rows.append((str(rng.choice(PLAIN)), "w", "O"))
        if rng.random() < 0.5:
            kind = str(rng.choice(list(NAMES)))
            rows.append((str(rng.choice(NAMES[kind])), "n", f"B-{kind}"))
            if rng.random() < 0.5:
                rows.append(("III", "m", f"I-{kind}"))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The same sentences as files of columns and as tables; and the training data in IOB1."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    for split, number in (("train", 64), ("dev", 24), ("test", 8)):
        sentences = [sentence(rng) for _ in range(number)]
        text = "\n".join("".join(" ".join(row) + "\n" for row in rows) for rows in sentences)
        (folder / f"{split}.txt").write_text(text)
        columns = [list(map(list, zip(*rows, strict=True))) for rows in sentences]
        tables = [{"tokens": tokens, "pos_tags": pos, "ner_tags": tags} for tokens, pos, tags in columns]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tables))
        if split == "train":
            (folder / "iob1.txt").write_text(text.replace(" B-", " I-"))
    return folder


@pytest.fixture(scope="module")
def bilm(tmp_path_factory) -> Path:
    """A pretrained model, whose layers tell words apart."""
    torch.manual_seed(1)
    wide = {"char_embedding_dim": 8, "cnn_filters": [[1, 16], [2, 16], [3, 16]], "projection_dim": 24}
    return save_pretrained(make_model(cls=ElmoForPreTraining, **wide), tmp_path_factory.mktemp("bilm"))


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_ner")


@pytest.fixture
def run(script, monkeypatch, data, bilm, tmp_path):
    """Calls the script with flags given as keywords; gives its exit code."""

    def run_with(plot: bool = False, **flags: object) -> int:
        if not plot:
            monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # it takes long
        values = {
            "model_name_or_path": bilm, "output_dir": tmp_path / "out", "train_file": data / "train.txt",
            "validation_file": data / "dev.txt", "test_file": data / "test.txt", "learning_rate": 0.05, "head_dim": 8,
            "feature_dropout": 0.0, "head_dropout": 0.0, "num_train_epochs": 1, "per_device_train_batch_size": 8,
            **flags,
        }  # fmt: skip
        return run_script(script, monkeypatch, values)

    return run_with


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def test_files_of_columns(run, data, tmp_path, capsys, bilm):
    assert run(plot=True, num_train_epochs=5, return_entity_level_metrics="true") == 0
    out = tmp_path / "out"
    metrics = results(out)
    assert metrics["validation_f1"] > 0.9 and metrics["test_accuracy"] > 0.9
    assert {f"test_{kind}_{name}" for kind in NAMES for name in ("precision", "recall", "f1", "number")} < set(metrics)
    table = capsys.readouterr().out
    assert "ner   validation_f1" in table and "layers of features.scalar_mix  0: 0." in table
    assert (out / "layer_weights.png").read_bytes().startswith(b"\x89PNG")
    weights = json.loads((out / "layer_weights.json").read_text())
    assert weights["layers"] == [0, 1, 2] and sum(weights["features.scalar_mix"]) == pytest.approx(1)

    for split, file in (("validation", "dev.txt"), ("test", "test.txt")):
        gold = read_file(str(data / file), Columns())
        predictions = str(out / f"{split}_predictions.txt")
        again, predicted = read_file(predictions, Columns(label="1")), read_file(predictions, Columns())
        assert [one[:2] for one in again] == [one[:2] for one in gold], "words and tags as they were, in their order"
        tags = [[sentence.tags for sentence in part] for part in (gold, predicted)]
        overall, types = entity_scores(*tags)
        assert overall["f1"] == pytest.approx(metrics[f"{split}_f1"])
        assert accuracy(*tags) == pytest.approx(metrics[f"{split}_accuracy"])
        assert types["PER"]["recall"] == pytest.approx(metrics[f"{split}_PER_recall"])
        lines = [line.split() for line in (out / f"{split}_types.txt").read_text().splitlines()]
        assert [line[0] for line in lines[2:]] == ["LOC", "PER", "all"]
        assert lines[4][1:4] == [f"{overall[name]:.4f}" for name in ("precision", "recall", "f1")]

    model = AutoModelForTokenClassification.from_pretrained(out)
    trained, pretrained = model.elmo.state_dict(), ElmoModel.from_pretrained(bilm).state_dict()
    assert all(weight.equal(pretrained[name]) for name, weight in trained.items())  # frozen
    assert model.crf.transitions.ne(0).all()
    tagger = pipeline(
        "ner", model=model, tokenizer=AutoTokenizer.from_pretrained(out), aggregation_strategy="simple",
        pipeline_class=ElmoTokenClassificationPipeline,
    )  # fmt: skip
    found = [(one["entity_group"], one["word"]) for one in tagger("the cat saw Annabella III and Zq")]
    assert found == [("PER", "Annabella III"), ("LOC", "Zq")]


def test_tables_and_cached_layers_change_nothing(run, data, tmp_path):
    """Same seed, with dropout; in one folder as a data set, and with sentences of similar length together."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl").write_bytes((data / f"{split}.jsonl").read_bytes())
    flags = {"head_dropout": 0.2, "train_sampling_strategy": "group_by_length"}
    assert run(**flags) == 0
    none = {f"{split}_file": None for split in ("train", "validation", "test")}
    others = {"output_dir": tmp_path / "plain", "cache_features": "false", "dataset_name": folder}
    assert run(**flags, **none, **others) == 0
    first, second = results(tmp_path / "out"), results(tmp_path / "plain")
    for name, value in first.items():
        assert name.endswith(("runtime", "per_second")) or value == pytest.approx(second[name], abs=1e-5), name
    predictions = [(tmp_path / name / "test_predictions.txt").read_text() for name in ("out", "plain")]
    assert predictions[0] == predictions[1]


def test_parts_of_speech(run, data, tmp_path):
    files = {f"{split}_file": data / f"{name}.jsonl" for split, name in (("train", "train"), ("validation", "dev"))}
    assert run(**files, num_train_epochs=5, test_file=None, task_name="pos", head="linear", use_crf="false") == 0
    out = tmp_path / "out"
    metrics = results(out)
    assert metrics["validation_accuracy"] > 0.9 and "validation_f1" not in metrics
    model = AutoModelForTokenClassification.from_pretrained(out)
    assert model.crf is None and model.reader is None and set(model.config.label2id) == {"m", "n", "w"}
    assert not (out / "validation_types.txt").exists()
    assert run(label_column_name=1, output_dir=tmp_path / "columns") == 0
    assert set(AutoModelForTokenClassification.from_pretrained(tmp_path / "columns").config.label2id) == {"m", "n", "w"}


@pytest.mark.slow
def test_iob1_is_told_and_repaired_or_refused(run, data, tmp_path, caplog, capsys):
    assert run(train_file=data / "iob1.txt") == 0
    number = (data / "train.txt").read_text().count(" B-")
    assert f"train: {number} tags I-... that do not follow their own type were read as B-..." in caplog.text
    expected = results(tmp_path / "out")
    assert run(output_dir=tmp_path / "iob2") == 0
    assert results(tmp_path / "iob2")["test_loss"] == pytest.approx(expected["test_loss"])
    assert run(train_file=data / "iob1.txt", broken_tags="refuse", output_dir=tmp_path / "no") == 2
    assert "which IOB2 does not allow; --broken_tags repair reads it as B-" in capsys.readouterr().err


def test_texts_without_tags_get_some(run, tmp_path):
    file = tmp_path / "plain.txt"
    file.write_text("the\nAnnabella\n\n\nsaw\nXy\n")
    assert run(test_file=file, num_train_epochs=5) == 0
    assert (tmp_path / "out" / "test_predictions.txt").read_text() == "the O\nAnnabella B-PER\n\nsaw O\nXy B-LOC\n\n"
    assert "test_f1" not in results(tmp_path / "out") and not (tmp_path / "out" / "test_types.txt").exists()


def test_empty_and_long_sentences(run, tmp_path):
    rows = [{"tokens": [], "tags": []}, {"tokens": ["Xy"] * 9, "tags": ["B-LOC"] * 9}, {"tokens": ["a"], "tags": ["O"]}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    files = {f"{split}_file": file for split in ("train", "validation", "test")}
    assert run(**files, max_seq_length=2) == 0
    lines = (tmp_path / "out" / "test_predictions.txt").read_text()
    assert lines.startswith("\nXy B-LOC ") and lines.count("Xy") == 27, "nothing is left out or cut in evaluation"


@pytest.mark.slow
def test_several_seeds(run, tmp_path, capsys):
    assert run(seeds=[1, 2], max_train_samples=8, max_eval_samples=4, max_predict_samples=2) == 0
    assert "±" in capsys.readouterr().out
    losses = [results(tmp_path / "out" / f"seed_{seed}")["validation_loss"] for seed in (1, 2)]
    assert losses[0] != losses[1]
    predictions = (tmp_path / "out" / "seed_1" / "test_predictions.txt").read_text()
    assert predictions.count("\n\n") == 2


@pytest.mark.slow
def test_gradients_may_be_accumulated(run, tmp_path):
    """Sentences of equal length, so that batches of 8 and twice 4 see the same; and the same model comes out."""
    file = tmp_path / "a.txt"
    file.write_text("the O\nXy B-LOC\n\nsaw O\nAnnabella B-PER\n\n" * 8)
    files = {f"{split}_file": file for split in ("train", "validation", "test")}
    flags = {**files, "train_sampling_strategy": "sequential", "scalar_mix_l2": 0.1}
    assert run(**flags) == 0
    assert run(**flags, per_device_train_batch_size=4, gradient_accumulation_steps=2, output_dir=tmp_path / "two") == 0
    one, two = (
        AutoModelForTokenClassification.from_pretrained(tmp_path / name).state_dict() for name in ("out", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["layer_0", "random"])
def test_baselines(run, tmp_path, features):
    assert run(features=features) == 0
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.config.feature_layers == [0] and model.config.id2label[0] == "O"


def test_a_finished_model_is_evaluated(run, data, tmp_path, capsys):
    assert run() == 0
    out = tmp_path / "out"
    only = {"model_name_or_path": out, "do_train": "false", "train_file": None}
    assert run(**only, output_dir=tmp_path / "eval") == 0
    expected, found = results(out), results(tmp_path / "eval")
    for name in ("validation_loss", "validation_f1", "test_loss", "test_f1", "test_accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    other = tmp_path / "other.txt"
    other.write_text("Xy O\nZq B-GPE\n")
    assert run(**only, validation_file=other, output_dir=tmp_path / "other") == 2
    message = f"{other}, line 1: the model has no label 'B-GPE'; its labels are O, B-LOC, I-LOC, B-PER, I-PER"
    assert message in capsys.readouterr().err
    files = {"train_file": other, "validation_file": other, "test_file": None}
    assert run(model_name_or_path=out, **files, output_dir=tmp_path / "new", ignore_mismatched_sizes="true") == 0
    assert run(model_name_or_path=out, **files, output_dir=tmp_path / "random", features="random") == 0
    labels = {"out": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], "new": ["O", "B-GPE"], "random": ["O", "B-GPE"]}
    for name, expected in labels.items():
        config = AutoModelForTokenClassification.from_pretrained(tmp_path / name).config
        assert list(config.id2label.values()) == expected, name


def test_tags_that_training_lacks_count_as_mistakes(run, tmp_path, caplog):
    other = tmp_path / "other.txt"
    other.write_text("the O\nZq B-GPE\n")
    assert run(test_file=other) == 0
    assert f"{other}, line 1: the tag 'B-GPE' does not occur in the training data" in caplog.text
    assert results(tmp_path / "out")["test_accuracy"] <= 0.5 and results(tmp_path / "out")["test_f1"] == 0


@pytest.mark.slow
def test_bf16(run, tmp_path):
    assert run(bf16="true", finetune_bilm="true", max_train_samples=16) == 0
    assert np.isfinite(results(tmp_path / "out")["test_loss"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all has no ELMo"),
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"train_file": None, "validation_file": None, "test_file": None}, "give --train_file and --validation_file"),
        ({"train_file": None}, "there are no training data: give --train_file"),
        ({"train_file": "none.txt"}, "none.txt is no file"),
        ({"label_column_name": "7"}, "label_column_name must be 0 to 2, not 7"),
        ({"label_column_name": "mood"}, "has 3 columns without names"),
        ({"dataset_name": "."}, "has no files such as train.txt"),
        ({"broken_tags": "ignore"}, "broken_tags"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor cannot be had with the CRF"),
        ({"learning_rat": 1}, "unknown argument '--learning_rat'"),
    ],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert_told(run, capsys, flags, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "the O\nXy\n", "a.txt, line 2: 1 columns, but 2 in the lines before it"),
        ("a.txt", "", "there are no training data"),
        ("a.txt", "the\tO\t\ncat\tB-X\t\n", "a.txt, line 1: a word of this sentence has an empty tag in column 2"),
        ("a.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O"]}\n', "a.jsonl, row 0: 2 words, but 1 tags"),
        (
            "a.jsonl",
            '{"words": ["a"], "ner": ["O"]}\n',
            "no column 'ner_tags': set label_column_name to one of words, n",
        ),
        ("a.jsonl", "{", "a.jsonl cannot be read"),
    ],
)
def test_bad_data_are_told_in_a_line(run, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert run(train_file=tmp_path / name) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("finetune_ner.py: ") and message in lines[-1]


def test_seqeval_cannot_be_imported(run, monkeypatch, capsys):
    """Be it that something which it needs is broken."""
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    assert run() == 2
    assert (
        "finetune_ner.py: scores of entities need seqeval (import of seqeval.metrics halted; None in sys.modules): pip "
        "install 'modeling-elmo[finetune]'" in capsys.readouterr().err
    )
