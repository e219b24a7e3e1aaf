"""The ELMo in AllenNLP's model.tar.gz: the layers of the HDF5 file, its scalar mix, and what cannot be read."""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from allennlp_archive.make import SENTENCES
from legacy_files import OPTIONS, VOCABULARY, assert_refused, changed, layers_of, random_datasets, write_legacy
from numpy_reference import character_rows, elmo_layers

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.allennlp_format import ConversionWarning
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp, main

ELMO = "text_field_embedder.token_embedder_elmo._elmo."
URL = "https://allennlp.s3.amazonaws.com/models/elmo/elmo_2x7_5_options.json"
EMBEDDER = {"type": "elmo_token_embedder", "options_file": URL, "weight_file": "weights.hdf5", "do_layer_norm": False}
CONFIG = {"dataset_reader": {}, "model": {"text_field_embedder": {"token_embedders": {"elmo": EMBEDDER}}}}
WRITTEN = Path(__file__).parent / "allennlp_archive"  # by AllenNLP: make.py
FTA = "fta/model.text_field_embedder.token_embedders.elmo.options_file"


def state_dict_of(datasets: Mapping[str, np.ndarray], mixes: int = 1) -> dict[str, torch.Tensor]:
    """What `allennlp.modules.elmo.Elmo` loads from an HDF5 file, and a task model around it, by name."""
    embedder, state = "_elmo_lstm._token_embedder.", {}
    state[embedder + "_char_embedding_weights"] = np.vstack(
        [np.zeros_like(datasets["char_embed"][:1]), datasets["char_embed"]]
    )
    for i in range(3):
        state[f"{embedder}char_conv_{i}.weight"] = np.transpose(datasets[f"CNN/W_cnn_{i}"].squeeze(0), (2, 1, 0))
        state[f"{embedder}char_conv_{i}.bias"] = datasets[f"CNN/b_cnn_{i}"]
    for i in range(2):
        transform, carry = datasets[f"CNN_high_{i}/W_transform"], datasets[f"CNN_high_{i}/W_carry"]
        state[f"{embedder}_highways._layers.{i}.weight"] = np.concatenate([transform.T, -1.0 * carry.T])
        transform, carry = datasets[f"CNN_high_{i}/b_transform"], datasets[f"CNN_high_{i}/b_carry"]
        state[f"{embedder}_highways._layers.{i}.bias"] = np.concatenate([transform, -1.0 * carry])
    state[embedder + "_projection.weight"] = datasets["CNN_proj/W_proj"].T
    state[embedder + "_projection.bias"] = datasets["CNN_proj/b_proj"]
    for direction, side in enumerate(["forward", "backward"]):
        for layer in range(2):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            module, dim = f"_elmo_lstm._elmo_lstm.{side}_layer_{layer}.", len(datasets[cell + "W_P_0"])
            order = np.r_[0:dim, 2 * dim : 3 * dim, dim : 2 * dim, 3 * dim : 4 * dim]  # forget gate before memory
            kernel, bias = datasets[cell + "W_0"].T[order], datasets[cell + "B"][order]
            bias[dim : 2 * dim] += 1
            state[module + "input_linearity.weight"], state[module + "state_linearity.weight"] = np.split(
                kernel, 2, axis=1
            )
            state[module + "state_linearity.bias"] = bias
            state[module + "state_projection.weight"] = datasets[cell + "W_P_0"].T
    for k in range(mixes):
        state[f"scalar_mix_{k}.gamma"] = np.array([1.5 + k], np.float32)
        state |= {f"scalar_mix_{k}.scalar_parameters.{j}": np.array([j - 0.5], np.float32) for j in range(3)}
    named = {ELMO + name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    return {**named, "encoder.weight": torch.ones(2), "crf.mask": torch.ones(3, dtype=torch.bool)}


def write_archive(
    path: Path, state: Any = None, members: Mapping[str, Any] = {FTA: OPTIONS}, config: Any = CONFIG
) -> Path:
    """As `allennlp.models.archival` packs it. `members`: of more JSON files."""
    weights = io.BytesIO()
    torch.save(state_dict_of(random_datasets(OPTIONS)) if state is None else state, weights)
    texts = {"config.json": config, "vocabulary/tokens.txt": "the", **members}
    files = {name: json.dumps(content).encode() for name, content in texts.items()} | {"weights.th": weights.getvalue()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_layers_are_those_of_the_hdf5_file(tmp_path, dst):
    archive = write_archive(tmp_path / "model.tar.gz")
    assert main([str(archive), str(dst)]) == 0
    rows = character_rows(["The", "naïve", "cat", "sat"], 50)
    model = ElmoModel.from_pretrained(dst)
    expected = elmo_layers(random_datasets(OPTIONS), OPTIONS, rows)
    np.testing.assert_allclose(layers_of(model.double(), rows), expected, rtol=0, atol=1e-6)  # the biases were rounded
    with torch.no_grad():
        mix = model(torch.from_numpy(rows + 1)[None]).scalar_mix[0].numpy()
    weights = np.exp([-0.5, 0.5, 1.5]) / np.exp([-0.5, 0.5, 1.5]).sum()
    np.testing.assert_allclose(mix, 1.5 * np.tensordot(weights, expected, 1), rtol=0, atol=1e-6)
    assert not ElmoTokenizer.from_pretrained(dst).lm_vocab
    convert_to_allennlp(dst, tmp_path / "back")
    convert_from_allennlp(tmp_path / "back", tmp_path / "again")
    again = ElmoModel.from_pretrained(tmp_path / "again")
    np.testing.assert_allclose(layers_of(again.double(), rows), expected, rtol=0, atol=1e-6)


def test_vectors_are_those_of_allennlp(dst, capsys):
    """Of a biLM and a scalar mix that it has trained."""
    assert main([str(WRITTEN / "model.tar.gz"), str(dst)]) == 0
    assert "(an AllenNLP model: " in capsys.readouterr().out
    assert "Files of an AllenNLP model:" in (dst / "README.md").read_text()
    model, tokenizer = ElmoModel.from_pretrained(dst), ElmoTokenizer.from_pretrained(dst)
    assert model.scalar_mix.weights.abs().min() > 0 and model.scalar_mix.gamma != 1, "it is the learnt mix"
    batch = tokenizer(SENTENCES, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = model(**batch).scalar_mix
    for row, expected in zip(vectors, json.loads((WRITTEN / "expected.json").read_text()), strict=True):
        np.testing.assert_allclose(row[1 : len(expected) + 1], expected, rtol=0, atol=1e-6)


def test_unpacked_and_other_places(tmp_path, dst, capsys):
    archive = write_archive(tmp_path / "model.tar.gz", members={})
    expected = convert_from_allennlp(write_archive(tmp_path / "whole.tar.gz"), dst).state_dict
    options = write_legacy(tmp_path / "legacy") / "options.json"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "unpacked" / "weights.th").rename(tmp_path / "unpacked" / "best.th")  # as in the folder of training
    with tarfile.open(tmp_path / "deep.tar", "w") as file:
        file.add(tmp_path / "unpacked", "runs/elmo")
    for source in (archive, tmp_path / "unpacked", tmp_path / "deep.tar"):
        read = convert_from_allennlp(source, dst, options=options, overwrite=True)
        torch.testing.assert_close(read.state_dict, expected, rtol=0, atol=0)
    read = convert_from_allennlp(None, dst, options=options, weights=tmp_path / "unpacked" / "best.th", overwrite=True)
    torch.testing.assert_close(read.state_dict, expected, rtol=0, atol=0)
    vocab = tmp_path / "legacy" / "vocab.txt"
    assert convert_from_allennlp(archive, dst, options=options, vocab=vocab, overwrite=True).vocabulary == VOCABULARY
    (tmp_path / "unpacked" / "options.json").write_bytes(options.read_bytes())
    convert_from_allennlp(tmp_path / "unpacked", dst, overwrite=True)
    assert_refused(tmp_path / "unpacked", tmp_path / "none", "go with HDF5 weights only", token_embeddings=vocab)
    assert main([str(archive), str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert f"its config.json names {URL}): give --options" in error and error.count("\n") == 1


def test_mixes_and_normalisation(tmp_path, dst):
    datasets = random_datasets(OPTIONS)
    for mixes in (0, 2):
        archive = write_archive(tmp_path / "model.tar.gz", state_dict_of(datasets, mixes))
        with pytest.warns(ConversionWarning, match=f"has {mixes} scalar mixes, not one: the layers are mixed evenly"):
            convert_from_allennlp(archive, dst, overwrite=True)
        assert not ElmoModel.from_pretrained(dst).scalar_mix.weights.any()
    archive = write_archive(tmp_path / "model.tar.gz", config={"elmo": EMBEDDER | {"do_layer_norm": True}})
    with pytest.warns(ConversionWarning, match=r"word by word.*batch"):
        assert convert_from_allennlp(archive, dst, overwrite=True).config.scalar_mix_layer_norm


WHOLE = state_dict_of(random_datasets(OPTIONS))
LSTM = ELMO + "_elmo_lstm._elmo_lstm."
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no_elmo": ({"state": {"encoder.weight": torch.ones(2)}}, r"has no ELMo with characters.*it has encoder\.weight"),
    "two_elmos": ({"state": WHOLE | {"b." + name: tensor for name, tensor in WHOLE.items()}}, r"has several ELMos"),
    "no_layer": (
        {"state": {n: tensor for n, tensor in WHOLE.items() if "backward_layer_1.state_lin" not in n}},
        r"not whole.*backward_layer_1\.state_linearity",
    ),
    "no_backward": (
        {"state": {n: tensor for n, tensor in WHOLE.items() if "backward" not in n}},
        r"one direction only",
    ),
    "shapes": ({"state": WHOLE | {LSTM + "forward_layer_0.state_linearity.weight": torch.ones(3, 2)}}, r"not whole"),
    "nan": ({"state": WHOLE | {LSTM + "forward_layer_0.state_linearity.bias": torch.full((28,), torch.nan)}}, r"NaN"),
    "code": ({"state": {"path": Path("x")}}, r"weights\.th is damaged, or holds something else than tensors"),
    "list": ({"state": [torch.ones(1)]}, r"must hold a state dict"),
    "short_mix": (
        {"state": {n: tensor for n, tensor in WHOLE.items() if not n.endswith("parameters.2")}},
        r"lacks scalar_mix_0\.scalar_parameters\.2",
    ),
    "nan_mix": (
        {"state": WHOLE | {ELMO + "scalar_mix_0.gamma": torch.tensor([torch.nan])}},
        r"4 finite numbers",
    ),
    "wide_mix": ({"state": WHOLE | {ELMO + "scalar_mix_0.gamma": torch.ones(2)}}, r"4 finite numbers"),
    "borrowed": (
        {"state": WHOLE | {LSTM + "x": torch.zeros(1).expand(10**5, 10**5)}},
        r"no tensor with numbers of",
    ),
    "no_axis": (
        {"state": WHOLE | {LSTM + "forward_layer_0.state_linearity.bias": torch.tensor(1.0)}},
        r"not whole",
    ),
    "options": ({"members": {FTA: changed(lstm__dim=8)}}, r"lstm\.dim is 8, but the tensors say 7"),
    "no_skip": ({"members": {FTA: changed(lstm__use_skip_connections=False)}}, r"use_skip_connections must be true"),
    "two_options": (
        {"members": {FTA: OPTIONS, "fta/model.b.options_file": changed(dropout=0)}},
        r"has several ELMos: model\.b\.options_file, model\.text_field",
    ),
    "no_options": ({"members": {}, "config": {"model": {}}}, r"its config\.json names none\): give --options"),
    "no_weights": ({"state": {}}, r"no ELMo with characters.*it has nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(name, tmp_path, dst):
    arguments, message = BAD[name]
    assert_refused(write_archive(tmp_path / "model.tar.gz", **arguments), dst, message)


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil.json", "/evil.json", "a\\..\\..\\evil.json"])
def test_members_outside(name, tmp_path, dst):
    archive = write_archive(tmp_path / "model.tar.gz", members={FTA: OPTIONS, name: {}})
    assert_refused(archive, dst, "points outside")
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(kind, tmp_path, dst):
    archive = write_archive(tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "x.tar", "w") as changed_archive, tarfile.open(archive) as file:
        for member in file.getmembers():
            changed_archive.addfile(member, file.extractfile(member))
        link = tarfile.TarInfo("fta/link")
        link.type, link.linkname = kind, "weights.th"
        changed_archive.addfile(link)
    assert_refused(tmp_path / "x.tar", dst, r"'fta/link' that is a link or points outside")


def test_damaged_archives(tmp_path, dst):
    content = write_archive(tmp_path / "model.tar.gz").read_bytes()
    cut = [content[:length] for length in (3, 20, len(content) // 2)]
    for damaged in (*cut, content[:500] + bytes(100) + content[600:]):
        (tmp_path / "model.tar.gz").write_bytes(damaged)
        assert_refused(tmp_path / "model.tar.gz", dst, r"model\.tar\.gz is damaged or encrypted")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_that_would_take_all_memory_are_not_read(tmp_path, dst, kind):
    long, short = tarfile.TarInfo("long"), tarfile.TarInfo("short")
    long.type, long.size = kind, 2**20 + 1
    for members in ([long, short], [short, long]):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for member in members:
                archive.addfile(member, io.BytesIO(bytes(member.size)))
        assert_refused(tmp_path / "x.tar", dst, r"x\.tar is damaged .*a header of 1,048,577 bytes")


def test_an_archive_larger_than_the_disk_has_room_for(tmp_path, dst, monkeypatch):
    archive, zipped = write_archive(tmp_path / "model.tar.gz"), tmp_path / "model.zip"
    with tarfile.open(archive) as file, zipfile.ZipFile(zipped, "w") as copy:
        for member in file:
            copy.writestr(member.name, file.extractfile(member).read())
        usage = shutil.disk_usage(tmp_path)._replace(free=sum(member.size for member in file))
    for source in (archive, zipped):
        monkeypatch.setattr(
            "modeling_elmo.archives.shutil.disk_usage", lambda path: usage._replace(free=usage.free - 1)
        )
        assert_refused(source, dst, rf"{source.name} unpacks to more than the free space")
        monkeypatch.setattr("modeling_elmo.archives.shutil.disk_usage", lambda path: usage)
        convert_from_allennlp(source, tmp_path / f"{source.name} converted")
