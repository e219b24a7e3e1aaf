"""The layout of published ELMo weights: which tensors and options a file has, and where they go in an `ElmoModel`.

The format is that of bilm-tf (github.com/allenai/bilm-tf, which trained the published models): an options JSON and an
HDF5 file with one dataset per TensorFlow variable, in the names of the files:

| dataset | shape | becomes |
|---|---|---|
| `char_embed` | (261, char_embedding_dim) | rows 1.. of the character embedding; row 0, the mask, is zeros |
| `CNN/W_cnn_{i}`, `CNN/b_cnn_{i}` | (1, width, char_embedding_dim, filters) | a Conv1d |
| `CNN_high_{i}/{W,b}_{carry,transform}` | (filters, filters) | two Linear |
| `CNN_proj/{W,b}_proj` | (filters, projection_dim) | a Linear; absent if there are projection_dim filters |
| `embedding` | (words, projection_dim) | instead of all of the above: rows 1.. of a word table |
| `RNN_{0,1}/RNN/MultiRNNCell/Cell{j}/LSTMCell/` | direction 0 is forward, 1 backward | layer j of the LSTM |
| `.../W_0` | (input + projection, 4 * dim) | weight_ih and weight_hh |
| `.../B` | (4 * dim,) | bias, without the forget bias of 1.0, which both sides add at run time |
| `.../W_P_0` | (dim, projection_dim) | weight_hr |
| `softmax/W`, `softmax/b` | (words, projection_dim), (words,) | `lm_head` of an `ElmoForPreTraining`; in checkpoints |

The trainer's checkpoints have the same tensors under younger names of TensorFlow's (`VARIABLE_NAMES`).

Tensors are only cut, transposed and reordered, so that a round trip is bit-equal. The sizes come from the tensors;
options that contradict them are an error.
"""

import re
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from .commands import listing
from .configuration_elmo import ElmoConfig

LSTM_CELL = "RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
SOFTMAX = ("softmax/W", "softmax/b")
# How the trainer's variables are called (`LanguageModel` of bilm/training.py), and how the published files call them.
VARIABLE_NAMES = (
    (r"^(RNN_[01])/rnn/", r"\1/RNN/"),
    (r"/multi_rnn_cell/cell_(\d+)/", r"/MultiRNNCell/Cell\1/"),
    (r"/rnn/lstm_cell/", "/lstm_cell/"),  # in models for inference, which run each layer by itself
    (r"/lstm_cell/kernel$", "/LSTMCell/W_0"),
    (r"/lstm_cell/bias$", "/LSTMCell/B"),
    (r"/lstm_cell/projection/kernel$", "/LSTMCell/W_P_0"),
    # It wraps two and more layers into a MultiRNNCell, but not a single one, which shows in its HDF5 files too.
    (r"^(RNN_[01]/RNN)/LSTMCell/", r"\1/MultiRNNCell/Cell0/LSTMCell/"),
)
Data = TypeVar("Data")


class ConversionError(ValueError):
    """What was given cannot be converted; the message says why and what to do."""


class ConversionWarning(UserWarning):
    """Something in the source was left out or overruled."""


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def swap_gates(gates: np.ndarray) -> np.ndarray:
    """(..., 4 * dim) from TensorFlow's gate order i, g, f, o to PyTorch's i, f, g, o, and from there back."""
    first, second, third, fourth = np.split(gates, 4, axis=-1)
    return np.concatenate([first, third, second, fourth], axis=-1)


# How a dataset of each kind becomes a parameter, and how a parameter becomes a dataset.
KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "vector": (lambda data: data, lambda weight: weight),
    # TensorFlow multiplies inputs @ W, torch.nn.Linear inputs @ weight.T.
    "matrix": (np.transpose, np.transpose),
    # TensorFlow slides a window of height 1 over the characters and has the filters last, torch.nn.Conv1d has no height
    # and the filters first: (1, width, char_embedding_dim, filters) <-> (filters, char_embedding_dim, width).
    "window": (lambda data: data[0].transpose(2, 1, 0), lambda weight: weight.transpose(2, 1, 0)[None]),
    # Row 0 is the mask, whose zeros the files do not store: what is number k there has id k + 1 here.
    "table": (lambda data: np.pad(data, ((1, 0), (0, 0))), lambda weight: weight[1:]),
}


def word_encoder_layout(config: ElmoConfig) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """(dataset, its shape, parameter, kind) of everything below the LSTM."""
    if not config.cnn_filters:
        rows = (config.word_vocab_size or 1) - 1
        yield "embedding", (rows, config.projection_dim), "word_encoder.word_embedding.weight", "table"
        return
    char_dim, filters = config.char_embedding_dim, config.num_filters
    yield "char_embed", (config.vocab_size - 1, char_dim), "word_encoder.char_embedding.weight", "table"
    for i, (width, number) in enumerate(config.cnn_filters):
        yield f"CNN/W_cnn_{i}", (1, width, char_dim, number), f"word_encoder.convolutions.{i}.weight", "window"
        yield f"CNN/b_cnn_{i}", (number,), f"word_encoder.convolutions.{i}.bias", "vector"
    for i in range(config.num_highway_layers):
        for gate in ("carry", "transform"):
            name = f"word_encoder.highways.{i}.{gate}"
            yield f"CNN_high_{i}/W_{gate}", (filters, filters), f"{name}.weight", "matrix"
            yield f"CNN_high_{i}/b_{gate}", (filters,), f"{name}.bias", "vector"
    if config.use_cnn_projection:
        yield "CNN_proj/W_proj", (filters, config.projection_dim), "word_encoder.projection.weight", "matrix"
        yield "CNN_proj/b_proj", (config.projection_dim,), "word_encoder.projection.bias", "vector"


def dataset_name(name: str) -> str:
    """The name in the published files of one of bilm-tf's variables, without its scope, or of one of its datasets."""
    for pattern, replacement in VARIABLE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def from_variables(variables: Mapping[str, Data], scope: str = "lm/") -> dict[str, Data]:
    """The datasets among the variables of a checkpoint: those in the scope of the language model, the trainer's `lm/`.

    What the optimizer remembers of the variable `x` is called `x/Adagrad` or the like, and left out.
    """
    return {
        dataset_name(name.removeprefix(scope)): data
        for name, data in variables.items()
        if name.startswith(scope) and name.rpartition("/")[0] not in variables
    }


def dataset_shapes(config: ElmoConfig, with_softmax: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every dataset that the weights of `config` have in the legacy format."""
    projection, dim = config.projection_dim, config.lstm_dim
    shapes = {dataset: shape for dataset, shape, _, _ in word_encoder_layout(config)}
    for direction in (0, 1):
        for layer in range(config.num_hidden_layers):
            cell = LSTM_CELL.format(direction=direction, layer=layer)
            shapes |= {
                cell + "W_0": (2 * projection, 4 * dim),
                cell + "B": (4 * dim,),
                cell + "W_P_0": (dim, projection),
            }
    if with_softmax:
        shapes |= zip(SOFTMAX, ((config.lm_vocab_size or 0, projection), (config.lm_vocab_size or 0,)), strict=True)
    return shapes


def from_datasets(datasets: Mapping[str, np.ndarray], config: ElmoConfig) -> dict[str, Tensor]:
    """Parameters of an `ElmoModel` (without its scalar mix) from datasets of the shapes of `dataset_shapes`.

    With a softmax among them, `lm_head.weight` and `lm_head.bias` too.
    """
    arrays = {name: KINDS[kind][0](datasets[dataset]) for dataset, _, name, kind in word_encoder_layout(config)}
    for layer in range(config.num_hidden_layers):
        cells = [LSTM_CELL.format(direction=direction, layer=layer) for direction in (0, 1)]
        # One kernel multiplies [input, previous output]: its upper rows belong to the input, its lower to the output.
        kernels = np.stack([swap_gates(datasets[cell + "W_0"]).T for cell in cells])  # (2, 4 * dim, 2 * projection)
        weight_ih, weight_hh = np.split(kernels, 2, axis=-1)
        arrays[f"lstm.layers.{layer}.weight_ih"] = weight_ih  # (2, 4 * dim, projection)
        arrays[f"lstm.layers.{layer}.weight_hh"] = weight_hh  # (2, 4 * dim, projection)
        arrays[f"lstm.layers.{layer}.bias"] = np.stack([swap_gates(datasets[cell + "B"]) for cell in cells])
        arrays[f"lstm.layers.{layer}.weight_hr"] = np.stack([datasets[cell + "W_P_0"].T for cell in cells])
    if has_softmax(datasets):
        arrays |= zip(("lm_head.weight", "lm_head.bias"), (datasets[name] for name in SOFTMAX), strict=True)
    return {name: torch.from_numpy(np.array(array, dtype=np.float32, order="C")) for name, array in arrays.items()}


def has_softmax(names: Container[str]) -> bool:
    """Whether the whole softmax is among datasets."""
    return all(name in names for name in SOFTMAX)


def to_datasets(state_dict: Mapping[str, Tensor], config: ElmoConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_datasets`: float32 datasets in the legacy layout, without the row of the mask.

    The format always adds a forget bias of 1.0. A model with another `config.forget_bias` has the difference added to
    its stored bias; the tensors of all others stay bit-equal.

    Raises:
        ConversionError: a mask that is not zero, or another set of characters than the format's.
    """
    if config.cnn_filters and config.vocab_size != 262:
        raise ConversionError(f"vocab_size is {config.vocab_size}, but the format has 262 character ids and no others")
    arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in state_dict.items()}
    datasets = {}
    for dataset, _, name, kind in word_encoder_layout(config):
        if kind == "table" and arrays[name][0].any():
            raise ConversionError(f"row 0 of {name}, the mask, must be zeros, for which the format stores nothing")
        datasets[dataset] = KINDS[kind][1](arrays[name])
    for layer in range(config.num_hidden_layers):
        parameters = [arrays[f"lstm.layers.{layer}.{name}"] for name in ("weight_ih", "weight_hh", "bias", "weight_hr")]
        for direction in (0, 1):
            weight_ih, weight_hh, bias, weight_hr = (parameter[direction] for parameter in parameters)
            if config.forget_bias != 1.0:
                bias = bias.copy()
                bias[config.lstm_dim : 2 * config.lstm_dim] += config.forget_bias - 1.0
            cell = LSTM_CELL.format(direction=direction, layer=layer)
            datasets[cell + "W_0"] = swap_gates(np.concatenate([weight_ih, weight_hh], axis=1).T)
            datasets[cell + "B"] = swap_gates(bias)
            datasets[cell + "W_P_0"] = weight_hr.T
    return datasets


# ---------------------------------------------------------------------------------------------------------------------
# Options and shapes


def get_option(options: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value at a dotted key; absent and null are alike, as in bilm-tf."""
    value: Any = options
    for part in key.split("."):
        if not isinstance(value, Mapping):
            raise ConversionError(f"options: {key} is looked up in {value!r}, where a JSON object was expected")
        value = value.get(part)
        if value is None:
            return default
    return value


def infer_config(shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], use_words: bool) -> ElmoConfig:
    """The configuration that the shapes of the datasets imply; what no shape tells comes from the options.

    Absent options mean what they mean in bilm-tf: one layer, no highway layers, no clipping, no skip connections. An
    absent `dropout` leaves the default of `ElmoConfig`.

    Raises:
        ConversionError: missing datasets, shapes that contradict each other, or options that contradict the shapes.
    """
    kwargs = _lstm_sizes(shapes)
    if use_words:
        kwargs |= {"cnn_filters": [], "word_vocab_size": _require(shapes, "embedding", 2)[0] + 1}
    else:
        kwargs |= _cnn_sizes(shapes)
        kwargs["cnn_activation"] = get_option(options, "char_cnn.activation")
        if kwargs["cnn_activation"] not in ("relu", "tanh"):
            raise ConversionError(
                f"options: char_cnn.activation is {kwargs['cnn_activation']!r}, but must be 'relu' or 'tanh' (the "
                "tensors do not tell which): set the one that the model was trained with"
            )
        kwargs["max_word_length"] = get_option(options, "char_cnn.max_characters_per_token")
        if type(kwargs["max_word_length"]) is not int:
            raise ConversionError(
                f"options: char_cnn.max_characters_per_token is {kwargs['max_word_length']!r}, but must be an integer "
                "(50 in all published models; the tensors do not tell)"
            )
    kwargs |= {name: get_option(options, f"lstm.{name}") for name in ("cell_clip", "proj_clip")}
    kwargs["use_skip_connections"] = get_option(options, "lstm.use_skip_connections", False)
    trained = {
        "dropout": "dropout",
        "lm_vocab_size": "n_tokens_vocab",
        "num_negative_samples": "n_negative_samples_batch",
    }
    kwargs |= {name: options[key] for name, key in trained.items() if options.get(key) is not None}
    if has_softmax(shapes):
        kwargs["lm_vocab_size"] = _require(shapes, SOFTMAX[0], 2)[0]
    if options.get("sample_softmax") is False and "lm_vocab_size" in kwargs:
        kwargs["num_negative_samples"] = kwargs["lm_vocab_size"]  # so many that the full softmax is taken
    try:
        config = ElmoConfig(**kwargs)
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"options and tensors together make no ELMo: {str(error).splitlines()[-1]}") from error
    _check_shapes(shapes, config)
    _check_options(options, config, has_softmax(shapes))
    return config


def to_options(config: ElmoConfig) -> dict[str, Any]:
    """The legacy options of a configuration, as for inference: `n_characters` counts the mask."""
    options: dict[str, Any] = {
        "bidirectional": True,
        "dropout": config.dropout,
        "lstm": {
            "cell_clip": config.cell_clip,
            "dim": config.lstm_dim,
            "n_layers": config.num_hidden_layers,
            "proj_clip": config.proj_clip,
            "projection_dim": config.projection_dim,
            "use_skip_connections": config.use_skip_connections,
        },
        "n_negative_samples_batch": config.num_negative_samples,
    }
    if config.lm_vocab_size is not None:
        options["n_tokens_vocab"] = config.lm_vocab_size
    if config.cnn_filters:
        options["char_cnn"] = {
            "activation": config.cnn_activation,
            "embedding": {"dim": config.char_embedding_dim},
            "filters": config.cnn_filters,
            "max_characters_per_token": config.max_word_length,
            "n_characters": config.vocab_size,
            "n_highway": config.num_highway_layers,
        }
    return options


def usual_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options for weights that come without any: what the published models with characters have in common, and how many
    layers the shapes of the datasets tell."""
    layers, highways = _lstm_sizes(shapes)["num_hidden_layers"], _cnn_sizes(shapes)["num_highway_layers"]
    return {
        "char_cnn": {"activation": "relu", "max_characters_per_token": 50, "n_highway": highways},
        "lstm": {"cell_clip": 3.0, "n_layers": layers, "proj_clip": 3.0, "use_skip_connections": True},
    }


def _require(shapes: Mapping[str, tuple[int, ...]], name: str, dims: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ConversionError(
            f"the weights have no dataset {name!r}: they are incomplete or of another format (an LSTM without "
            f"projection, which has no W_P_0, is not supported). They hold: {listing(shapes)}"
        )
    if len(shapes[name]) != dims:
        raise ConversionError(f"dataset {name!r} has shape {shapes[name]}, but should have {dims} dimensions")
    return shapes[name]


def count_of(names: Iterable[str], pattern: str) -> int:
    """How many layers, filters or the like there are: one more than the greatest number that `pattern` captures at the
    beginning of a name."""
    count = max((int(match[1]) + 1 for match in map(re.compile(pattern).match, names) if match), default=0)
    if count > 1000:  # of layers, highways or filters: a name that is damaged, or is to keep us busy
        raise ConversionError(
            f"the weights have {count - 1} in the place of a small number ({pattern}): get them again"
        )
    return count


def _lstm_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if any(name.startswith(("rnn/", "RNN/")) for name in shapes) or (
        any(name.startswith("RNN_0/") for name in shapes) and not any(name.startswith("RNN_1/") for name in shapes)
    ):
        raise ConversionError(
            "the weights hold one direction only: a unidirectional language model is no ELMo and cannot be converted"
        )
    dim, projection_dim = _require(shapes, LSTM_CELL.format(direction=0, layer=0) + "W_P_0", 2)
    layers = count_of(shapes, r"RNN_[01]/RNN/MultiRNNCell/Cell(\d+)/")
    return {"num_hidden_layers": layers, "lstm_dim": dim, "projection_dim": projection_dim}


def _cnn_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    rows, char_dim = _require(shapes, "char_embed", 2)
    if rows != 261:
        raise ConversionError(
            f"dataset 'char_embed' has {rows} rows, but 256 bytes and 5 special characters make 261: models with other "
            "characters are not supported"
        )
    windows = [_require(shapes, f"CNN/W_cnn_{i}", 4) for i in range(count_of(shapes, r"CNN/W_cnn_(\d+)$") or 1)]
    return {
        "char_embedding_dim": char_dim,
        "cnn_filters": [[width, number] for _, width, _, number in windows],
        "num_highway_layers": count_of(shapes, r"CNN_high_(\d+)/"),
        "use_cnn_projection": "CNN_proj/W_proj" in shapes,
    }


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], config: ElmoConfig):
    """Insist on every dataset of `config`, in its shape, and warn of others."""
    expected = dataset_shapes(config, has_softmax(shapes))
    for name, shape in expected.items():
        if _require(shapes, name, len(shape)) != shape:
            raise ConversionError(
                f"dataset {name!r} has shape {shapes[name]}, but the other tensors say {shape}: the weights are "
                "damaged or put together from different models, get them again"
            )
    if extra := [name for name in shapes if name not in expected]:
        text = f"datasets that ELMo has no use for were left out: {listing(extra)}"
        warnings.warn(text, ConversionWarning, stacklevel=2)


def _check_options(options: Mapping[str, Any], config: ElmoConfig, with_softmax: bool):
    """Insist that every size in the options is that of the tensors."""
    # Per key: what the tensors say, and what its absence means.
    sizes: dict[str, tuple[Any, Any]] = {
        "lstm.dim": (config.lstm_dim, config.lstm_dim),
        "lstm.projection_dim": (config.projection_dim, config.projection_dim),
        "lstm.n_layers": (config.num_hidden_layers, 1),
    }
    if with_softmax:
        sizes["n_tokens_vocab"] = (config.lm_vocab_size, config.lm_vocab_size)
    if config.cnn_filters:
        sizes["char_cnn.embedding.dim"] = (config.char_embedding_dim, config.char_embedding_dim)
        sizes["char_cnn.filters"] = (config.cnn_filters, config.cnn_filters)
        sizes["char_cnn.n_highway"] = (config.num_highway_layers, 0)
        if (characters := get_option(options, "char_cnn.n_characters", 262)) not in (261, 262):
            raise ConversionError(
                f"options: char_cnn.n_characters is {characters}, but the tensors say 261, or 262 with the mask: "
                "use the options file that these weights came with, or correct the key"
            )
    for key, (tensors, absent) in sizes.items():
        value = get_option(options, key)
        if (absent if value is None else value) != tensors:
            found = f"absent, which means {absent}" if value is None else value
            raise ConversionError(
                f"options: {key} is {found}, but the tensors say {tensors}: use the options file that these weights "
                "came with, or correct the key"
            )
