"""ELMo as the encoder of transformers' EncoderDecoderModel, and the example that trains one."""

import random
from pathlib import Path

import pytest
import seq2seq
import torch
from elsewhere import run_elsewhere
from finetuning_runs import save_pretrained
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from modeling_elmo import ElmoModel, ElmoTokenizer

START, END, PAD = 1, 2, 0
SOURCES = ["good day", "bad day it is", "good", "bad"]
TARGETS = [[5, 6, END], [7, 8, 9, END], [5, END], [7, END]]
CHILD = """
from transformers import AutoConfig, AutoModel, AutoTokenizer, EncoderDecoderModel

elmo, folder = sys.argv[1:]
encoder = AutoModel.from_pretrained(elmo, trust_remote_code=True)
AutoConfig.register("elmo", encoder.config_class)
AutoModel.register(encoder.config_class, type(encoder))
model = EncoderDecoderModel.from_pretrained(folder)
batch = AutoTokenizer.from_pretrained(elmo, trust_remote_code=True)(["bad day it is"], return_tensors="pt")
print(model.generate(**batch, max_length=8).tolist())
"""


def decoder(kind: str) -> BertLMHeadModel | GPT2LMHeadModel:
    """A tiny one; that of GPT-2 is not as wide as the encoder, so that a projection stands between them."""
    if kind == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertLMHeadModel(BertConfig(vocab_size=12, pad_token_id=PAD, is_decoder=True, **sizes, **dropout))
    sizes = {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 16}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=12, bos_token_id=START, eos_token_id=END, **sizes, **dropout))


@pytest.fixture
def elmo(tmp_path, tiny_config) -> Path:
    """An encoder of width 32."""
    tiny_config.lstm_dim, tiny_config.projection_dim = 32, 16
    return save_pretrained(ElmoModel(tiny_config), tmp_path / "elmo")


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # of EncoderDecoderModel, in every call
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_from_two_folders_to_a_third(elmo, tmp_path, kind):
    decoder(kind).save_pretrained(tmp_path / "decoder")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(elmo, tmp_path / "decoder")
    assert type(model.encoder) is ElmoModel and hasattr(model, "enc_to_dec_proj") == (kind == "gpt2")
    model.config.decoder_start_token_id, model.config.pad_token_id = START, PAD
    special = {"decoder_start_token_id": START, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    model.generation_config.update(**special)
    batch = ElmoTokenizer.from_pretrained(elmo)(SOURCES, padding=True, return_tensors="pt")
    rows = [torch.tensor(target) for target in TARGETS]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)  # (batch, tokens)

    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for _ in range(150):
        output = model.train()(**batch, labels=labels)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        optimizer.step()
        if len(losses) == 1:
            without = [name for name, parameter in model.encoder.named_parameters() if parameter.grad is None]
            assert without == ["scalar_mix.weights", "scalar_mix.gamma"]
        optimizer.zero_grad()
    assert losses[-1] < 0.05 < 1 < losses[0]

    model.eval()
    expected = [[START, *target] for target in TARGETS]
    for beams in (1, 3):
        tokens = model.generate(**batch, max_length=8, num_beams=beams)  # (batch, tokens)
        assert [row[: len(target)] for row, target in zip(tokens.tolist(), expected, strict=True)] == expected
    for number, target in enumerate(expected):  # alone as in the batch
        alone = ElmoTokenizer()([SOURCES[number]], return_tensors="pt")
        assert model.generate(**alone, max_length=8).tolist() == [target]

    model.save_pretrained(tmp_path / "both")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "both")
    with torch.no_grad():
        logits = model(**batch, labels=labels).logits
        torch.testing.assert_close(loaded(**batch, labels=labels).logits, logits, rtol=0, atol=1e-5)
    if kind == "bert":
        assert run_elsewhere(CHILD, tmp_path, elmo, tmp_path / "both").strip() == str([expected[1]])


def test_the_decoder_may_read_the_mix(elmo):
    """As the config says, through saving and loading, and only there."""
    mixed = ElmoModel.from_pretrained(elmo, mix_last_hidden_state=True)
    mixed.save_pretrained(elmo)
    mixed, batch = ElmoModel.from_pretrained(elmo), ElmoTokenizer()(SOURCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = mixed(**batch, output_hidden_states=True)
        top = ElmoModel.from_pretrained(elmo, mix_last_hidden_state=False)(**batch)
    assert output.last_hidden_state is output.scalar_mix
    torch.testing.assert_close(top.last_hidden_state, output.hidden_states[-1], rtol=0, atol=0)
    assert (output[0] - top[0]).abs().max() > 1e-4
    model = EncoderDecoderModel(encoder=mixed, decoder=decoder("bert"))
    torch.testing.assert_close(model.get_encoder()(**batch)[0], output.scalar_mix)


def test_words_are_misspelt_by_one_slip():
    rng = random.Random(0)
    slips = {seq2seq.misspell("word", rng) for _ in range(400)}
    assert {"wrod", "wod", "wrd", "worrd", "woord", "wxrd", "woxd"} <= slips and all(w[0] == "w" for w in slips)
    pairs = seq2seq.corrupted([["a", "longer", "sentence", "x2yz"]] * 400, rng, share=0.3)
    assert {target != source for source, target in pairs} == {True, False}
    assert all((source[0], source[3]) == ("a", "x2yz") for source, _ in pairs)
    changed = sum(one != other for source, target in pairs for one, other in zip(source, target, strict=True))
    assert 170 < changed < 290  # about 0.3 of 800; a swap or a mistake may change nothing


def test_pieces_are_runs_of_known_words():
    sentences = [["a", "b", "c", "?", "a", "b"], ["b", "c", "a", "b", "c", "a", "b", "c"]]
    expected = [["a", "b", "c"], ["b", "c", "a", "b", "c"], ["a", "b", "c"]]
    assert seq2seq.pieces_of(sentences, {"a", "b", "c"}, shortest=3, longest=5) == expected


@pytest.mark.parametrize(
    "flag", ["--passes 0", "--batch_size 0", "--max_tokens 1", "--learning_rate -1", "--vocab_size 9"]
)
def test_numbers_that_cannot_be_are_told_at_once(flag, capsys):
    with pytest.raises(SystemExit):
        seq2seq.main(["model", *flag.split()])
    assert flag.split()[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_example_learns_pairs_of_a_file(elmo, tmp_path, capsys):
    colours = {"rot": "red", "blau": "blue", "schwarz": "black"}
    lines = [f"{one} und {two}.\t{colours[one]} and {colours[two]} ." for one in colours for two in colours] * 12
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    flags = {"passes": 60, "batch_size": 16, "learning_rate": 5e-3, "max_tokens": 12, "output_dir": tmp_path / "out"}
    argv = [str(elmo), str(tmp_path / "pairs.tsv")]
    argv += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    assert seq2seq.main(argv) == 0
    told = capsys.readouterr().out
    assert "5 held-out pairs, words right: 100.0%" in told and "the source as it is: 25.0%" in told, told
    model = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    target = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    batch = ElmoTokenizer()(["schwarz und rot."], return_tensors="pt")
    assert target.decode(model.generate(**batch)[0], skip_special_tokens=True).strip() == "black and red ."


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "cannot read"), ("a b\n" * 30, "pair 1 must be a source and a target"), ("a\tb\n" * 3, "has 3 pairs")],
)
def test_pairs_that_cannot_be_learned(elmo, tmp_path, capsys, text, told):
    if text is not None:
        (tmp_path / "pairs.tsv").write_text(text)
    assert seq2seq.main([str(elmo), str(tmp_path / "pairs.tsv")]) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert seq2seq.main([str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
