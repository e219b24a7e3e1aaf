"""The ELMo inside an AllenNLP model: `model.tar.gz` with config.json, weights.th, vocabulary and often files in `fta`.

`allennlp.modules.elmo` loads the HDF5 file into modules of torch and trains them on, or not; weights.th has them under
the names of those modules. Here they become datasets of the HDF5 file again:

| module, behind `..._elmo_lstm.` | from the dataset |
|---|---|
| `_token_embedder._char_embedding_weights` | `char_embed` below a row of zeros for the mask |
| `_token_embedder.char_conv_{i}` | `CNN/W_cnn_{i}` without its height, axes turned around, as Conv1d has them |
| `_token_embedder._highways._layers.{i}` | `W_transform` above minus `W_carry`, transposed: this gate says how much |
| | is kept of the input, the original's how much is transformed, and sigmoid(-x) = 1 - sigmoid(x) |
| `_token_embedder._projection` | `CNN_proj/W_proj`, transposed |
| `_elmo_lstm.{forward,backward}_layer_{j}.input_linearity` | upper rows of `W_0`, transposed, gates i, f, g, o |
| `....state_linearity` | lower rows of `W_0`, the same; `B` with the forget bias of 1.0 added |
| `....state_projection` | `W_P_0`, transposed |

Beside `_elmo_lstm` lies a `scalar_mix_{k}` for each place where the task model reads ELMo vectors.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .allennlp_files import LegacyElmo, LegacyFiles, check_vocabulary, checked_values, read_json, read_legacy_vocabulary
from .allennlp_format import (
    KINDS,
    LSTM_CELL,
    ConversionError,
    ConversionWarning,
    count_of,
    dataset_shapes,
    from_datasets,
    infer_config,
    swap_gates,
)
from .commands import listing

# In an archive, and in the folder in which the model was trained.
ARCHIVED_WEIGHTS = ("weights.th", "best.th")
CHARACTERS = "_elmo_lstm._token_embedder._char_embedding_weights"


def read_archived(files: LegacyFiles) -> LegacyElmo:
    """Read and check the ELMo of an AllenNLP model: its biLM, as it was trained last, and its scalar mix.

    Raises:
        ConversionError: files that are damaged, contradict each other, or have no ELMo or several.
    """
    options_file, weights = files.required()
    if files.token_embeddings:
        raise ConversionError(f"{weights} is an AllenNLP model: token embeddings go with HDF5 weights only")
    options, state = read_json(options_file), read_state_dict(weights)
    elmos = [name.removesuffix(CHARACTERS) for name in state if name.endswith(CHARACTERS)]
    if len(elmos) != 1:
        found = "several ELMos" if elmos else "no ELMo with characters"
        raise ConversionError(f"{weights} has {found}, but one is needed; it has {listing(elmos or state)}")
    elmo = {name.removeprefix(elmos[0]): tensor for name, tensor in state.items() if name.startswith(elmos[0])}
    datasets = _datasets(elmo, weights)
    config = infer_config({name: data.shape for name, data in datasets.items()}, options, use_words=False)
    if not config.use_skip_connections:
        raise ConversionError(f"{options_file}: use_skip_connections must be true, for AllenNLP has no others")
    config.forget_bias = 0.0  # it is in the biases
    values = {name: checked_values(name, datasets[name]) for name in dataset_shapes(config)}
    mix = _scalar_mix(elmo, config.num_hidden_layers + 1)
    model = weights.with_name("config.json")
    if mix and model.is_file() and re.search(r'"do_layer_norm":\s*true', model.read_text("utf-8", "replace")):
        config.scalar_mix_layer_norm = True
        text = "the layers are normalised before they are mixed: here word by word, in AllenNLP over the whole batch"
        warnings.warn(text, ConversionWarning, stacklevel=2)
    vocabulary = read_legacy_vocabulary(files.vocab) if files.vocab else None
    check_vocabulary(config, vocabulary, options.get("n_tokens_vocab"))
    return LegacyElmo(config, {**from_datasets(values, config), **mix}, vocabulary, files, "an AllenNLP model")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save` by name, in float32; nothing else is unpickled.

    Raises:
        ConversionError: a file that is missing, damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist") from error
    except Exception as error:  # whatever a damaged pickle makes the reader of torch's older format raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{path} is damaged, or holds something else than tensors ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConversionError(f"{path} must hold a state dict of weights")
    for name, tensor in state.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
            raise ConversionError(f"{path}: {name} is no tensor with numbers of its own: no weights")
    return {str(name): tensor.detach().float() for name, tensor in state.items() if tensor.is_floating_point()}


def _datasets(elmo: Mapping[str, Tensor], path: Path) -> dict[str, np.ndarray]:
    arrays = {name.removeprefix("_elmo_lstm."): tensor.numpy() for name, tensor in elmo.items()}
    embedder, datasets = "_token_embedder.", {}
    try:
        datasets["char_embed"] = KINDS["table"][1](arrays[embedder + "_char_embedding_weights"])
        for i in range(count_of(arrays, r"_token_embedder\.char_conv_(\d+)\.weight")):
            datasets[f"CNN/W_cnn_{i}"] = KINDS["window"][1](arrays[f"{embedder}char_conv_{i}.weight"])
            datasets[f"CNN/b_cnn_{i}"] = arrays[f"{embedder}char_conv_{i}.bias"]
        for i in range(count_of(arrays, r"_token_embedder\._highways\._layers\.(\d+)\.weight")):
            for ours, theirs in (("W", "weight"), ("b", "bias")):
                transform, kept = np.split(arrays[f"{embedder}_highways._layers.{i}.{theirs}"], 2)
                datasets[f"CNN_high_{i}/{ours}_transform"] = transform.T
                datasets[f"CNN_high_{i}/{ours}_carry"] = -kept.T
        datasets["CNN_proj/W_proj"] = arrays[embedder + "_projection.weight"].T
        datasets["CNN_proj/b_proj"] = arrays[embedder + "_projection.bias"]
        for direction, side in enumerate(("forward", "backward")):
            for layer in range(count_of(arrays, rf"_elmo_lstm\.{side}_layer_(\d+)\.")):
                module, cell = f"_elmo_lstm.{side}_layer_{layer}.", LSTM_CELL.format(direction=direction, layer=layer)
                kernels = [arrays[f"{module}{part}_linearity.weight"] for part in ("input", "state")]
                datasets[cell + "W_0"] = swap_gates(np.concatenate(kernels, axis=1).T)  # (2 * projection, 4 * dim)
                datasets[cell + "B"] = swap_gates(arrays[module + "state_linearity.bias"])
                datasets[cell + "W_P_0"] = arrays[module + "state_projection.weight"].T
    except (LookupError, ValueError) as error:  # ValueError: shapes
        raise ConversionError(f"{path}: the ELMo is not whole, or no ELMo of AllenNLP's ({error})") from error
    return datasets


def _scalar_mix(elmo: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The parameters of an `ElmoScalarMix`, if the task model has learnt exactly one."""
    mixes = [name.removesuffix("gamma") for name in elmo if re.fullmatch(r"scalar_mix_\d+\.gamma", name)]
    if len(mixes) != 1:
        text = f"the task model has {len(mixes)} scalar mixes, not one: the layers are mixed evenly"
        warnings.warn(text, ConversionWarning, stacklevel=3)
        return {}
    names = [f"{mixes[0]}scalar_parameters.{layer}" for layer in range(layers)]
    if missing := [name for name in names if name not in elmo]:
        raise ConversionError(f"the scalar mix lacks {listing(missing)}")
    numbers = torch.cat([elmo[name].flatten() for name in [*names, mixes[0] + "gamma"]])
    if len(numbers) != layers + 1 or not numbers.isfinite().all():
        raise ConversionError(f"the scalar mix should have {layers + 1} finite numbers, but has {numbers.tolist()}")
    return {"scalar_mix.weights": numbers[:-1], "scalar_mix.gamma": numbers[-1]}
