"""What ELMo is measured against: AllenNLP, torch's own LSTM, a model of standard modules, and bare matrix products."""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel
from modeling_elmo.convert import convert_to_allennlp
from modeling_elmo.lstm import ElmoState

WORKER = Path(__file__).with_name("allennlp_worker.py")


class AllenNLP:
    """AllenNLP's ELMo with the weights of `model`, in a process of `python`."""

    def __init__(self, python: str, model: ElmoModel):
        self.folder = tempfile.TemporaryDirectory()
        model.save_pretrained(f"{self.folder.name}/model")
        convert_to_allennlp(f"{self.folder.name}/model", f"{self.folder.name}/legacy")
        self.process = subprocess.Popen(
            [python, str(WORKER), str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
        )  # fmt: skip
        self._answer()
        files = (
            ("options", f"{self.folder.name}/legacy/options.json"),
            ("weights", f"{self.folder.name}/legacy/weights.hdf5"),
        )
        self._ask("load", **dict(files))

    def _answer(self):
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit("bench.py: AllenNLP's process ended: run benchmarks/allennlp_worker.py by hand to see why")
        return json.loads(line)

    def _ask(self, command: str, **arguments):
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")  # type: ignore[union-attr]
        return self._answer()

    def encode(self, texts: list[list[str]], batch_size: int) -> float:
        """Seconds, as the process measures them."""
        return self._ask("encode", sentences=texts, batch_size=batch_size)

    def best_batch(self, texts: list[list[str]]) -> int:
        """The fastest batch size of 32, 64 and 128, measured once after a first time that is not counted."""
        self.encode(texts[:32], 32)
        return min((32, 64, 128), key=lambda size: self.encode(texts, size))

    def first_batch(self, texts: list[list[str]]) -> Tensor:
        """(layers, texts, words, hidden_size), sorted by length, from zero state."""
        self._ask("reset")
        path = f"{self.folder.name}/layers.npz"
        self._ask("encode", sentences=texts, batch_size=len(texts), output=path)
        layers = np.load(path)
        return torch.stack([torch.from_numpy(layers[name]) for name in sorted(layers.files)])

    def memory(self) -> int:
        """Bytes at the most."""
        return self._ask("memory")

    def close(self):
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.folder.cleanup()


class TorchLstm(nn.Module):
    """Two stacks of `nn.LSTM(proj_size=...)`, which cannot clip and have no skips."""

    def __init__(self, config: ElmoConfig, batch: int, steps: int, dtype: torch.dtype):
        super().__init__()
        make = lambda: nn.LSTM(config.projection_dim, config.lstm_dim, 2, proj_size=config.projection_dim)  # noqa: E731
        self.sides = nn.ModuleList([make(), make()]).to(dtype)
        self.inputs = torch.randn(2, steps, batch, config.projection_dim, dtype=dtype)

    @torch.no_grad()
    def forward(self):
        for side, inputs in zip(self.sides, self.inputs, strict=True):
            side(inputs)


class Products:
    """The matrix products of both directions and layers and nothing else, each as fast as torch has it here.

    Of the three ways to multiply (both directions at once, one after the other, weights laid out once for oneDNN) the
    fastest is taken, measured on the spot.
    """

    def __init__(self, config: ElmoConfig, batch: int, steps: int, dtype: torch.dtype):
        dim, width = config.lstm_dim, config.projection_dim
        shapes = ((batch * steps, width, 4 * dim, 1), (batch, width, 4 * dim, steps), (batch, dim, width, steps))
        self.products = [
            (self._fastest(torch.randn(2, rows, k, dtype=dtype), torch.randn(2, n, k, dtype=dtype)), times)
            for rows, k, n, times in shapes
        ]
        self.layers = config.num_hidden_layers

    @staticmethod
    def _fastest(x: Tensor, weight: Tensor):
        from timing import interleaved

        right = weight.transpose(1, 2)
        out = x.new_empty(2, x.shape[1], weight.shape[1])
        packed = [torch.ops.mkldnn._reorder_linear_weight(side, x.shape[1]) for side in weight]
        linear = torch.ops.mkldnn._linear_pointwise
        ways = {
            "both": lambda: torch.bmm(x, right, out=out),
            "each": lambda: [torch.mm(x[side], right[side], out=out[side]) for side in (0, 1)],
            "oneDNN": lambda: [linear(x[side], packed[side], None, "none", [], "") for side in (0, 1)],
        }
        times = interleaved(ways, rounds=3)
        return ways[min(ways, key=times.__getitem__)]

    @torch.no_grad()
    def __call__(self):
        for _ in range(self.layers):
            for product, times in self.products:
                for _ in range(times):
                    product()


class _PlainLstm(nn.Module):
    """In the place of `ElmoLstm`, for lanes of equal length: layers of nn.LSTM, with the same skip and dropout."""

    def __init__(self, config: ElmoConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        make = lambda: nn.LSTM(config.projection_dim, config.lstm_dim, proj_size=config.projection_dim)  # noqa: E731
        self.layers = nn.ModuleList(nn.ModuleList([make(), make()]) for _ in range(config.num_hidden_layers))
        self.initial_hidden = self.initial_cell = None  # lanes begin in zeros

    def forward(self, inputs: Tensor, packing, state: ElmoState) -> tuple[list[Tensor], ElmoState]:
        steps = len(packing.batch_sizes)
        layers = []
        for index, sides in enumerate(self.layers):
            inputs = self.dropout(inputs)
            streams = inputs.unflatten(1, (steps, -1))  # (2, steps, lanes, projection_dim)
            outputs = torch.stack([lstm(stream)[0] for lstm, stream in zip(sides, streams, strict=True)]).flatten(1, 2)
            inputs = outputs + inputs if index > 0 else outputs
            layers.append(inputs)
        return layers, state


def with_every_word(batch: dict[str, Tensor], config: ElmoConfig) -> dict[str, Tensor]:
    """The same batch of lanes with the characters of every word instead of those of different words."""
    words = batch["distinct_words"]
    rows = F.pad(words, (0, config.max_word_length - words.shape[1]), value=config.char_padding_id)
    spread = {name: rows[batch[name]] for name in ("input_ids", "reversed_input_ids")}
    return {**{name: values for name, values in batch.items() if name != "distinct_words"}, **spread}


def plain_training_model(config: ElmoConfig, every_word: bool) -> ElmoForPreTraining:
    """ELMo with nn.LSTM for its recurrence; `every_word`: and the character CNN over every word's full row."""
    model = ElmoForPreTraining(config).train()
    model.elmo.lstm = _PlainLstm(config)
    if every_word:
        encoder = model.elmo.word_encoder
        encoder._cut = lambda words: (words, False)
        encoder.forward = encoder._in_chunks
    return model
