"""Checkpoints of bilm-tf's trainer converted, softmax included; which one is taken, and what does not belong to it."""

import json
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bilm_tf_checkpoint.make import OPTIONS, VOCABULARY, values
from legacy_files import assert_bit_equal, assert_refused, read_hdf5, write_checkpoint, write_hdf5
from numpy_reference import character_rows, elmo_layers

from modeling_elmo import ElmoForPreTraining, ElmoModel, ElmoTokenizer
from modeling_elmo.allennlp_format import ConversionWarning, from_variables
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp, main
from modeling_elmo.language_model import LogUniformSampler

WRITTEN = Path(__file__).parent / "bilm_tf_checkpoint"  # by TensorFlow: make.py
CELL = "lm/RNN_1/rnn/multi_rnn_cell/cell_1/lstm_cell/"
FORMS: dict[str, dict[str, Any]] = {
    "written": {},
    "one_layer": {"lstm": OPTIONS["lstm"] | {"n_layers": 1}},
    "words": {"char_cnn": None},
    "words_shared": {"char_cnn": None, "share_embedding_softmax": True},
    "full_softmax": {"sample_softmax": False},
}


@pytest.fixture
def saved(tmp_path) -> Path:
    """What the trainer leaves, in a folder that may be changed."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "saved", ignore=shutil.ignore_patterns("make.py", "__pycache__")))


def save(folder: Path, options: dict[str, Any], variables: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    write_checkpoint(folder / "model.ckpt-7", variables)
    return folder


def test_what_tensorflow_wrote(dst, tmp_path, capsys):
    """Its layers are those of the plain NumPy model, and its softmax has the words of the vocabulary."""
    assert main([str(WRITTEN), str(dst)]) == 0
    told = capsys.readouterr().out
    assert ", a softmax of 7 words among them" in told and "import ElmoForPreTraining, ElmoTokenizer" in told
    variables, rows = values(OPTIONS), character_rows(["the", "cat", "日本"], 50)
    datasets = {name: data for name, data in from_variables(variables).items() if "softmax" not in name}
    model = ElmoForPreTraining.from_pretrained(dst).double().eval()
    with torch.no_grad():
        layers = torch.cat(model(torch.from_numpy(rows + 1)[None], output_hidden_states=True).hidden_states).numpy()
        logits = model(torch.from_numpy(rows + 1)[None]).logits[0].numpy()
    expected = elmo_layers(datasets, OPTIONS, rows)
    np.testing.assert_allclose(layers, expected, rtol=0, atol=1e-10)
    scores = expected[-1, :, :4] @ variables["lm/softmax/W"].T.astype(float) + variables["lm/softmax/b"]
    np.testing.assert_allclose(logits, scores, rtol=0, atol=1e-10)
    assert ElmoTokenizer.from_pretrained(dst).lm_vocab == VOCABULARY
    assert isinstance(model.sampler, LogUniformSampler) and model.sampler.num_samples == 2
    convert_to_allennlp(dst, tmp_path / "back")
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), datasets)


@pytest.mark.parametrize("form", FORMS)
def test_it_equals_the_hdf5_file(form, tmp_path, dst):
    """The trainer's own dump has the same tensors, but the softmax."""
    options = {key: value for key, value in (OPTIONS | FORMS[form]).items() if value is not None}
    variables = values(options)
    if form == "words_shared":
        del variables["lm/softmax/W"]
    read = convert_from_allennlp(save(tmp_path / "saved", options, variables), dst)
    dump = tmp_path / "dump"
    dump.mkdir()
    write_hdf5(dump / "weights.hdf5", {n: data for n, data in from_variables(variables).items() if "softmax" not in n})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConversionWarning)
        expected = convert_from_allennlp(
            tmp_path / "saved", tmp_path / "hdf5", weights=dump / "weights.hdf5"
        ).state_dict
    weight, bias = read.state_dict.pop("lm_head.weight"), read.state_dict.pop("lm_head.bias")
    torch.testing.assert_close(read.state_dict, expected, rtol=0, atol=0)
    np.testing.assert_array_equal(weight, variables["lm/embedding" if form == "words_shared" else "lm/softmax/W"])
    np.testing.assert_array_equal(bias, variables["lm/softmax/b"])

    model, tokenizer = ElmoForPreTraining.from_pretrained(dst).train(), ElmoTokenizer.from_pretrained(dst)
    assert (model.sampler is None) == (form == "full_softmax")
    batch = tokenizer([["the", "dog", "sat"]], is_split_into_words=True, return_tensors="pt", return_lm_labels=True)
    assert model(**batch).loss.isfinite() and len(ElmoModel.from_pretrained(dst)(**batch).scalar_mix[0]) == 5


def read_files(source: Path | None, dst: Path, **files: Any) -> list[str]:
    read = convert_from_allennlp(source, dst, overwrite=True, **files)
    return [path.name for path in read.files if path]


def test_which_checkpoint_is_taken(saved, tmp_path, dst):
    third = ["options.json", "model.ckpt-3.index", "vocab.txt"]
    second = ["options.json", "model.ckpt-2.index", "vocab.txt"]
    assert read_files(saved, dst) == third  # as `checkpoint` says, though that names another folder
    (saved / "checkpoint").write_bytes(b'# \xff\nmodel_checkpoint_path: "C:\\save\\model.ckpt-2"\n')
    assert read_files(saved, dst) == second
    for name in ("model.ckpt-3", "model.ckpt-3.index", "model.ckpt-3.data-00001-of-00002", "model.ckpt-3.meta"):
        assert read_files(saved / name, dst) == third
        assert (dst / "README.md").read_text().count("| `model.ckpt-3.data-00001-of-00002` |") == 1
    for source in (saved, saved / "model.ckpt-2"):
        assert read_files(source, dst, weights=saved / "model.ckpt-3") == third
    given = {"options": saved / "options.json", "vocab": saved / "vocab.txt", "weights": saved / "model.ckpt-3"}
    assert read_files(None, dst, **given) == third

    other = tmp_path / "other"
    for text, message in [
        ('model_checkpoint_path: "../model.ckpt-9"', r"checkpoint names '\.\./model\.ckpt-9', which is not there"),
        ("", r"checkpoint names no checkpoint"),
    ]:
        (saved / "checkpoint").write_text(text)
        assert_refused(saved, other, message)
    (saved / "checkpoint").unlink()
    assert_refused(saved, other, r"several files of checkpoint: model\.ckpt-2\.index, model\.ckpt-3\.index.*--weights")
    (saved / "model.ckpt-2.index").unlink()
    assert read_files(saved, dst) == third
    write_hdf5(saved / "dump.hdf5", {n: data for n, data in from_variables(values(OPTIONS)).items() if "soft" not in n})
    with pytest.warns(ConversionWarning, match=r"has a checkpoint too.*softmax.*--weights"):
        assert read_files(saved, dst) == ["options.json", "dump.hdf5", "vocab.txt"]
    assert json.loads((dst / "config.json").read_text())["architectures"] == ["ElmoModel"]


def test_in_archives(saved, dst):
    with tarfile.open(saved.with_name("model.tar.gz"), "w:gz") as archive:
        archive.add(saved, "./elmo")
    shutil.make_archive(str(saved.with_name("model")), "zip", saved.parent, "saved")
    for name in ("model.tar.gz", "model.zip"):
        assert read_files(saved.with_name(name), dst) == ["options.json", "model.ckpt-3.index", "vocab.txt"]


def test_vocabularies(saved, dst):
    (saved / "vocab.txt").rename(saved / "vocab-2016-09-10.txt")
    assert read_files(saved, dst)[-1] == "vocab-2016-09-10.txt"
    shutil.copy(saved / "vocab-2016-09-10.txt", saved / "vocab.txt")
    assert read_files(saved, dst)[-1] == "vocab.txt"
    (saved / "vocab.txt").unlink()
    (saved / "vocab.other.txt").write_text("".join(f"{word}\n" for word in VOCABULARY[:-1]), encoding="utf-8")
    other = saved.with_name("other")
    assert_refused(saved, other, r"several vocabularies: vocab-2016-09-10\.txt, vocab\.other\.txt.*--vocab")
    message = r"softmax predicts 7 words, but the vocabulary has 6 lines: .*--vocab"
    assert_refused(saved, other, message, vocab=saved / "vocab.other.txt")
    for path in saved.glob("vocab*"):
        path.unlink()
    with pytest.warns(ConversionWarning, match=r"no vocabulary.*--vocab"):
        convert_from_allennlp(saved, dst, overwrite=True)
    assert ElmoForPreTraining.from_pretrained(dst).lm_head.weight.shape == (7, 4)
    assert "AutoModelForPreTraining" not in (dst / "README.md").read_text()  # it has no words to give their labels
    (saved / "options.json").write_text(json.dumps(OPTIONS | {"n_tokens_vocab": 8}))
    assert_refused(saved, other, r"n_tokens_vocab is 8, but the tensors say 7")


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"lm/CNN/W_cnn_0": None}, r"no dataset 'CNN/W_cnn_0'"),
    "one_direction": ({n: None for n in values(OPTIONS) if "RNN_1" in n}, r"one direction only"),
    "shape": ({CELL + "kernel": np.zeros((8, 16), np.float32)}, r"Cell1/LSTMCell/W_0' has shape \(8, 16\)"),
    "softmax": ({"lm/softmax/b": np.zeros(6, np.float32)}, r"'softmax/b' has shape \(6,\), but .* \(7,\)"),
    "nan": ({"lm/softmax/W": np.full((7, 4), np.nan, np.float32)}, r"'softmax/W' has NaN"),
    "integers": ({"lm/CNN_proj/b_proj": np.zeros(4, np.int64)}, r"holds int64"),
    "other_model": (
        {n: None for n in values(OPTIONS)} | {"bert/pooler/bias": np.zeros(3, np.float32)},
        r"another model than bilm-tf's.*it has bert/pooler/bias",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_variables(name, tmp_path, dst):
    changes, message = DAMAGES[name]
    variables = {n: array for n, array in (values(OPTIONS) | changes).items() if array is not None}
    assert_refused(save(tmp_path / "saved", OPTIONS, variables), dst, message)


def test_damaged_files(saved, dst, capsys):
    data_file = saved / "model.ckpt-3.data-00000-of-00002"
    content = data_file.read_bytes()
    for damaged, message in [
        (content[:9] + b"\1" + content[10:], r"00000-of-00002 is damaged: the checksum of lm/\S+ is wrong"),
        (content[:3000], r"00000-of-00002 is cut off: "),
        (b"version https://git-lfs.github.com/spec/v1\n", r"00000-of-00002 is cut off: "),
    ]:
        data_file.write_bytes(damaged)
        assert_refused(saved, dst, message)
    data_file.unlink()
    assert_refused(saved, dst, r"00000-of-00002 does not exist")
    assert main([str(saved), str(dst)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_what_is_left_out_is_told(tmp_path, dst):
    extra = {"lm/attention/W": np.ones(3, np.float32), "lm/softmax/W/Adam_1": np.ones((7, 4), np.float32)}
    save(tmp_path / "saved", OPTIONS, values(OPTIONS) | extra | {"beta1_power": np.array(0.9)})
    with pytest.warns(ConversionWarning, match=r"left out: attention/W$"):
        convert_from_allennlp(tmp_path / "saved", dst)
    table = tmp_path / "table.hdf5"
    write_hdf5(table, {"embedding": np.ones((7, 4), np.float32)})
    with pytest.warns(ConversionWarning, match=r"the softmax was left out"):
        convert_from_allennlp(tmp_path / "saved", dst, token_embeddings=table, overwrite=True)


@pytest.mark.data
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_the_loss_of_the_original_trainer(shared, softmax, tmp_path, dst):
    """The weights from which it set out, saved and converted, have the loss that it recorded at its first step."""
    recorded = np.load(shared / f"fixtures/bilm_tf_training/ref_train_{softmax}.npz")
    names = [name for name in recorded.files if name.startswith("init/")]
    variables = {name.removeprefix("init/").removesuffix(":0"): recorded[name] for name in names}
    options = json.loads(str(recorded["options"]))
    save(tmp_path / "saved", options, variables)
    words = [*VOCABULARY[:3], *(f"word{number}" for number in range(3, options["n_tokens_vocab"]))]
    (tmp_path / "saved" / "vocab.txt").write_text("\n".join(words) + "\n")
    convert_from_allennlp(tmp_path / "saved", dst)
    model = ElmoForPreTraining.from_pretrained(dst)
    assert (model.sampler is None) == (softmax == "full")
    ids = [torch.from_numpy(recorded[f"step0/tokens_characters{side}"]).long() + 1 for side in ("", "_reverse")]
    labels = [torch.from_numpy(recorded[f"step0/next_token_id{side}"]).long() for side in ("", "_reverse")]
    model.eval()  # the full softmax, for both have the same weights
    output = model(ids[0], reversed_input_ids=ids[1], next_targets=labels[0], previous_targets=labels[1])
    losses = torch.stack([output.forward_loss, output.backward_loss, output.loss]).detach().numpy()
    full = np.load(shared / "fixtures/bilm_tf_training/ref_train_full.npz")
    print("max abs difference:", np.abs(losses - full["step0/loss"]).max())
    np.testing.assert_allclose(losses, full["step0/loss"], atol=1e-6, rtol=0)
