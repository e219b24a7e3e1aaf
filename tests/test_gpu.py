"""What is done otherwise where there is a GPU, against the same on the processor. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from conftest import TINY
from training_runs import flags, write_text

from modeling_elmo import ElmoConfig, ElmoModel, ElmoTokenizer
from modeling_elmo.arguments import PretrainingArguments, parse_arguments
from modeling_elmo.embed import embed
from modeling_elmo.pretraining import Pretrainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("full_precision"),
]
LINES = ["A small sentence .", "Another one , which is longer than the first .", "", "One", "A small sentence ."] * 5
# With widths that the kernels take.
WIDE = {**TINY, "lstm_dim": 128, "projection_dim": 64}


def make_model() -> ElmoModel:
    torch.manual_seed(0)
    return ElmoModel(ElmoConfig(**WIDE)).eval().requires_grad_(False)


@pytest.mark.parametrize("layers", ["mix", "all"])
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_embeddings_are_those_of_the_processor(layers, pooling):
    tokenizer = ElmoTokenizer()
    expected = list(embed(LINES, make_model(), tokenizer, layers=layers, pooling=pooling, words_per_batch=30))
    actual = list(embed(LINES, make_model().cuda(), tokenizer, layers=layers, pooling=pooling, words_per_batch=30))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_to_float32():
    tokenizer = ElmoTokenizer()
    expected = list(embed(LINES, make_model(), tokenizer, layers="top"))
    actual = embed(LINES, make_model().to("cuda", torch.bfloat16), tokenizer, layers="top")
    for one, other in zip(actual, expected, strict=True):
        assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min().item() > 0.999 if len(other) else True


def test_ids_on_the_host_have_the_vectors_of_those_on_the_gpu():
    model, tokenizer = make_model().cuda(), ElmoTokenizer()
    batch = tokenizer([line.split() for line in LINES], is_split_into_words=True, padding=True, return_tensors="pt")
    pair = model(**batch, output_hidden_states=True), model(**batch.to("cuda"), output_hidden_states=True)
    for one, other in zip(*(output.hidden_states for output in pair), strict=True):
        assert one.device.type == "cuda"
        torch.testing.assert_close(one, other)


@pytest.fixture
def trainer_of(tmp_path: Path):
    """Makes a run of train.py with a config whose layers the kernels take."""
    write_text(tmp_path)
    config = ElmoConfig.from_json_file(tmp_path / "config.json")
    config.update({"lstm_dim": 128, "projection_dim": 64})
    config.to_json_file(tmp_path / "config.json", use_diff=False)

    def make(name: str, **more: object) -> Pretrainer:
        argv = flags(tmp_path, tmp_path / name, **more)
        trainer = Pretrainer(parse_arguments(PretrainingArguments, description="", argv=argv))
        trainer.start_log()
        trainer.model.train()
        return trainer

    return make


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_nothing_waits_for_the_gpu_within_a_batch(trainer_of, precision):
    """Forward and backward: what the host must know, it knew before."""
    trainer = trainer_of("run", mixed_precision=precision, state_reset_probability=0.5)
    for step in range(2):
        trainer.micro_step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.micro_step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.batches.close()
    trainer.folder.unlock()


def test_training_goes_down_in_bfloat16(trainer_of):
    trainer = trainer_of("run", mixed_precision="bf16", max_steps=60, optim="adamw", learning_rate=0.01)
    losses = []
    for _ in range(60):
        trainer.optimizer_step()
        losses.append(float(trainer.log.losses[-1].mean()))
    assert losses[-1] < losses[0] - 0.5
    trainer.batches.close()
    trainer.folder.unlock()


def test_read_ahead_batches_resume_where_the_last_one_was_taken(trainer_of):
    trainer = trainer_of("run")
    positions = [trainer.position.taken.copy()]
    for step in range(3):
        trainer.micro_step(step)
        positions.append(trainer.position.taken.copy())
    trainer.batches.close()
    trainer.folder.unlock()
    other = trainer_of("other")
    for step in range(3):
        _, position = other.lanes.read(other.position, other.args.unroll_steps, other.mine)
        other.position = position
        assert (position.taken == positions[step + 1]).all()
    other.batches.close()
    other.folder.unlock()
