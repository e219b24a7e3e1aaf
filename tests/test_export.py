"""torch.export and ONNX against the model itself: any number of texts and words, clipping, the other word encoders."""

import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from finetuning_runs import save_pretrained

from modeling_elmo import ElmoConfig, ElmoModel, ElmoTokenizer, export
from modeling_elmo.lstm_ops import naive_lstm, scan_lstm

BATCHES = [["one"], ["A longer one than all the others , with many words .", "two", "and three"], ["x"] * 5]
VARIANTS = {
    "plain": {},
    "clipped": {"cell_clip": 0.1, "proj_clip": 0.05},
    "no clips, no skips": {"cell_clip": None, "proj_clip": None, "use_skip_connections": False},
    "tanh, no highways": {"cnn_activation": "tanh", "num_highway_layers": 0},
}


def make_model(tiny_config, **changes) -> ElmoModel:
    model = ElmoModel(ElmoConfig.from_dict({**tiny_config.to_dict(), **changes})).eval()
    for parameter in model.lstm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def exported(model: ElmoModel) -> torch.nn.Module:
    batch = export.inputs_for(ElmoTokenizer(), export.EXAMPLE)
    sizes = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("words")} for name in batch}
    arguments = {**batch, "output_hidden_states": True}
    shapes = {**sizes, "output_hidden_states": None}
    return torch.export.export(model, (), arguments, dynamic_shapes=shapes).module()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_program_is_the_model_for_any_sizes(tiny_config, variant):
    model = make_model(tiny_config, **VARIANTS[variant])
    program = exported(model)
    for texts in BATCHES:
        batch = export.inputs_for(ElmoTokenizer(), texts)
        with torch.no_grad():
            actual = program(**batch, output_hidden_states=True)
            expected = model(**batch, output_hidden_states=True)
        for ours, wanted in zip(actual.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(actual.scalar_mix, expected.scalar_mix, rtol=0, atol=1e-6)
    if variant == "clipped":
        assert (expected.hidden_states[1].abs() > 0.0499).any()


def test_the_scan_is_the_naive_lstm(tiny_config):
    model = make_model(tiny_config, cell_clip=0.2, proj_clip=0.1)
    layer = model.lstm.layers[0]
    inputs = torch.randn(2, 3, 7, 6)
    hidden, cell = torch.randn(2, 3, 6), torch.randn(2, 3, 12)
    outputs = layer.forward_padded(inputs, hidden, cell)
    for side in (0, 1):
        for row in range(3):
            weights = [weight[side] for weight in (layer.weight_ih, layer.weight_hh, layer.bias, layer.weight_hr)]
            expected, _, _ = naive_lstm(
                inputs[side, row],
                *weights,
                hidden[side, row],
                cell[side, row],
                cell_clip=0.2,
                proj_clip=0.1,
                forget_bias=1.0,
            )
            torch.testing.assert_close(outputs[side, row], expected, rtol=0, atol=1e-6)
    assert scan_lstm(inputs, *layer._weights(inputs), hidden, cell, cell_clip=None, proj_clip=None).abs().max() > 0.1


def test_what_an_export_cannot_do_is_told(tiny_config):
    model = make_model(tiny_config)
    batch = ElmoTokenizer()(["a"], ["b"], return_tensors="pt")
    with pytest.raises(Exception, match="encodes single texts from their start"):
        torch.export.export(model, (), dict(batch))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = make_model(ElmoConfig(**TINY), cell_clip=0.1, proj_clip=0.05)
    return save_pretrained(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory) -> tuple[Path, str]:
    """A file that the command wrote, and what it told."""
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("onnx") / "elmo.onnx"
    with redirect_stdout(StringIO()) as told:
        assert export.main([str(folder), str(file), "--check"]) == 0
    return file, told.getvalue()


def test_the_command_writes_a_file_that_onnxruntime_runs(folder, written, capsys):
    import onnxruntime

    file, told = written
    assert f"wrote {file}" in told and "largest difference to torch" in told and "MiB" in told and "ms" in told
    assert [path.name for path in file.parent.iterdir()] == ["elmo.onnx"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [put.name for put in session.get_inputs()] == ["input_ids", "attention_mask"]
    names = ["last_hidden_state", "scalar_mix", "hidden_states.0", "hidden_states.1", "hidden_states.2"]
    assert [put.name for put in session.get_outputs()] == names
    model = ElmoModel.from_pretrained(folder)
    for texts in BATCHES:
        batch = export.inputs_for(ElmoTokenizer(), texts)
        with torch.no_grad():
            expected = model(**batch, output_hidden_states=True)
        found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        for ours, wanted in zip(found[2:], expected.hidden_states, strict=True):
            np.testing.assert_allclose(ours, wanted.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[1], expected.scalar_mix.numpy(), rtol=0, atol=1e-5)
    assert export.main([str(folder), str(file)]) == 2 and "--overwrite" in capsys.readouterr().err


def test_large_weights_lie_in_a_file_beside_it(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    weights = export.load_encoder(str(folder))[0].num_parameters()
    monkeypatch.setattr(export, "LARGEST_FILE", 4 * weights - 1)
    assert export.main([str(folder), str(tmp_path / "elmo.onnx"), "--check"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elmo.onnx", "elmo.onnx.data"]
    assert "largest difference to torch" in capsys.readouterr().out
    replace = os.replace

    def stop_before_the_graph(old: str | Path, new: str | Path):
        if new == tmp_path / "elmo.onnx":
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(export.os, "replace", stop_before_the_graph)
        assert export.main([str(folder), str(tmp_path / "elmo.onnx"), "--overwrite"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["elmo.onnx.data"], "no graph over the weights of another"
    assert export.main([str(folder), str(tmp_path / "elmo.onnx")]) == 0
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(export.os, "replace", Mock(side_effect=KeyboardInterrupt))  # or killed
        assert export.main([str(folder), str(tmp_path / "elmo.onnx"), "--overwrite"]) == 130
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert export.main([str(folder), str(tmp_path / "elmo.onnx"), "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["elmo.onnx"], "a small model has no such file"


def test_a_model_in_training_is_exported_as_it_is_used_and_stays_in_training(tiny_config, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    modes = []
    monkeypatch.setattr("torch.onnx.export", lambda model, *_, **__: modes.append(model.training))
    model = make_model(tiny_config).train()
    export.export_onnx(model, ElmoTokenizer(), tmp_path / "elmo.onnx")
    assert modes == [False] and model.training


@pytest.mark.parametrize(("package", "flags"), [("onnxscript", []), ("onnxruntime", ["--check"])])
def test_a_missing_package_is_told_before_a_file_is_written(folder, tmp_path, monkeypatch, capsys, package, flags):
    monkeypatch.setitem(sys.modules, package, None)
    assert export.main([str(folder), str(tmp_path / "elmo.onnx"), *flags]) == 2
    cause = f"import of {package} halted; None in sys.modules"
    assert f"ONNX needs {package} ({cause}): pip install 'modeling-elmo[export]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_check_finds_a_difference(folder, written):
    model, tokenizer = ElmoModel.from_pretrained(folder), ElmoTokenizer.from_pretrained(folder)
    assert export.check(model, tokenizer, written[0], rounds=1)["difference"] < 1e-6
    with torch.no_grad():
        model.lstm.layers[1].weight_hr += 0.5
    assert export.check(model, tokenizer, written[0], rounds=1)["difference"] > 1e-3


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [("nowhere", "a.onnx", "nowhere has no ELMo model"), ("{folder}", "no/folder/a.onnx", "is no folder")],
)
def test_mistakes_are_told(folder, tmp_path, capsys, model, file, message):
    assert export.main([str(tmp_path / model.format(folder=folder)), str(tmp_path / file)]) == 2
    assert message in capsys.readouterr().err
