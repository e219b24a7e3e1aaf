"""An ELMo as an ONNX file, for programs without torch: `python -m modeling_elmo.export MODEL FILE.onnx`.

    python -m modeling_elmo.export my-elmo elmo.onnx          # all layers, any number of texts and words
    python -m modeling_elmo.export my-elmo elmo.onnx --check  # and compare with torch: outputs, size and speed

The graph takes `input_ids` (batch, words, row_length) and `attention_mask` (batch, words), both int64 as
`ElmoTokenizer` makes them, and gives `last_hidden_state`, `scalar_mix` and `hidden_states.0`, ..., each (batch, words,
hidden_size).
`torch.export.export` takes an `ElmoModel` as it is.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .commands import command_parser, run_command
from .evaluation_mode import evaluation_mode
from .loading import load_encoder
from .modeling_elmo import ElmoModel
from .tokenization_elmo import ElmoTokenizer

# A protocol buffer ends at 2 GiB; larger weights go into a file beside it.
LARGEST_FILE = 1.8e9
# Something to trace, of more than one text and word, since sizes of 1 are taken for constants; and texts to compare.
EXAMPLE = ["The cat sat on the mat .", "Yes ."]
TEXTS = ["Why ?", "It does n't rain in the valley when the wind comes from the mountains .", "a", *EXAMPLE]


class ExportError(ValueError):
    """What cannot be exported; the message names it and the way out."""


def export_onnx(model: ElmoModel, tokenizer: ElmoTokenizer, path: str | Path):
    """Write an ONNX file with all layers, for any number of texts and words. It appears when it is complete.

    Args:
        model: on the CPU, in float32.
        tokenizer: the model's own.
        path: the file to write; its folder must be there.

    Raises:
        ExportError: the package onnxscript is missing, or a `path` that cannot be written.
    """
    imported("onnxscript")
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent} is no folder: make it, or choose another")
    batch = inputs_for(tokenizer, EXAMPLE)
    sizes: dict[str, Any] = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("words")} for name in batch}
    layers = [f"hidden_states.{layer}" for layer in range(model.config.num_hidden_layers + 1)]
    mix = ["scalar_mix"] if model.scalar_mix is not None else []
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    scratch_folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    with scratch_folder as scratch, warnings.catch_warnings(), evaluation_mode(model):
        warnings.simplefilter("ignore")  # on torch's own ways
        torch.onnx.export(
            model,
            (),
            Path(scratch, path.name),
            kwargs={**batch, "output_hidden_states": True},
            dynamic_shapes={**sizes, "output_hidden_states": None},
            input_names=list(batch),
            output_names=["last_hidden_state", *mix, *layers],
            external_data=size > LARGEST_FILE,
            dynamo=True,
            verbose=False,
        )
        files = sorted(Path(scratch).iterdir(), reverse=True)  # the graph last
        if len(files) > 1:  # better none, for whoever stops us in between, than an old graph over new weights
            path.unlink(missing_ok=True)
        for file in files:
            os.replace(file, path.with_name(file.name))
        if len(files) == 1:
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a larger model that was replaced


def imported(package: str) -> Any:
    """A package that not everyone has.

    Raises:
        ExportError: it is missing.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(f"ONNX needs {package} ({error}): pip install 'modeling-elmo[export]'") from error


def inputs_for(tokenizer: ElmoTokenizer, texts: Sequence[str]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of some texts."""
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def check(model: ElmoModel, tokenizer: ElmoTokenizer, path: str | Path, rounds: int = 5) -> dict[str, float]:
    """Compare an ONNX file in onnxruntime with the model in torch, on other texts than it was traced with.

    Args:
        model: on the CPU, in float32.
        tokenizer: the model's own.
        path: the file that `export_onnx` wrote.
        rounds: how often each is timed.

    Returns:
        `difference`, the largest of all outputs; `onnx_mib` and `torch_mib`, sizes in MiB; `onnx_ms` and `torch_ms`,
        the median milliseconds of the same batch, in turns.

    Raises:
        ExportError: onnxruntime is missing.
    """
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batch = inputs_for(tokenizer, TEXTS)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    names = [output.name for output in session.get_outputs()]
    times: dict[str, list[float]] = {"onnx": [], "torch": []}
    for _ in range(rounds):
        started = time.perf_counter()
        found = dict(zip(names, session.run(None, arrays), strict=True))
        times["onnx"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        times["torch"].append(time.perf_counter() - started)
    expected = {"last_hidden_state": output.last_hidden_state, "scalar_mix": output.scalar_mix}
    expected |= {f"hidden_states.{layer}": tensor for layer, tensor in enumerate(output.hidden_states)}
    files = [Path(path), Path(f"{path}.data")]
    return {
        "difference": max(float(np.abs(found[name] - expected[name].numpy()).max()) for name in names),
        "onnx_mib": sum(file.stat().st_size for file in files if file.is_file()) / 2**20,
        "torch_mib": sum(parameter.nbytes for parameter in model.parameters()) / 2**20,
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("export", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ELMo; of one with a head, the biLM is exported")
    parser.add_argument("file", type=Path, help="the ONNX file to write")
    parser.add_argument("--check", action="store_true", help="compare with torch in onnxruntime")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace):
    """Load, export, compare and tell."""
    if arguments.file.exists() and not arguments.overwrite:
        raise ExportError(f"{arguments.file} exists: choose another file, or replace it with --overwrite")
    if arguments.check:  # rather missed now than when the file is written
        imported("onnxruntime")
    model, tokenizer = load_encoder(arguments.model)
    export_onnx(model, tokenizer, arguments.file)
    print(f"wrote {arguments.file}")
    if arguments.check:
        found = check(model, tokenizer, arguments.file)
        print(f"largest difference to torch  {found['difference']:.1e}")
        print(f"size                         {found['onnx_mib']:.1f} MiB, weights in torch {found['torch_mib']:.1f}")
        print(f"a batch of {len(TEXTS)} short texts    {found['onnx_ms']:.2f} ms, in torch {found['torch_ms']:.2f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    arguments = parse_arguments(argv)
    return run_command(lambda: run(arguments), ExportError)


if __name__ == "__main__":
    sys.exit(main())
