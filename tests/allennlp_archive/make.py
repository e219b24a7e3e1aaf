"""Writes this folder's model.tar.gz and expected.json with AllenNLP (2.10.1, in the environment of `make bench`).

    .venv/bin/python tests/allennlp_archive/make.py legacy        # options and random weights as an HDF5 file
    .cache/allennlp/bin/python tests/allennlp_archive/make.py

The ELMo of a task model learns a little, its biLM with it, and then reads `SENTENCES`. AllenNLP's function for archives
needs libraries that its ELMo does not (torchvision, nltk, ...), so the archive is packed here, as version 0.9 did it.
"""

import importlib.machinery
import json
import sys
import tarfile
import types
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
LEGACY = FOLDER.parents[1] / "build" / "legacy"  # made in passing
SENTENCES = [["The", "cat", "sat", "."], ["Naïve", "words", ",", "日本", "too-long-ish-ones", "!"], ["Hi"]]


def write_weights():
    sys.path.insert(0, str(FOLDER.parent))
    from legacy_files import write_legacy

    LEGACY.parent.mkdir(exist_ok=True)
    write_legacy(LEGACY)


def write_archive():
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    from allennlp.modules.elmo import Elmo, batch_to_ids

    torch.manual_seed(0)
    files = {"options_file": str(LEGACY / "options.json"), "weight_file": str(LEGACY / "weights.hdf5")}
    elmo = Elmo(**files, num_output_representations=1, requires_grad=True, dropout=0.0)
    optimizer = torch.optim.Adam(elmo.parameters(), lr=0.02)
    characters = batch_to_ids(SENTENCES)
    for _ in range(10):
        vectors = elmo(characters)["elmo_representations"][0]
        (vectors * torch.randn_like(vectors)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    elmo._elmo_lstm._elmo_lstm.reset_states()  # AllenNLP carries them from batch to batch
    with torch.no_grad():
        vectors = elmo.eval()(characters)["elmo_representations"][0]
    expected = [row[: len(words)].tolist() for row, words in zip(vectors, SENTENCES, strict=True)]
    (FOLDER / "expected.json").write_text(json.dumps(expected))

    embedder = {"type": "elmo_token_embedder", "options_file": "options.json", "weight_file": "weights.hdf5"}
    config = {"model": {"type": "simple_tagger", "text_field_embedder": {"token_embedders": {"elmo": embedder}}}}
    (LEGACY / "config.json").write_text(json.dumps(config))
    prefix = "text_field_embedder.token_embedder_elmo._elmo."
    torch.save({prefix + name: tensor for name, tensor in elmo.state_dict().items()}, LEGACY / "weights.th")
    with tarfile.open(FOLDER / "model.tar.gz", "w:gz") as archive:
        for name, member in {
            "config.json": "config.json",
            "weights.th": "weights.th",
            "options.json": "fta/model.text_field_embedder.token_embedders.elmo.options_file",
        }.items():
            archive.add(LEGACY / name, member)


if __name__ == "__main__":
    write_weights() if sys.argv[1:] == ["legacy"] else write_archive()
