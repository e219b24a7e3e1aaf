"""train.py, run as its users run it, on a few sentences."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from tokenizers.normalizers import NFC
from training_runs import ROOT, flags, log_of, same_weights, timeless_log
from transformers import AutoModelForPreTraining, AutoTokenizer

from modeling_elmo import ElmoForPreTraining, ElmoTokenizer, training_model
from modeling_elmo.arguments import PretrainingArguments, parse_arguments
from modeling_elmo.checkpoints import (
    CheckpointError,
    check,
    checkpoints_of,
    compare_facts,
    delete_old,
    load_checkpoint,
    read_facts,
    save_checkpoint,
)
from modeling_elmo.corpus import Corpus, write_corpus
from modeling_elmo.evaluation import evaluate
from modeling_elmo.lanes import Position, TypeTable
from modeling_elmo.lstm import ElmoState
from modeling_elmo.pretraining import Pretrainer, seed_of
from modeling_elmo.text_files import ReadingReport, file_digest


def test_it_learns_and_leaves_a_folder_that_auto_classes_load(run, folder, tmp_path):
    output = tmp_path / "out"
    recipe = {"optim": "adamw", "learning_rate": 0.03, "scale_loss_by_unroll_steps": False, "warmup_steps": 0.1}
    recipe["config_overrides"] = "dropout=0.0"
    assert run(*flags(folder, output, max_steps=150, logging_steps=10, eval_steps=75, **recipe)) == 0
    log = log_of(output)
    training = [line for line in log if "loss" in line]
    assert [line["step"] for line in training] == list(range(10, 151, 10))
    assert training[-1]["words"] == 150 * 8 * 5
    assert training[0]["learning_rate"] < training[1]["learning_rate"] == 0.03
    evaluations = [line for line in log if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [75, 150]
    # The next word is known but at the first word of a sentence and at its end; knowing nothing gives 33.
    assert evaluations[-1]["eval_forward_perplexity"] < 6 and evaluations[-1]["eval_backward_perplexity"] < 6
    assert evaluations[-1]["eval_perplexity"] < evaluations[0]["eval_perplexity"]

    names = {file.name for file in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md", "log.jsonl"} <= names
    assert {"modeling_elmo.py", "language_model.py", "tokenization_elmo.py", "lstm.py"} <= names
    assert not any(name.startswith(("unfinished", "checkpoint")) for name in names)
    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoModelForPreTraining.from_pretrained(output)
    assert tokenizer.lm_vocab_size == model.config.lm_vocab_size == 33
    words = ["w3", "w4", "w5", "w6", "w7"]
    inputs = tokenizer([words], is_split_into_words=True, return_lm_labels=True, return_tensors="pt")
    assert model(**inputs).perplexity < 8
    assert "Peters" in (output / "README.md").read_text()


def test_the_evaluation_is_that_of_each_word_in_a_plain_loop(folder, tmp_path, run, train_script):
    """Lanes of any number and windows of any length against one text read word by word."""
    output = tmp_path / "out"
    (tmp_path / "corpus").mkdir()
    run(*flags(folder, output))
    model = AutoModelForPreTraining.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    sentences = [line.split() for line in (folder / "validation.txt").read_text().splitlines()]
    write_corpus(tmp_path / "corpus", sentences, lambda words: [words], tokenizer, ReadingReport())
    corpus = Corpus(tmp_path / "corpus")
    values = evaluate(Accelerator(), model, corpus, TypeTable(corpus, tokenizer), 1, 7)
    # A lane is the sentences one after another with the state carried, each direction on its own.
    sums, words, state = torch.zeros(2, dtype=torch.double), 0, None
    for sentence in sentences:
        inputs = tokenizer([sentence], is_split_into_words=True, return_lm_labels=True, return_tensors="pt")
        ids, labels = inputs["input_ids"], inputs["labels"]
        with torch.no_grad():
            step = model(
                input_ids=ids[:, :-1],
                reversed_input_ids=ids.flip(1)[:, :-1],
                next_targets=labels[:, 1:],
                previous_targets=labels.flip(1)[:, 1:],
                state=state,
            )
        state = step.state
        count = labels.shape[1] - 1
        sums += torch.stack([step.forward_loss, step.backward_loss]).double() * count
        words += count
    forward, backward = (sums / words).exp().tolist()
    assert values["eval_forward_perplexity"] == pytest.approx(forward, rel=1e-5)
    assert values["eval_backward_perplexity"] == pytest.approx(backward, rel=1e-5)


@pytest.fixture
def judged(tmp_path, tiny_config) -> tuple[ElmoForPreTraining, Corpus, TypeTable]:
    """A model in training, and a text to judge it by."""
    tokenizer = ElmoTokenizer().train_new_from_counts({f"w{i}": 1 for i in range(37)})
    sentences = [[f"w{k * number % 37}" for k in range(1, number % 5 + 2)] for number in range(12)]
    write_corpus(tmp_path, sentences, lambda words: [words], tokenizer, ReadingReport())
    corpus = Corpus(tmp_path)
    tiny_config.dropout = 0.5
    return ElmoForPreTraining(tiny_config).train(), corpus, TypeTable(corpus, tokenizer)


def test_processes_share_the_lanes_of_an_evaluation(judged):
    model, corpus, _ = judged
    losses, sums = [], []
    with model.register_forward_hook(lambda *seen: losses.append(seen[-1].word_losses.sum((1, 2)))):
        alone = evaluate(Accelerator(), *judged, 99, 3)
    forward, backward = (sum(losses) / corpus.num_predictions).tolist()
    expected = {"eval_loss": (forward + backward) / 2, "eval_perplexity": math.exp((forward + backward) / 2)}
    expected |= {"eval_forward_perplexity": math.exp(forward), "eval_backward_perplexity": math.exp(backward)}
    assert {name: alone[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert alone["eval_forward_worst_lane"] > alone["eval_forward_perplexity"], "the mean is no worse than the worst"
    for process in range(2):
        accelerator = Mock(
            process_index=process,
            num_processes=2,
            device="cpu",
            autocast=Mock(side_effect=nullcontext),
            reduce=lambda mine: sums.append(mine) or sum(sums),
        )
        shared = evaluate(accelerator, *judged, corpus.num_sentences, 3)  # as many lanes as there can be
        assert accelerator.autocast.called
    assert shared == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("loss", [math.nan, 800.0])
@pytest.mark.parametrize("direction", [0, 1])
def test_a_validation_loss_of_one_direction_that_is_no_number_is_told(judged, direction, loss):
    def lose(*seen):
        seen[-1].word_losses[direction] = loss

    judged[0].register_forward_hook(lose)
    with pytest.raises(FloatingPointError, match="the validation loss became"):
        evaluate(Accelerator(), *judged, 5, 3)


@pytest.mark.parametrize("optim", ["adagrad", "adamw", "muon"])
def test_an_interrupted_run_ends_as_one_that_was_not(run, folder, tmp_path, optim):
    recipe = {"optim": optim, "learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 2, "save_steps": 3}
    recipe["state_reset_probability"] = 0.2
    if optim != "adagrad":
        recipe |= {"gradient_accumulation_steps": 2, "unigram_bias": True}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(*flags(folder, whole, **recipe)) == 0
    assert run(*flags(folder, halves, **recipe)) == 0
    assert [path.name for path in checkpoints_of(halves)] == ["checkpoint-6", "checkpoint-8"]
    # As if the run had died behind step 6: its last checkpoint is gone, its log has lines behind it.
    shutil.rmtree(halves / "checkpoint-8")
    (halves / "model.safetensors").unlink()
    assert run(*flags(folder, halves, **recipe, resume_from_checkpoint="last")) == 0
    assert same_weights(whole, halves) and timeless_log(whole) == timeless_log(halves)


def test_the_last_checkpoints_are_kept(run, folder, tmp_path):
    run(*flags(folder, tmp_path / "out", save_steps=1, save_total_limit=3))
    assert [path.name for path in checkpoints_of(tmp_path / "out")] == [f"checkpoint-{n}" for n in (6, 7, 8)]


def test_bf16_stays_near_to_float32(run, folder, tmp_path):
    losses = []
    for precision in ("no", "bf16"):
        run(*flags(folder, tmp_path / precision, mixed_precision=precision, max_steps=20))
        losses.append(log_of(tmp_path / precision)[-1]["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_a_vocabulary_smaller_than_the_negatives_uses_the_full_softmax(run, folder, tmp_path, capsys):
    argv = flags(folder, tmp_path / "out", config_overrides="num_negative_samples=1000", max_steps=2)
    assert run(*argv) == 0
    assert "full softmax" in capsys.readouterr().out


def test_raw_text_is_split_into_words_and_a_part_held_out(run, folder, tmp_path, capsys):
    (tmp_path / "raw.txt").write_text("They don't stop, do they?\n" * 200)
    argv = flags(folder, tmp_path / "out", max_steps=2)
    argv = argv[4:]  # neither train_file nor validation_file
    argv[argv.index("--pre_tokenized") + 1] = "False"
    assert run(*argv, "--train_file", tmp_path / "raw.txt") == 0
    assert "train: 196 sentences, 1,568 tokens" in capsys.readouterr().out
    vocab = (tmp_path / "out/vocab.txt").read_text().split("\n")
    assert {"do", "n't", ",", "?", "they", "They"} <= set(vocab)


def test_a_data_set_by_name(run, folder, tmp_path):
    lines = (folder / "train.txt").read_text().splitlines()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text("".join(json.dumps({"n": 1, "text": line}) + "\n" for line in lines))
    argv = flags(folder, tmp_path / "out", max_steps=2)[2:]
    assert run(*argv, "--dataset_name", tmp_path / "set") == 0
    assert run(*argv, "--dataset_name", tmp_path / "set", "--overwrite_output_dir", "--text_column_name", "n") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_file": "nowhere.txt"}, "no file is named 'nowhere.txt'"),
        ({"per_device_train_batch_size": 100000}, "lower per_device_train_batch_size"),
        ({"per_device_train_batch_size": 400, "unroll_steps": 20}, "fewer than one batch"),
        ({"config_name": "huge"}, "no configuration 'huge'"),
        ({"config_overrides": "lstm_dim=-3"}, "lstm_dim must be greater than 0"),
        ({"config_overrides": "lstm_dimension=3"}, "lstm_dimension"),
        ({"config_overrides": "max_word_length=20"}, "by --config_overrides max_word_length=50 or"),
        ({"resume_from_checkpoint": "last"}, "no whole checkpoint to resume from"),
        ({"vocab_file": "nowhere.txt"}, "nowhere.txt"),
        ({"tokenizer_name": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"learning_rate": 1e30}, "the loss became"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"text_column_name": "text"}, "text_column_name is for tables"),
        ({"optim": "adamw", "adam_beta1": 2}, "beta"),
        ({"seed": 2**64}, "seed must be less than"),
        ({"num_train_epochs": "1e308"}, "num_train_epochs must be less than"),
        ({"warmup_steps": "inf"}, "warmup_steps must be less than"),
        ({"max_grad_norm": "nan"}, "max_grad_norm must be less than"),
        ({"max_grad_norm": -5}, "max_grad_norm must be 0 or more"),
        ({"gradient_accumulation_steps": 10**20}, "gradient_accumulation_steps must be less than"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type must be one of constant, "),
        ({"save_total_limit": 0}, "save_total_limit must be 1 or more"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(run, folder, tmp_path, capsys, change, message):
    assert run(*flags(folder, tmp_path / "out", **change)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("train.py: ") and message in error


def test_a_package_without_its_clone_tells_where_named_configurations_are(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_model, "CONFIGS", tmp_path / "configs")
    assert run(*flags(folder, tmp_path / "out", config_name="small")) == 2
    told = "no configuration 'small': give a config.json; those that have names are in configs/ of a clone"
    assert told in capsys.readouterr().err


def test_a_mistake_at_the_real_command_line_shows_no_traceback(folder, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *flags(folder, tmp_path / "out", train_file="nowhere.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no file is named 'nowhere.txt'" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_not_empty_is_left_alone(run, folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(*flags(folder, tmp_path)) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mistake_costs_no_earlier_run(run, folder, tmp_path):
    output = tmp_path / "out"
    assert run(*flags(folder, output, max_steps=2)) == 0
    names = sorted(path.name for path in output.iterdir() if path.name != ".lock")
    for mistake in ({"train_file": "nowhere.txt"}, {"config_overrides": "lstm_dim=-3"}):
        assert run(*flags(folder, output, **mistake), "--overwrite_output_dir") == 2
    assert sorted(path.name for path in output.iterdir() if path.name != ".lock") == names
    (output / "of_the_earlier_run").touch()
    assert run(*flags(folder, output, max_steps=2), "--overwrite_output_dir") == 0
    assert sorted(path.name for path in output.iterdir()) == names


def test_a_run_outlives_a_checkpoint_that_cannot_be_deleted(run, folder, tmp_path, capsys, monkeypatch):
    def delete_old(*_):
        raise OSError("stale file handle")

    monkeypatch.setattr("modeling_elmo.checkpoints.delete_old", delete_old)
    assert run(*flags(folder, tmp_path / "out", save_steps=4)) == 0
    assert "could not be deleted: stale file handle" in capsys.readouterr().out
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_checkpoint_is_a_model_with_its_tokenizer(run, folder, tmp_path):
    tokenizer = ElmoTokenizer(pre_tokenizer="whitespace", max_word_length=20)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    argv = flags(folder, tmp_path / "out", save_steps=4, tokenizer_name=tmp_path / "tokenizer", pre_tokenized=False,
                 sentence_per_line=True, config_overrides="max_word_length=20")  # fmt: skip
    assert run(*argv) == 0
    saved = [ElmoTokenizer.from_pretrained(tmp_path / "out" / name) for name in (".", "checkpoint-4")]
    assert saved[0].lm_vocab == saved[1].lm_vocab and saved[1].max_word_length == 20
    assert saved[1].split_words("semi-colon;x") == ["semi-colon;x"]
    others = {"model_name_or_path": tmp_path / "out/checkpoint-4", "config_name": None, "max_steps": 1}
    assert run(*flags(folder, tmp_path / "more", **others)) == 0


def test_the_card_counts_the_parameters(run, folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert run(*flags(folder, ".", max_steps=1)) == 0
    number = ElmoForPreTraining.from_pretrained(tmp_path / "out").num_parameters()
    card = (tmp_path / "out/README.md").read_text()
    assert f"| parameters: all | {number:,} |" in card and "AutoModelForPreTraining" in card
    assert "| parameters: LSTMs |" in card and "\n# out\n" in card, "the folder's name, though it was given as ."


def test_names_that_are_not_utf_8_cost_no_training(run, folder, tmp_path):
    text = tmp_path / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(folder / "train.txt", text)
    argv = flags(folder, tmp_path / "out", max_steps=1)
    argv[argv.index("--train_file") + 1] = str(text)
    assert run(*argv) == 0
    assert "caf\\udce9.txt" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_output_that_cannot_be_written_is_told(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.print", Mock(side_effect=[OSError(28, "No space left on device"), None]))
    assert run(*flags(folder, tmp_path / "out", max_steps=1)) == 2
    assert not any((tmp_path / "out").iterdir()), "not even its lock is left"


def test_pre_tokenised_words_are_normalised_as_later_on(run, folder, tmp_path):
    tokenizer = ElmoTokenizer()
    tokenizer.backend_tokenizer.normalizer = NFC()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    lines = "\n".join(["cafe\u0301 is open"] * 60)  # two characters for the accented letter
    (tmp_path / "train.txt").write_text(lines)
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "train.txt"}
    assert run(*flags(folder, tmp_path / "out", **files, max_steps=1, tokenizer_name=tmp_path / "tokenizer")) == 0
    saved = ElmoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.lm_vocab[3:] == ["caf\u00e9", "is", "open"]
    labels = saved([lines.split("\n")[0].split()], is_split_into_words=True, return_lm_labels=True)["labels"][0]
    assert saved.lm_unk_id not in labels


def test_a_vocabulary_of_another_text_is_told(run, folder, tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("<S>\n</S>\n<UNK>\nelsewhere\n")
    assert run(*flags(folder, tmp_path / "out", max_steps=1, vocab_file=tmp_path / "vocab.txt")) == 0
    assert "is this the vocabulary of this text? Most of its words are unknown\n" in capsys.readouterr().out
    assert run(*flags(folder, tmp_path / "on", max_steps=1, model_name_or_path=tmp_path / "out")) == 0
    assert "Most of its words are unknown; --new_vocabulary true makes one of it\n" in capsys.readouterr().out


def test_how_often_the_text_is_passed_over_is_told(run, folder, tmp_path, capsys):
    argv = flags(folder, tmp_path / "out")
    argv[argv.index("--max_steps") : argv.index("--max_steps") + 2] = ["--num_train_epochs", "2"]
    assert run(*argv) == 0
    # 118 * 40 of 2,062 words and 280 ends of sentences
    assert " steps of 40 words on 1 x cpu, 2.02 passes over the text\n" in capsys.readouterr().out


def test_what_was_mended_in_each_text_is_told(run, folder, tmp_path, capsys):
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes() + b"caf\xe9\n")
    given = flags(tmp_path, tmp_path / "out", config_name=folder / "config.json", max_steps=1)
    assert run(*given) == 0
    told = capsys.readouterr().out
    assert run(*given[:2], *given[4:], "--overwrite_output_dir") == 0  # without the validation_file
    mended = "1 invalid UTF-8 sequences in 1 lines"
    assert f"train: {mended}" in told and f"validation: {mended}" in told
    assert capsys.readouterr().out.count(mended) == 1


def test_a_tracker_that_cannot_start(run, folder, tmp_path, capsys):
    assert run(*flags(folder, tmp_path / "out", save_steps=4)) == 0
    (tmp_path / "out" / "tracker").touch()  # where its folder should be
    again = flags(folder, tmp_path / "out", report_to="tensorboard", resume_from_checkpoint="last", max_steps=9)
    assert run(*again) == 2
    assert "tensorboard cannot be started" in capsys.readouterr().err


def test_control_c_before_the_first_step(run, folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_elmo.pretraining.read_text", interrupted)
    assert run(*flags(folder, tmp_path / "out")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "train.py: stopped"


def test_only_a_run_is_overwritten(run, folder, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(*flags(folder, tmp_path), "--overwrite_output_dir") == 2
    assert "no run left them" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "checkpoint-8").mkdir()  # of another script that trains
    (tmp_path / "checkpoint-8" / "optimizer.pt").touch()
    assert run(*flags(folder, tmp_path), "--overwrite_output_dir") == 2
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize(
    "left",
    ["checkpoint-500/trainer_state.json", "config.json", "a.safetensors", "tokenizer.json", "vocab.txt", "README.md"],
)
def test_a_run_goes_on_in_folders_of_runs_only(run, folder, tmp_path, capsys, left):
    """`auto` is for jobs that are started again and again: one wrong name must cost nothing."""
    output = tmp_path / "out"
    (output / left).parent.mkdir(parents=True)
    (output / left).write_text('{"global_step": 500}')
    assert run(*flags(folder, output, resume_from_checkpoint="auto")) == 2
    assert "no run left them" in capsys.readouterr().err
    assert [path for path in output.rglob("*") if path.is_file()] == [output / left]


def test_what_others_keep_beside_a_run_stays(run, folder, tmp_path):
    output = tmp_path / "out"
    (output / "unfinished-thesis").mkdir(parents=True)
    mine = [output / "slurm-1.out", output / "unfinished-novel.txt", output / "unfinished-thesis/1.tex"]
    for path in mine:
        path.write_text("years of work")
    again = {"resume_from_checkpoint": "auto", "save_steps": 4}
    assert run(*flags(folder, output, **again)) == 0
    (output / "unfinished-checkpoint-6").mkdir()  # of a run that was killed
    assert run(*flags(folder, output, **again, max_steps=9)) == 0
    assert all(path.read_text() == "years of work" for path in mine)
    assert not (output / "unfinished-checkpoint-6").exists()


def test_where_no_checkpoint_is_whole_none_is_replaced(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*flags(folder, output, save_steps=4)) == 0
    for checkpoint in checkpoints_of(output):
        (checkpoint / "optimizer.pt").write_bytes(b"cut off")
    for which in ("auto", "last"):
        assert run(*flags(folder, output, save_steps=4, resume_from_checkpoint=which)) == 2
        assert "none of the checkpoints in" in capsys.readouterr().err
    assert [path.name for path in checkpoints_of(output)] == ["checkpoint-4", "checkpoint-8"]


def test_a_named_checkpoint_is_the_last_one_from_then_on(run, folder, tmp_path, monkeypatch):
    """Also for a run that is killed before it has saved another."""
    output = tmp_path / "out"
    assert run(*flags(folder, output, save_steps=2, save_total_limit=9)) == 0

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "optimizer_step", killed)
        assert run(*flags(folder, output, save_steps=2, resume_from_checkpoint=output / "checkpoint-4")) == 130
    assert [path.name for path in checkpoints_of(output)] == ["checkpoint-2", "checkpoint-4"]


def test_what_shapes_the_training_is_kept_or_changed_on_request(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*flags(folder, output, save_steps=4)) == 0
    more = {"max_steps": 10, "logging_steps": 1, "resume_from_checkpoint": "last"}
    changes = {
        "learning_rate": {"learning_rate": 0.001},
        "max_grad_norm": {"max_grad_norm": 0.5},
        "config.num_negative_samples": {"config_overrides": "num_negative_samples=3"},
    }
    for name, change in changes.items():
        assert run(*flags(folder, output, **more, **change)) == 2
        assert f"was written with {name} = " in capsys.readouterr().err
    for change in changes.values():
        more |= change
    assert run(*flags(folder, output, **more), "--resume_with_changes") == 0
    assert f"at step 8; other than it: {', '.join(sorted(changes))}\n" in capsys.readouterr().out
    rates = [line["learning_rate"] for line in log_of(output) if "loss" in line and line["step"] > 8]
    assert rates == [0.001, 0.001]
    assert ElmoForPreTraining.from_pretrained(output).config.num_negative_samples == 3


@pytest.mark.parametrize(
    "change",
    [
        {"config_overrides": "lstm_dim=16"},
        {"config_overrides": "initial_state=true"},
        {"optim": "adamw"},
        {"vocab_size": 20},
    ],
    ids=str,
)
def test_what_never_fits_is_told_at_once(run, folder, tmp_path, capsys, change):
    output = tmp_path / "out"
    assert run(*flags(folder, output, max_steps=2, save_steps=2)) == 0
    for more in ([], ["--resume_with_changes"]):
        argv = flags(folder, output, resume_from_checkpoint="last", learning_rate=0.01, **change)
        assert run(*argv, *more) == 2
        assert "its values do not fit; start a new run" in capsys.readouterr().err


def test_a_data_set_may_hold_the_run(run, folder, tmp_path, capsys):
    """What the run writes beside the data is no part of them."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_bytes((folder / "train.txt").read_bytes())
    argv = flags(folder, tmp_path / "set" / "run", save_steps=2)[2:]  # without --train_file
    argv += ["--dataset_name", tmp_path / "set"]
    assert run(*argv, "--max_steps", 2) == 0
    (tmp_path / "set" / "run" / "log.jsonl").unlink()  # a checkpoint tells alike that this folder is a run's
    assert run(*argv, "--max_steps", 4, "--resume_from_checkpoint", "last") == 0
    assert "checkpoint-2 at step 2\n" in capsys.readouterr().out


def test_rates_of_a_schedule_follow_new_arguments_at_once(run, folder, tmp_path):
    output = tmp_path / "out"
    recipe = {"optim": "muon", "lr_scheduler_type": "linear", "save_steps": 4, "max_steps": 16, "logging_steps": 1}
    assert run(*flags(folder, output, **{**recipe, "learning_rate": 0.01, "max_steps": 8})) == 0
    again = flags(folder, output, **recipe, learning_rate=0.002, resume_from_checkpoint="last")
    assert run(*again, "--resume_with_changes") == 0
    rates = [line["learning_rate"] for line in log_of(output) if "loss" in line]
    assert rates[:8] == pytest.approx([0.01 * (8 - step) / 8 for step in range(8)])
    assert rates[8:] == pytest.approx([0.002 * (16 - step) / 16 for step in range(8, 16)])


def test_the_launcher_may_choose_the_precision(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for more, expected in (({}, "bf16"), ({"mixed_precision": "no"}, "no")):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = Pretrainer(parse_arguments(PretrainingArguments, flags(folder, tmp_path / expected, **more)))
        assert trainer.accelerator.mixed_precision == trainer.facts()["mixed_precision"] == expected
        assert trainer.args.changed().get("mixed_precision") == expected
    AcceleratorState._reset_state(reset_partial_state=True)


def test_what_a_run_reads_is_not_overwritten(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*flags(folder, output, max_steps=2)) == 0
    (output / "train.txt").write_bytes((folder / "train.txt").read_bytes())
    for mine in (
        {"train_file": output / "train*"},
        {"train_file": tmp_path / "o*" / "train.txt"},
        {"train_file": tmp_path / "**" / "train.txt"},
        {"model_name_or_path": output, "config_name": "small"},
        {"data_cache_dir": output / "cache"},
    ):
        assert run(*flags(folder, output, max_steps=2, **mine), "--overwrite_output_dir") == 2
        assert "would delete" in capsys.readouterr().err
        assert (output / "train.txt").is_file() and (output / "model.safetensors").is_file()
    (tmp_path / "loop").symlink_to("loop")
    assert run(*flags(folder, output, max_steps=2, train_file=tmp_path / "loop"), "--overwrite_output_dir") == 2
    assert "no file is named" in capsys.readouterr().err and (output / "model.safetensors").is_file()


def test_links_in_an_overwritten_run_go_and_what_they_lead_to_stays(run, folder, tmp_path):
    output, other = tmp_path / "out", tmp_path / "other"
    assert run(*flags(folder, output, max_steps=2)) == 0
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    (output / "link").symlink_to(other)
    assert run(*flags(folder, output, max_steps=2), "--overwrite_output_dir") == 0
    assert not (output / "link").is_symlink() and (other / "thesis.tex").is_file()


def test_a_folder_that_is_half_cleared_is_still_a_runs(run, folder, tmp_path, monkeypatch):
    """Whatever else is gone when the run that overwrites it is killed."""
    output, unlink = tmp_path / "out", Path.unlink
    assert run(*flags(folder, output, max_steps=2)) == 0
    left = {path.name for path in output.iterdir()}

    def killed(path: Path, **options: bool):
        if left == {path.name}:
            raise KeyboardInterrupt
        left.discard(path.name)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        assert run(*flags(folder, output, max_steps=2), "--overwrite_output_dir") == 130
    assert [path.name for path in output.iterdir()] == ["log.jsonl"]
    assert run(*flags(folder, output, max_steps=2), "--overwrite_output_dir") == 0


def test_another_run_cannot_be_resumed_by_mistake(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    run(*flags(folder, output, save_steps=4))
    before = (output / "model.safetensors").read_bytes()
    for change in ({"per_device_train_batch_size": 4}, {"seed": 1}, {"train_file": folder / "validation.txt"}):
        assert run(*flags(folder, output, resume_from_checkpoint="last", **change)) == 2
        assert "was written with" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(run, folder, tmp_path, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(*flags(folder, whole, save_steps=4))
    run(*flags(folder, output, save_steps=4))
    file = output / "checkpoint-8/optimizer.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert run(*flags(folder, output, resume_from_checkpoint=output / "checkpoint-8")) == 2
    assert "checkpoint-8 is damaged (optimizer.pt is not what was written)" in capsys.readouterr().err
    assert run(*flags(folder, output, resume_from_checkpoint="last", save_steps=4)) == 0
    told = capsys.readouterr().out
    assert "checkpoint-8 is damaged" in told and f"resumed from {output / 'checkpoint-4'} at step 4" in told
    assert same_weights(whole, output)
    check(output / "checkpoint-8")


def test_a_flipped_bit_in_the_state_of_a_checkpoint_is_told(run, folder, tmp_path, capsys):
    """Else the run would go on from another step, without a word."""
    output = tmp_path / "out"
    run(*flags(folder, output, save_steps=4))
    file = output / "checkpoint-8/trainer_state.json"
    text = file.read_text()
    older = {name: value for name, value in json.loads(text).items() if name != "hash"}
    states = {
        text.replace('"step": 8', '"step": 9'): "is damaged (trainer_state.json is not what was written)",
        100_000 * "[": "is damaged (maximum recursion depth",
        json.dumps({**older, "files": {}, "step": None}): "does not fit this model",
        json.dumps({**older, "files": {"/dev/null": file_digest("/dev/null").hex()}}): "is damaged ([Errno 2]",
    }
    (output / "checkpoint-8/optimizer.pt").write_bytes(pickle.dumps(Path("evil")))
    states[json.dumps({**older, "files": {}})] = "does not fit this model: Weights only load failed"
    for state, message in states.items():
        file.write_text(state)
        assert run(*flags(folder, output, resume_from_checkpoint=output / "checkpoint-8")) == 2
        assert message in capsys.readouterr().err
    (output / "checkpoint-4/trainer_state.json").write_text(json.dumps(read_facts(output / "checkpoint-4"), indent=1))
    assert run(*flags(folder, output, resume_from_checkpoint=output / "checkpoint-4")) == 0


def test_what_an_older_checkpoint_does_not_know_is_not_compared():
    assert compare_facts(Path("checkpoint-4"), {"seed": 1}, {"seed": 1, "max_grad_norm": 2.0}, False) == set()


def test_the_config_of_a_finished_folder_comes_last(run, folder, tmp_path, monkeypatch):
    """A folder of a run that is killed meanwhile cannot be loaded, whatever else it lacks."""
    names, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (names.append(path.name), replace(path, target))[1])
    assert run(*flags(folder, tmp_path / "out", max_steps=2)) == 0
    assert "model.safetensors" in names and names[-1] == "config.json"


def test_damaged_lines_of_the_log_are_left_out(run, folder, tmp_path):
    output = tmp_path / "out"
    run(*flags(folder, output, save_steps=4, max_steps=4))
    expected = timeless_log(output)[:-1]  # the last evaluation comes again
    with open(output / "log.jsonl", "ab") as log:
        log.write(b'{"step": "a"}\n{"step": null}\n' + 100_000 * b"[" + b"\n\xff\xfe\0\n")
    assert run(*flags(folder, output, max_steps=6, resume_from_checkpoint="last")) == 0
    assert timeless_log(output)[: len(expected)] == expected


def test_foreign_lines_of_the_log_cost_the_curve_alone(run, folder, tmp_path, capsys):
    output = tmp_path / "out"
    run(*flags(folder, output, save_steps=4, max_steps=4))
    (output / "model.safetensors").unlink()
    with open(output / "log.jsonl", "a") as log:
        log.write('{"step": 3}\n')
    assert run(*flags(folder, output, max_steps=4, resume_from_checkpoint="last")) == 0
    assert "no curve was drawn" in capsys.readouterr().out and (output / "model.safetensors").is_file()


def test_what_is_no_checkpoint_is_named(run, folder, tmp_path, capsys):
    assert run(*flags(folder, tmp_path / "out", resume_from_checkpoint=folder)) == 2
    assert "is not a checkpoint" in capsys.readouterr().err
    assert run(*flags(folder, tmp_path / "out", resume_from_checkpoint="auto", max_steps=2)) == 0


def test_a_run_that_cannot_start_leaves_its_folder_to_others(folder, tmp_path, run):
    """Also while its error is still at hand, as in a notebook."""
    output = tmp_path / "out"
    with pytest.raises(CheckpointError) as error:
        Pretrainer(parse_arguments(PretrainingArguments, flags(folder, output, resume_from_checkpoint=folder)))
    assert not list(output.iterdir())
    (output / ".lock").touch()  # that a killed run left
    assert run(*flags(folder, output, max_steps=2)) == 0
    assert "is not a checkpoint" in str(error.value)


def test_a_checkpoint_has_no_loss_of_an_earlier_evaluation(run, folder, tmp_path):
    """It would pass for the best one by a loss that is not its own."""
    options = {"max_steps": 5, "eval_steps": 2, "save_steps": 1, "save_total_limit": 9}
    assert run(*flags(folder, tmp_path / "out", **options)) == 0
    judged = ["eval_loss" in read_facts(path) for path in checkpoints_of(tmp_path / "out")]
    assert judged == [False, True, False, True, True]


def test_a_damaged_checkpoint_is_never_the_best(tmp_path):
    for step, state in enumerate(['{"eval_loss": 2.0}', '{"eval_loss": 1.0', "", '{"eval_loss": 3.0}', "{}"]):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    delete_old(tmp_path, keep=1)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-0", "checkpoint-4"]


def test_a_checkpoint_that_is_deleted_loses_its_name_first(tmp_path, monkeypatch):
    """Else a run that is killed meanwhile would leave a half of one."""
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
    monkeypatch.setattr("modeling_elmo.checkpoints.shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete_old(tmp_path, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished-old-checkpoint-1", "checkpoint-2"}


def test_a_checkpoint_lies_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target, synced = tmp_path / "checkpoint-3", []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, target.exists())))
    save_checkpoint(
        Accelerator(cpu=True), tmp_path, 3, lambda folder: (folder / "config.json").touch(), {},
        {"cell": torch.zeros(1, 2, 4, 3)[:, :, ::2]}, Position.at_the_end(2), {}, keep=1,
    )  # fmt: skip
    assert set(synced[:-1]) == {(path.stat().st_ino, False) for path in (*target.iterdir(), target)}
    assert synced[-1] == (tmp_path.stat().st_ino, True)


def test_lanes_of_many_processes_come_back_in_their_order(tmp_path):
    """A checkpoint of twelve processes: 10 and 11 come behind 9, and not behind 1."""
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({}, tmp_path / "optimizer.pt")
    for process in range(12):
        cell = torch.full((1, 2, 2, 3), float(process))  # (layers, directions, lanes of the process, lstm_dim)
        save_file({"cell": cell}, tmp_path / f"lanes-{process}.safetensors")
    position = {name: torch.from_numpy(values) for name, values in Position.at_the_end(24)._asdict().items()}
    save_file(position, tmp_path / "stream.safetensors")
    _, _, lanes, _ = load_checkpoint(tmp_path)
    assert lanes["cell"][0, 0, :, 0].tolist() == [process for process in range(12) for _ in range(2)]


def test_seeds_differ_by_every_number():
    assert len({seed_of(*numbers) for numbers in [(1,), (1, 0, 1), (1, 1), (2, 1), (1, 2)]}) == 5


def test_the_trainer_draws_other_negatives_at_each_step_and_the_same_in_each_direction_never(folder, tmp_path):
    draws, seeds = [], []
    for seed in (0, 1):
        trainer = Pretrainer(parse_arguments(PretrainingArguments, flags(folder, tmp_path / str(seed), seed=seed)))
        trainer.start_log()
        trainer.model.register_forward_pre_hook(
            lambda _, args, kwargs: draws.append(kwargs["negatives"]), with_kwargs=True
        )
        trainer.model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        trainer.optimizer_step()
        trainer.optimizer_step()
    assert len({tuple(side.ids.tolist()) for draw in draws for side in draw}) == 2 * 4, "and with another seed others"
    assert len(set(seeds)) == 4, "so does dropout"


def test_the_loss_is_scaled_by_the_steps_of_a_window_and_gradients_are_clipped_as_asked(folder, tmp_path):
    norms, moved = [], []
    for scales, limit in ((True, 0), (False, 0), (False, 1e-12)):
        more = {"scale_loss_by_unroll_steps": scales, "max_grad_norm": limit, "optim": "adagrad"}
        trainer = Pretrainer(parse_arguments(PretrainingArguments, flags(folder, tmp_path / str(len(norms)), **more)))
        trainer.start_log()
        before = trainer.model.elmo.lstm.layers[0].weight_ih.detach().clone()
        norms.append(float(trainer.optimizer_step()))
        moved.append(float((trainer.model.elmo.lstm.layers[0].weight_ih.detach() - before).abs().max()))
    assert norms[0] == pytest.approx(5 * norms[1], rel=1e-4) and norms[1] == pytest.approx(norms[2], rel=1e-4)
    assert moved[0] > moved[1] > 1e-6 > moved[2]


def test_lanes_that_are_reset_begin_as_texts_do(folder, tmp_path):
    trainer = Pretrainer(parse_arguments(PretrainingArguments, flags(folder, tmp_path, state_reset_probability=1.0)))
    trainer.start_log()
    trainer.optimizer_step()
    elmo, lanes = trainer.model.elmo, trainer.lanes.num_lanes
    elmo.set_initial_state(ElmoState(*(torch.randn_like(tensor[:, :, :1]) for tensor in trainer.state)))
    trainer.reset_lanes(1)
    for tensor, kept in zip(trainer.state, (elmo.lstm.initial_hidden, elmo.lstm.initial_cell), strict=True):
        torch.testing.assert_close(tensor, kept.expand(-1, -1, lanes, -1), rtol=0, atol=0)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.3, 10, 60), (1.0, 144, 144)])
def test_lanes_are_reset_as_often_as_asked(folder, tmp_path, probability, least, most):
    argv = flags(folder, tmp_path / "out", state_reset_probability=probability, per_device_train_batch_size=16)
    trainer = Pretrainer(parse_arguments(PretrainingArguments, argv))
    trainer.start_log()
    states = []
    forward = trainer.model.forward
    trainer.model.forward = lambda *a, state, **k: states.append(state) or forward(*a, state=state, **k)
    for _ in range(10):
        trainer.optimizer_step()
    assert states[0] is None
    is_zero = [~state.cell.any(-1).any(0).any(0) & ~state.hidden.any(-1).any(0).any(0) for state in states[1:]]
    assert least <= int(torch.stack(is_zero).sum()) <= most  # of 9 batches with 16 lanes each


def test_the_log_tells_what_people_watch(run, folder, tmp_path):
    run(*flags(folder, tmp_path / "out", eval_steps=4, config_overrides="cell_clip=0.05"))
    lines = log_of(tmp_path / "out")
    for line in lines:
        prefix = "eval_" if "eval_loss" in line else ""
        for direction in ("forward", "backward"):
            median, worst = (line[f"{prefix}{direction}_{lane}_lane"] for lane in ("median", "worst"))
            assert 1 < median <= worst
    training = [line for line in lines if "loss" in line]
    assert all(0 < line["clipped_cells"] < 1 for line in training)
    assert all(line["grad_norm"] > 0 and line["words_per_second"] > 0 for line in training)


def test_a_tracker_gets_the_same_numbers(run, folder, tmp_path, capsys):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(*flags(folder, tmp_path / "out", report_to="tensorboard"))
    found = {}
    for file in (tmp_path / "out").rglob("events.*"):
        events = reader.EventAccumulator(str(file)).Reload()
        found |= {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    training = [line for line in log_of(tmp_path / "out") if "loss" in line]
    assert found["loss"] == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in training]
    assert run(*flags(folder, tmp_path / "other", report_to="comet_ml")) == 2
    assert "comet_ml is not installed: pip install comet_ml" in capsys.readouterr().err
