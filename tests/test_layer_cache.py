"""The cache of layers: what it gives is what the model computes, whatever is asked again, added later or cut off."""

import io
import itertools
import os
import pickle
import threading
from functools import partial

import numpy as np
import pytest
import torch
from filelock import FileLock
from test_modeling import assert_close
from test_sequence_classification import make_classifier

from modeling_elmo import ElmoTokenizer
from modeling_elmo.layer_cache import CachedCollator, LayerCache

SINGLE = ["a cat sat", "the dog", "a cat sat", ""]
PAIRS = (["the dog", "who is it"], ["a cat sat", "no one"])


@pytest.fixture
def tokenizer() -> ElmoTokenizer:
    return ElmoTokenizer()


def encode(tokenizer, *texts):
    return tokenizer(*texts, padding=True, return_tensors="pt")


@pytest.mark.parametrize("changes", [{}, {"feature_layers": [0]}, {"feature_layers": [2, 0]}])
def test_layers_are_those_of_the_model(tokenizer, tmp_path, changes):
    model = make_classifier(**changes)
    cache = LayerCache(tmp_path, model)
    batches = [encode(tokenizer, SINGLE), encode(tokenizer, *PAIRS)]
    cache.add(batches)
    for batch in batches:
        assert_close(cache.look_up(batch), model.bilm_layers(**batch)[0])


def test_each_distinct_text_is_computed_once(tokenizer, tmp_path, monkeypatch):
    model = make_classifier()
    cache = LayerCache(tmp_path, model)
    encoded = []
    compute = model.bilm_layers
    monkeypatch.setattr(
        model, "bilm_layers", lambda ids, mask: encoded.extend(mask.sum(1).tolist()) or compute(ids, mask)
    )
    cache.add([encode(tokenizer, SINGLE), encode(tokenizer, *PAIRS)])
    assert sorted(encoded) == [2, 4, 4, 5, 5]  # with both boundaries; two of the texts of pairs were there
    assert cache.num_bytes == 20 * 3 * 12 * 4
    assert {len(key) for key in cache.places} == {16}, "bytes of a hash, so many that no two texts share one"
    cache.add([encode(tokenizer, SINGLE)])
    again = LayerCache(tmp_path, model)
    again.add([encode(tokenizer, *PAIRS)])
    assert len(encoded) == 5 and again.num_bytes == cache.num_bytes


def test_texts_may_be_added_later(tokenizer, tmp_path):
    model = make_classifier()
    earlier = LayerCache(tmp_path, model)
    LayerCache(tmp_path, model).add([encode(tokenizer, SINGLE)])
    later = LayerCache(tmp_path, model)
    pairs = encode(tokenizer, *PAIRS)
    with pytest.raises(KeyError):
        later.look_up(pairs)
    single = encode(tokenizer, SINGLE)
    for cache in (earlier, later):
        cache.add([pairs])
        assert_close(cache.look_up(pairs), model.bilm_layers(**pairs)[0])
        assert_close(cache.look_up(single), model.bilm_layers(**single)[0])


def test_a_cache_that_was_cut_off_goes_on(tokenizer, tmp_path):
    """Data that the index does not know are written over."""
    model = make_classifier()
    cache = LayerCache(tmp_path, model)
    cache.add([encode(tokenizer, SINGLE)])
    with open(cache.folder / "layers.bin", "ab") as file:
        file.write(np.random.default_rng(0).bytes(10_001))
    cache = LayerCache(tmp_path, model)
    pairs = encode(tokenizer, *PAIRS)
    cache.add([pairs])
    assert_close(cache.look_up(pairs), model.bilm_layers(**pairs)[0])
    assert (cache.folder / "layers.bin").stat().st_size == cache.num_bytes


def test_layers_lie_on_disk_before_the_index_knows_them(tokenizer, tmp_path, monkeypatch):
    cache, synced = LayerCache(tmp_path, make_classifier()), []
    index = cache.folder / "index.npz"
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, index.exists())))
    cache.add([encode(tokenizer, SINGLE)])
    assert synced == [(cache.num_bytes, False)] and index.exists()


def test_an_index_that_cannot_be_written_leaves_the_one_before(tokenizer, tmp_path, monkeypatch):
    cache, single = LayerCache(tmp_path, make_classifier()), encode(tokenizer, SINGLE)
    cache.add([single])
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        cache.add([encode(tokenizer, *PAIRS)])
    again = LayerCache(tmp_path, cache.model)
    assert_close(again.look_up(single), cache.model.bilm_layers(**single)[0])


def test_a_cache_that_lost_data_is_made_anew(tokenizer, tmp_path):
    model = make_classifier()
    cache, single = LayerCache(tmp_path, model), encode(tokenizer, SINGLE)
    cache.add([single])
    with open(cache.folder / "layers.bin", "r+b") as file:
        file.truncate(cache.num_bytes - 1)
    cache = LayerCache(tmp_path, model)
    cache.add([single])
    assert_close(cache.look_up(single), model.bilm_layers(**single)[0])


def test_one_process_adds_at_a_time(tokenizer, tmp_path, monkeypatch):
    """Else both would write at the same place."""
    cache, single = LayerCache(tmp_path, make_classifier()), encode(tokenizer, SINGLE)
    computes, compute = threading.Event(), cache._write
    monkeypatch.setattr(cache, "_write", lambda window: computes.set() or compute(window))
    thread = threading.Thread(target=cache.add, args=([single],), daemon=True)
    with FileLock(cache.folder / "lock"):
        thread.start()
        assert not computes.wait(0.5)
    thread.join()
    assert computes.is_set() and cache.num_bytes


def test_a_bar_is_seen_where_something_is_computed(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tqdm.std.time", partial(next, itertools.count()))  # each look at the clock takes a second
    cache, single = LayerCache(tmp_path, make_classifier()), encode(tokenizer, SINGLE)
    cache.add([single], total=4)
    assert "layers of the biLM: 100%" in capsys.readouterr().err
    cache.add([single], total=4)
    assert not capsys.readouterr().err


def test_another_bilm_has_a_folder_of_its_own(tokenizer, tmp_path):
    first, second = make_classifier(), make_classifier()
    single = encode(tokenizer, SINGLE)
    LayerCache(tmp_path, first).add([single])
    cache = LayerCache(tmp_path, second)
    with pytest.raises(KeyError):
        cache.look_up(single)
    cache.add([single])
    assert_close(cache.look_up(single), second.bilm_layers(**single)[0])


def test_windows_do_not_matter(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_elmo.layer_cache.WORDS_PER_WINDOW", 1)
    monkeypatch.setattr("modeling_elmo.layer_cache.WORDS_PER_BATCH", 5)
    model = make_classifier()
    cache = LayerCache(tmp_path, model)
    batches = [encode(tokenizer, [text]) for text in SINGLE] + [encode(tokenizer, *PAIRS)]
    cache.add(iter(batches))
    for batch in batches:
        assert_close(cache.look_up(batch), model.bilm_layers(**batch)[0])


def test_bfloat16_takes_half(tokenizer, tmp_path):
    model = make_classifier()
    cache = LayerCache(tmp_path, model, "bfloat16")
    single = encode(tokenizer, SINGLE)
    cache.add([single])
    layers = cache.look_up(single)
    assert layers.dtype == torch.bfloat16 and cache.num_bytes == 11 * 3 * 12 * 2
    torch.testing.assert_close(layers.float(), model.bilm_layers(**single)[0], rtol=2**-8, atol=1e-6)
    del single["input_ids"]
    assert model(hidden_states=layers, **single).logits.isfinite().all()


def test_dropout_of_the_bilm_is_not_in_the_cache(tokenizer, tmp_path):
    model = make_classifier(dropout=0.9).train()
    assert model.training and not model.elmo.lstm.training
    model.elmo.lstm.train()  # as of a model that is frozen while it trains
    cache = LayerCache(tmp_path, model)
    single = encode(tokenizer, SINGLE)
    cache.add([single])
    assert model.training and model.elmo.lstm.training
    assert_close(cache.look_up(single), model.eval().bilm_layers(**single)[0])


def test_an_error_leaves_the_model_in_training_mode(tokenizer, tmp_path, monkeypatch):
    model = make_classifier().train()
    monkeypatch.setattr(model, "bilm_layers", lambda ids, mask: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LayerCache(tmp_path, model).add([encode(tokenizer, SINGLE)])
    assert model.training


def test_a_batch_has_layers_in_the_place_of_ids(tokenizer, tmp_path):
    cache, single = LayerCache(tmp_path, make_classifier()), encode(tokenizer, SINGLE)
    cache.add([single])
    batch = CachedCollator(lambda texts: encode(tokenizer, texts), cache)(SINGLE)
    assert batch.keys() == {"hidden_states", *single} - {"input_ids"}
    assert torch.equal(batch["hidden_states"], cache.look_up(single))


def test_a_trained_bilm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="freeze it to cache them"):
        LayerCache(tmp_path, make_classifier(freeze_bilm=False))


def test_processes_that_load_data_map_the_layers_themselves(tokenizer, tmp_path):
    cache = LayerCache(tmp_path, make_classifier())
    batch = encode(tokenizer, [f"{' '.join(map(str, range(number)))}" for number in range(100)])
    cache.add([batch])
    sent = pickle.dumps(cache)
    assert len(sent) < cache.num_bytes / 10
    received = pickle.loads(sent)
    assert received.model is None and torch.equal(received.look_up(batch), cache.look_up(batch))


@pytest.mark.parametrize(
    "change", [{"forget_bias": 0.0}, {"use_skip_connections": False}, {"cell_clip": None}, {"cnn_activation": "tanh"}]
)
def test_a_model_that_computes_otherwise_with_the_same_weights_has_a_cache_of_its_own(tmp_path, change):
    model, other = make_classifier(), make_classifier(**change)
    other.load_state_dict(model.state_dict())
    assert LayerCache(tmp_path, model).folder != LayerCache(tmp_path, other).folder
    another_head = make_classifier(head_dim=3, feature_dropout=0.1)
    another_head.elmo.load_state_dict(model.elmo.state_dict())
    assert LayerCache(tmp_path, model).folder == LayerCache(tmp_path, another_head).folder
    reads_fewer = make_classifier(feature_layers=[0])
    reads_fewer.elmo.load_state_dict(model.elmo.state_dict())
    folders = {LayerCache(tmp_path, *choice).folder for choice in ((model,), (reads_fewer,), (model, "bfloat16"))}
    assert len(folders) == 3


def index_of(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, keys=np.zeros((1, 16), np.uint8), **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04", index_of(), index_of(lengths=np.ones(2, np.int64))], ids=len
)
def test_a_damaged_index_is_made_anew(tokenizer, tmp_path, content):
    cache = LayerCache(tmp_path, make_classifier())
    cache.add([encode(tokenizer, SINGLE)])
    (cache.folder / "index.npz").write_bytes(content)
    again = LayerCache(tmp_path, cache.model)
    assert not again.places
    again.add([encode(tokenizer, SINGLE)])
    assert torch.equal(again.look_up(encode(tokenizer, SINGLE)), cache.look_up(encode(tokenizer, SINGLE)))
