"""ELMo in sentence-transformers: vectors against pooling by hand, folders as remote code, training with a loss."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from elsewhere import run_elsewhere
from finetuning_runs import change_weights, save_pretrained

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.sentence_embedding import main, make_sentence_transformer

sentence_transformers = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
SENTENCES = ["The cat sat on the mat .", "Yes .", "A longer one , with more words than the others have ."]


@pytest.fixture
def folder(tiny_config, tmp_path) -> Path:
    return save_pretrained(ElmoModel(tiny_config), tmp_path / "elmo")


@pytest.mark.parametrize(("layer", "pooling"), [("scalar_mix", "mean"), (0, "max"), (1, "mean"), (-1, "mean")])
def test_vectors_are_those_of_the_words_pooled(folder, layer, pooling):
    found = make_sentence_transformer(folder, layer, pooling).encode(SENTENCES)
    model, tokenizer = ElmoModel.from_pretrained(folder), ElmoTokenizer.from_pretrained(folder)
    for sentence, vector in zip(SENTENCES, found, strict=True):  # one by one: nothing depends on the batch
        with torch.no_grad():
            output = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True)
        words = output.scalar_mix[0] if layer == "scalar_mix" else output.hidden_states[layer][0]
        expected = words.mean(0) if pooling == "mean" else words.amax(0)
        np.testing.assert_allclose(vector, expected.numpy(), rtol=0, atol=1e-6)


def test_the_folder_loads_as_remote_code_in_a_process_without_this_package(folder, tmp_path):
    assert main([str(folder), str(tmp_path / "st"), "--layer", "1"]) == 0
    program = (
        "from sentence_transformers import SentenceTransformer\n"
        f"vectors = SentenceTransformer({str(tmp_path / 'st')!r}, trust_remote_code=True).encode({SENTENCES!r})\n"
        "import numpy; numpy.save(sys.argv[1], vectors)"
    )
    run_elsewhere(program, tmp_path, tmp_path / "out.npy")
    expected = make_sentence_transformer(folder, 1).encode(SENTENCES)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-6)


def test_a_loss_trains_it(folder, tmp_path):
    model = make_sentence_transformer(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = Dataset.from_dict(
        {"anchor": [f"word{n} is here" for n in range(8)], "positive": [f"here is word{n}" for n in range(8)]}
    )
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=30, learning_rate=0.02, report_to="none",
            save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
        ),
        train_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
    )  # fmt: skip
    trainer.train()
    course = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert course[-1] < 0.5 * course[0]
    after = model.state_dict()
    assert not torch.equal(before["0.model.lstm.layers.0.weight_ih"], after["0.model.lstm.layers.0.weight_ih"])
    model.save(str(tmp_path / "trained"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "trained"), trust_remote_code=True)
    np.testing.assert_allclose(again.encode(SENTENCES), model.encode(SENTENCES), rtol=0, atol=1e-6)


def test_mistakes_are_told(folder, tmp_path, capsys):
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    change_weights(lacking, {"lstm.layers.0.weight_ih": None})
    for arguments, message in [
        ([str(lacking), str(tmp_path / "st")], "lacks weights (lstm.layers.0.weight_ih)"),
        ([str(folder), str(folder)], "exists: choose another folder"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "st")], "has no ELMo"),
        ([str(folder), str(tmp_path / "st"), "--layer", "3"], "there is no layer 3"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "st").exists()
    with pytest.raises(SystemExit):
        main([str(folder), str(tmp_path / "st"), "--layer", "top"])
