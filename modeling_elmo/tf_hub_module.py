"""ELMo modules of TF-Hub: google/elmo, DeepPavlov's Russian ones, and TensorFlow's task models that hold one.

A module is a SavedModel: its graph (saved_model.pb), which is code and not read, and `variables/variables.*`, a
checkpoint. The names of the variables are those of bilm-tf's `BidirectionalLanguageModel`, as google/elmo/1 lists them
when it is loaded (github.com/tensorflow/hub/issues/88); those of the mix differ:

| variable | is the dataset of the HDF5 file |
|---|---|
| `bilm/char_embed` | `char_embed` below a row for the mask |
| `bilm/CNN/...`, `bilm/CNN_high_{i}/...`, `bilm/CNN_proj/...` | the same name without `bilm/` |
| `bilm/RNN_{0,1}/RNN/MultiRNNCell/Cell{j}/rnn/lstm_cell/kernel` | `W_0` of that cell, `bias` its `B`, |
| | `projection/kernel` its `W_P_0` |
| `aggregation/weights`, `aggregation/scaling` | none: the scalar mix of google/elmo |
| `elmo_output_ELMo_W`, `elmo_output_ELMo_gamma` | none: that of DeepPavlov's (its elmo_model.py) |
| `bilm/Variable`, `bilm/Variable_1`, ... | none: LSTM states of the last batch (the same) |

A task model has a scope before these names, such as `module/`.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .allennlp_files import (
    LegacyElmo,
    LegacyFiles,
    check_vocabulary,
    checked_values,
    read_json,
    read_legacy_vocabulary,
)
from .allennlp_format import (
    KINDS,
    ConversionError,
    ConversionWarning,
    dataset_shapes,
    from_datasets,
    from_variables,
    infer_config,
    usual_options,
)
from .commands import listing
from .tensorflow_checkpoint import Variable, is_index, read_checkpoint

MODULE_TABLE = "bilm/char_embed"  # the variable by which a module is known
MIXES = (("aggregation/weights", "aggregation/scaling"), ("elmo_output_ELMo_W", "elmo_output_ELMo_gamma"))


def is_hub_module(weights: Path) -> bool:
    """Whether a file is the index of the variables of a TF-Hub module, or of a checkpoint that has such a module."""
    if not weights.is_file() or not is_index(weights):
        return False
    return any(name.endswith(MODULE_TABLE) for name in read_checkpoint(weights))


def read_hub_module(files: LegacyFiles) -> LegacyElmo:
    """Read and check the ELMo of a module, and the scalar mix if it was trained.

    A module has no options: without `files.options` they are taken to be the usual ones, and a warning says so.

    Raises:
        ConversionError: files that are damaged, contradict each other, or have several ELMos.
    """
    assert files.weights is not None
    if files.token_embeddings:
        raise ConversionError(f"{files.weights} is a module of TF-Hub: token embeddings go with HDF5 weights only")
    variables = read_checkpoint(files.weights)
    scopes = [name.removesuffix(MODULE_TABLE) for name in variables if name.endswith(MODULE_TABLE)]
    if len(scopes) != 1:
        raise ConversionError(f"{files.weights} has several ELMos, but one is needed: {listing(scopes)}")
    found = from_variables(variables, scopes[0] + "bilm/")
    datasets: dict[str, Any] = {name: data for name, data in found.items() if not re.match(r"Variable(_\d+)?$", name)}
    datasets["char_embed"] = KINDS["table"][1](datasets["char_embed"][()])  # (261, char_embedding_dim)
    shapes = {name: data.shape for name, data in datasets.items()}
    options = read_json(files.options) if files.options else usual_options(shapes)
    config = infer_config(shapes, options, use_words=False)
    if not files.options:
        text = (
            f"a module of TF-Hub has no options: taken are words of {config.max_word_length} characters, "
            f"{config.cnn_activation}, clips at {config.cell_clip:g} and skip connections, as in all modules that are "
            "known; give others with --options"
        )
        warnings.warn(text, ConversionWarning, stacklevel=2)
    values = {name: checked_values(name, datasets[name]) for name in dataset_shapes(config)}
    mix = _scalar_mix(variables, scopes[0], config.num_hidden_layers + 1)
    vocabulary = read_legacy_vocabulary(files.vocab) if files.vocab else None
    check_vocabulary(config, vocabulary, options.get("n_tokens_vocab"))
    return LegacyElmo(config, {**from_datasets(values, config), **mix}, vocabulary, files, "a module of TF-Hub")


def _scalar_mix(variables: Mapping[str, Variable], scope: str, layers: int) -> dict[str, Tensor]:
    """The parameters of an `ElmoScalarMix`, unless they are those with which an `ElmoModel` begins."""
    for names in MIXES:
        if all(scope + name in variables for name in names):
            weights, gamma = (checked_values(name, variables[scope + name]) for name in names)
            if weights.shape != (layers,) or gamma.size != 1:
                raise ConversionError(
                    f"{scope}{names[0]} has shape {weights.shape} and {names[1]} {gamma.shape}, but there are {layers} "
                    "layers to mix and one factor: these variables do not belong together"
                )
            if np.ptp(weights) == 0 and gamma == 1:
                return {}
            # The original adds a constant to all weights before their softmax, which changes nothing.
            return {"scalar_mix.weights": torch.tensor(weights), "scalar_mix.gamma": torch.tensor(gamma.item())}
    return {}
