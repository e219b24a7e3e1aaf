"""How fast ELMo is on a GPU, against cuDNN, against the reference and against the limits of the card.

    python benchmarks/gpu.py                                   # all of it
    python benchmarks/gpu.py --only recurrence                 # one layer, forward and with its gradient
    python benchmarks/gpu.py --only sizes                      # the same with other tiles, `gpu_recurrence.Sizes`
    python benchmarks/gpu.py --only training --train_file train.txt.gz    # words/s of train.py with 800,000 words
    python benchmarks/gpu.py --only embedding --train_file train.txt.gz   # words/s of modeling_elmo.embed.embed
    python benchmarks/gpu.py --only profile --train_file train.txt.gz     # where the time of a training step goes

Contestants take turns in one session; the tables have medians of the turns. README.md beside this file says how to
read them. Compiling takes longer than measuring; several processes do it faster, before the one that measures:

    for rows in 64 128 256 512; do python benchmarks/gpu.py --only recurrence --rounds 0 --rows $rows & done; wait
"""

import argparse
import gzip
import itertools
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_elmo import ElmoConfig, ElmoModel, ElmoTokenizer, lstm_ops
from modeling_elmo import gpu_recurrence as gpu_recurrence_module
from modeling_elmo.embed import distinct_batch, embed
from modeling_elmo.gpu_recurrence import PHASES, GpuRecurrence, gpu_recurrence
from modeling_elmo.lstm_ops import fused_lstm, packed_lstm

ROOT = Path(__file__).parents[1]
CUDA = torch.device("cuda")
DTYPE = torch.bfloat16
STEPS = 20
CLIPS = {"cell_clip": 3.0, "proj_clip": 3.0}
SIZES = {"original": (4096, 512), "small": (1024, 128)}
SOFTMAX_WORDS = 800_000


def milliseconds(function: Callable[[], object]) -> float:
    """Of the GPU and of the host that feeds it: a call is not waited for before the next one begins."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(4):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 4


def in_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each; one that fails is told and left out. Without rounds they run twice, so that all is
    compiled, and there are no times."""
    times: dict[str, list[float]] = {}
    for name, function in list(contestants.items()):
        try:
            function(), function()
            torch.cuda.synchronize()
            times[name] = []
        except (RuntimeError, AssertionError) as error:
            print(f"{name} does not run: {str(error).splitlines()[0][:120]}", flush=True)
    for _ in range(rounds):
        for name in times:
            times[name].append(milliseconds(contestants[name]))
    return {name: median(values) for name, values in times.items() if values}


def describe_machine() -> tuple[float, float]:
    """Print what runs this; returns the card's FLOP/s in products and bytes/s in copies, measured."""
    import triton

    properties = torch.cuda.get_device_properties(CUDA)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    square = torch.randn(8192, 8192, device=CUDA, dtype=DTYPE)
    copied = torch.empty(2**30, device=CUDA, dtype=torch.uint8)
    both = in_turns({"product": lambda: square @ square, "copy": lambda: copied.clone()}, 3)
    flops, bandwidth = 2 * 8192**3 / both["product"] * 1e3, 2 * copied.nbytes / both["copy"] * 1e3
    print(
        f"{properties.name}, {properties.multi_processor_count} multiprocessors; torch {torch.__version__}, Triton "
        f"{triton.__version__}, cuDNN {torch.backends.cudnn.version()}; commit {commit.strip() or 'unknown'}\n"
        f"measured: {flops / 1e12:.0f} TFLOP/s in bfloat16 products, {bandwidth / 1e12:.2f} TB/s read and written\n"
    )
    return flops, bandwidth


# ---------------------------------------------------------------------------------------------------------------------
# One layer, both directions


def make_layer(dim: int, width: int, rows: int) -> list[Tensor]:
    """Inputs, W_ih, W_hh, bias, W_hr, hidden state and cell."""
    torch.manual_seed(0)
    shapes = [(2, rows * STEPS, width), (2, 4 * dim, width), (2, 4 * dim, width), (2, 4 * dim), (2, width, dim)]
    tensors = [torch.randn(shape, device=CUDA) for shape in shapes]
    scaled = [tensor / tensor.shape[2] ** 0.5 if index in (1, 2, 4) else tensor for index, tensor in enumerate(tensors)]
    leaves = [tensor.to(DTYPE).requires_grad_() for tensor in scaled]
    return [*leaves, torch.zeros(2, rows, width, device=CUDA, dtype=DTYPE), torch.zeros(2, rows, dim, device=CUDA)]


def limits(dim: int, width: int, rows: int, flops: float, bandwidth: float) -> tuple[tuple[float, float], ...]:
    """The least milliseconds (products, memory) of the forward pass, and of it with the gradient."""
    words = 2 * rows * STEPS
    multiplied = words * (2 * 4 * dim * width + dim * width)  # W_ih, W_hh and W_hr
    weights = 2 * (8 * dim * width + dim * width) * 2  # bytes, read once: they stay in the cache
    forward = weights + words * 2 * width * 2  # and inputs and outputs
    # The gradient needs gates (4), what is projected (2 bytes each) and the cell (4 bytes): written, and read again.
    kept = words * dim * (4 * 2 + 2 + 4)
    gradient = 2 * forward + weights + 2 * kept + 2 * words * 4 * dim * 2  # and those of the gates, written and read
    compute = 2 * multiplied / flops * 1e3
    return (compute, forward / bandwidth * 1e3), (3 * compute, gradient / bandwidth * 1e3)


def contestants(dim: int, width: int, rows: int, compiled: bool) -> dict[str, Callable[[bool], object]]:
    """What runs one layer; each is told whether to run its gradient, too."""
    tensors, sizes = make_layer(dim, width, rows), [rows] * STEPS
    weight = torch.randn(2, rows * STEPS, width, device=CUDA, dtype=DTYPE)  # of the outputs, in the loss

    def with_gradient(run: Callable[[], Tensor], leaves: list[Tensor], of: Tensor) -> Callable[[bool], object]:
        def both(backward: bool):
            with torch.set_grad_enabled(backward):
                outputs = run()
            return torch.autograd.grad(outputs, leaves, of) if backward else outputs

        return both

    runs = {
        name: with_gradient(lambda kernel=kernel: by_kernel(kernel, tensors, sizes), tensors[:5], weight)
        for name, kernel in (
            ("at once", GpuRecurrence(at_once=True)),
            ("phases", GpuRecurrence(at_once=False)),
            ("steps", None),  # torch's products around the cell in Triton
        )
    }
    for name, dtype in (("cuDNN", DTYPE), ("cuDNN, float16", torch.float16)):
        cudnn = nn.LSTM(width, dim, proj_size=width, bidirectional=True, device=CUDA, dtype=dtype)
        inputs = torch.randn(STEPS, rows, width, device=CUDA, dtype=dtype, requires_grad=True)
        leaves, of = [inputs, *cudnn.parameters()], torch.randn(STEPS, rows, 2 * width, device=CUDA, dtype=dtype)
        runs[name] = with_gradient(lambda cudnn=cudnn, inputs=inputs: cudnn(inputs)[0], leaves, of)
    runs["loop"] = with_gradient(lambda: packed_lstm(*tensors, sizes, **CLIPS)[0], tensors[:5], weight)
    if compiled:
        loop = torch.compile(packed_lstm, dynamic=False, options={"triton.cudagraphs": True})
        runs["compiled"] = with_gradient(lambda: loop(*tensors, sizes, **CLIPS)[0], tensors[:5], weight)
    for of in ("phases", "loop"):
        graphs = {backward: captured(runs[of], backward) for backward in (False, True)}
        runs[f"{of}, graph"] = lambda backward, graphs=graphs: graphs[backward]()
    return runs


def by_kernel(kernel: GpuRecurrence | None, tensors: list[Tensor], sizes: list[int]) -> Tensor:
    """Outputs of `fused_lstm` with these kernels."""
    with mock.patch.object(lstm_ops, "gpu_recurrence", lambda *_: kernel):
        return fused_lstm(*tensors, sizes, **CLIPS)[0]


def captured(run: Callable[[bool], object], backward: bool) -> Callable[[], object]:
    """A CUDA graph of a call, which the host starts at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(backward), run(backward)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(backward)
    return graph.replay


def bench_recurrence(options: argparse.Namespace, flops: float, bandwidth: float):
    print(f"one layer, both directions, {STEPS} steps, bfloat16; ms\n")
    runners = [
        "at once",
        "phases",
        "phases, graph",
        "steps",
        "cuDNN",
        "cuDNN, float16",
        "loop",
        "loop, graph",
        "compiled",
    ]
    head = [*runners, "of cuDNN", "products", "memory"]  # of the faster cuDNN; torch lays its bfloat16 out at each call
    print(f"{'layer':9} {'rows':>4} {'pass':17} " + " ".join(f"{name:>14}" for name in head))
    for name, rows in itertools.product(options.layers, options.rows):
        dim, width = SIZES[name]
        runs = contestants(dim, width, rows, options.compiled)
        for backward in (False, True):
            turns = {who: (lambda run=run, backward=backward: run(backward)) for who, run in runs.items()}
            times = in_turns(turns, options.rounds)
            if not times:
                continue
            least = limits(dim, width, rows, flops, bandwidth)[backward]
            best = min(times.get(who, math.inf) for who in runners[:2])
            cells = [f"{times[who]:14.2f}" if who in times else f"{'':14}" for who in runners]
            opponent = min((times[who] for who in times if who.startswith("cuDNN")), default=math.nan)
            cells += [f"{opponent / best:13.2f}x", *(f"{value:14.3f}" for value in least)]
            told = "forward, backward" if backward else "forward"
            print(f"{name:9} {rows:4} {told:17} " + " ".join(cells), flush=True)
        torch.cuda.empty_cache()
    print()


# Other tiles, with two programs on a multiprocessor, of which one multiplies while the other reads and writes.
TWO = {"cells": 32, "warps": 4, "programs": 2}
VARIANTS: dict[str, dict] = {
    "as they are": {},
    "4 stages": {"stages": 4},
    "256 columns": {"columns": 256, "splits": (32, 32)},
    "two": TWO,
    "two, 32 parts": {**TWO, "splits": (16, 32)},
    "two, depth 32": {**TWO, "depth": 32, "stages": 4},
    "two, 64 columns": {**TWO, "columns": 64},
    "two, 64 rows": {**TWO, "rows": 64, "cells": 64, "stages": 2},
}


def bench_sizes(rounds: int):
    """Microseconds of a step in the kernels alone, at original's size: all at once, and each phase in a graph."""
    (dim, width), rows = SIZES["original"], 128
    inputs, weight_ih, weight_hh, bias, weight_hr, hidden, cell = (x.detach() for x in make_layer(dim, width, rows))
    sizes, bounds = [rows] * STEPS, (3.0, 3.0)
    d_outputs, d_cell = torch.randn_like(inputs), torch.zeros_like(cell)
    arguments = (inputs, [weight_ih, weight_hh, weight_hr], bias, hidden, cell, sizes, bounds)
    products = in_turns({"hoisted": lambda: torch.bmm(inputs, weight_ih.transpose(1, 2))}, rounds)["hoisted"]
    print(f"original, {rows} rows, microseconds a step; without the input's products\n")
    head = ["forward", "backward", *(f"{side} {phase}" for side in ("forward", "backward") for phase in PHASES)]
    print(f"{'sizes':18} " + " ".join(f"{name:>10}" for name in head))
    for name, changed in VARIANTS.items():
        kernel = GpuRecurrence(at_once=True, sizes=changed)
        try:
            results = kernel.forward(*arguments, keep=True)
        except Exception as error:  # such as too little memory on the chip
            print(f"{name:18} does not run: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        backward = (results, weight_hh, weight_hr, d_outputs, d_cell, sizes, bounds)
        turns: dict[str, Callable[[], object]] = {
            "forward": lambda kernel=kernel: kernel.forward(*arguments, keep=True),
            "backward": lambda kernel=kernel, backward=backward: kernel.backward(*backward),
        }
        single = GpuRecurrence(at_once=False, sizes=changed)
        for phase in PHASES:
            with mock.patch.object(gpu_recurrence_module, "PHASES", (phase,)):
                turns[f"forward {phase}"] = captured(lambda _, one=single: one.forward(*arguments, keep=True), False)
                turns[f"backward {phase}"] = captured(lambda _, one=single, of=backward: one.backward(*of), False)
        times = in_turns(turns, rounds)
        values = [times[who] - (products if who.startswith("forward") else 0) for who in head]
        print(f"{name:18} " + " ".join(f"{value / STEPS * 1e3:10.1f}" for value in values), flush=True)
    print()


# ---------------------------------------------------------------------------------------------------------------------
# Training and embedding


class CudnnLayer(nn.Module):
    """An `ElmoLstmLayer` by cuDNN, which cannot clip: for lanes, whose texts are all of one length."""

    gradient_checkpointing = False

    def __init__(self, config: ElmoConfig):
        super().__init__()
        dim, width = config.lstm_dim, config.projection_dim
        self.sides = nn.ModuleList(nn.LSTM(width, dim, proj_size=width) for _ in range(2))

    def forward(self, inputs: Tensor, batch_sizes: list[int], hidden: Tensor, cell: Tensor):
        outputs, hiddens, cells = [], [], []
        for side, lstm in enumerate(self.sides):
            steps = inputs[side].unflatten(0, (len(batch_sizes), -1))  # (steps, rows, projection_dim)
            state = hidden[side, None].to(DTYPE).contiguous(), cell[side, None].to(DTYPE).contiguous()
            output, (last_hidden, last_cell) = lstm(steps.to(DTYPE), state)
            outputs.append(output.flatten(0, 1)), hiddens.append(last_hidden[0]), cells.append(last_cell[0].float())
        return torch.stack(outputs), torch.stack(hiddens), torch.stack(cells)


def make_vocabulary(folder: Path, train_file: str) -> Path:
    """The words of a text by falling frequency, filled up to 800,000 with words that it does not have."""
    with gzip.open(train_file, "rt", encoding="utf-8") as lines:
        counts = Counter(itertools.chain.from_iterable(map(str.split, lines)))
    words = [*dict.fromkeys(["<S>", "</S>", "<UNK>", *(word for word, _ in counts.most_common())])]
    words += [f"filler{number}" for number in range(SOFTMAX_WORDS - len(words))]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words[:SOFTMAX_WORDS]) + "\n", encoding="utf-8")
    return path


def make_trainer(folder: Path, options: argparse.Namespace, lanes: int, cudnn: bool):
    """A run of train.py with the original's model and optimizer, as train.py makes it."""
    from modeling_elmo.arguments import PretrainingArguments
    from modeling_elmo.pretraining import Pretrainer

    args = PretrainingArguments(
        output_dir=str(folder / f"{lanes}_{cudnn}"), overwrite_output_dir=True, config_name="original",
        train_file=[options.train_file], validation_file=[options.train_file], pre_tokenized=True,
        vocab_file=str(folder / "vocab.txt"), per_device_train_batch_size=lanes, max_steps=100_000,
        mixed_precision="bf16", data_cache_dir=str(folder / "cache"), logging_steps=1000, optim=options.optim,
        learning_rate=0.2 if options.optim == "adagrad" else 0.001,
    )  # fmt: skip
    trainer = Pretrainer(args)
    if cudnn:
        model = trainer.accelerator.unwrap_model(trainer.model)
        layers = [CudnnLayer(trainer.config) for _ in model.elmo.lstm.layers]
        model.elmo.lstm.layers = nn.ModuleList(layer.to(CUDA, DTYPE) for layer in layers)
        from modeling_elmo.training_model import make_optimizer

        trainer.optimizer = trainer.accelerator.prepare(make_optimizer(args, model))
    trainer.start_log()
    trainer.model.train()
    return trainer


def step_time(trainer) -> float:
    """Mean seconds of ten training steps, within which the host runs ahead."""
    return drain(trainer.optimizer_step() for _ in range(10)) / 10


def bench_training(options: argparse.Namespace, folder: Path):
    print(f"pretraining, original, {SOFTMAX_WORDS:,} words in the softmax, 8,192 negatives, {options.optim}, bf16\n")
    print(f"{'lanes':>5} {'ours words/s':>13} {'cuDNN words/s':>14} {'ratio':>6} {'ours GiB':>9}")
    for lanes in options.lanes:
        speeds = {}
        torch.cuda.reset_peak_memory_stats()
        trainers = {False: make_trainer(folder, options, lanes, False)}
        step_time(trainers[False])
        memory = torch.cuda.max_memory_allocated() / 2**30  # before the other is there
        trainers[True] = make_trainer(folder, options, lanes, True)
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(1 + options.rounds):
            for cudnn, trainer in trainers.items():
                seconds = step_time(trainer)
                times[cudnn] += [seconds] if turn else []
        for cudnn, trainer in trainers.items():
            speeds[cudnn] = trainer.words_per_step / median(times[cudnn])
            trainer.batches.close()
            trainer.folder.unlock()
        ratio = speeds[False] / speeds[True]
        print(f"{lanes:5} {speeds[False]:13,.0f} {speeds[True]:14,.0f} {ratio:5.2f}x {memory:9.1f}", flush=True)
        del trainers, trainer
        torch.cuda.empty_cache()
    print()


def bench_profile(options: argparse.Namespace, folder: Path):
    """Where the GPU's and the host's time of a training step goes."""
    from torch.profiler import ProfilerActivity, profile

    trainer = make_trainer(folder, options, options.lanes[0], False)
    for _ in range(5):
        trainer.optimizer_step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as result:
        for _ in range(5):
            trainer.optimizer_step()
        torch.cuda.synchronize()
    averages = result.key_averages()
    print(averages.table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=60))
    trainer.batches.close()
    trainer.folder.unlock()


def bench_embedding(options: argparse.Namespace):
    with gzip.open(options.train_file, "rt", encoding="utf-8") as lines:
        texts = [line.split() for line in itertools.islice(lines, options.sentences)]
    words = sum(map(len, texts))
    torch.manual_seed(0)
    model = ElmoModel(ElmoConfig.from_json_file(ROOT / "configs/original.json")).to(CUDA, DTYPE)
    model.eval().requires_grad_(False)
    tokenizer = ElmoTokenizer()
    print(f"embedding, original, bfloat16, {len(texts):,} sentences with {words:,} words\n")
    print(f"{'what':58} {'words/s':>9}")
    budgets = {"words_per_batch": 32768, "words_per_window": 262144, "dtype": DTYPE}
    ways = {
        "embed(), text to vectors in memory, top layer": lambda: drain(
            embed(texts, model, tokenizer, layers="top", **budgets)
        ),
        "embed(), the mean of each text": lambda: drain(
            embed(texts, model, tokenizer, layers="top", pooling="mean", **budgets)
        ),
        "the model, ids on the host to all layers on the GPU": lambda: encode_all(texts, model, tokenizer),
    }
    for name, way in ways.items():
        way()
        print(f"{name:58} {words / median(way() for _ in range(options.rounds)):9,.0f}", flush=True)
    print()


def drain(results: Iterable[object]) -> float:
    """Seconds of the GPU until all are there."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in results:
        pass
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def encode_all(texts: list[list[str]], model: ElmoModel, tokenizer: ElmoTokenizer) -> float:
    """Seconds of the model alone: rows of character ids are made before."""
    by_length = sorted(texts, key=len)
    batches = [distinct_batch(by_length[start : start + 1024], tokenizer) for start in range(0, len(texts), 1024)]
    with torch.inference_mode():
        return drain(model(**batch, output_hidden_states=True).last_hidden_state for batch in batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("recurrence", "training", "embedding", "sizes", "profile")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections[:3])
    parser.add_argument("--train_file", default=str(ROOT.parent / "shared/data/pretrain/train.txt.gz"))
    parser.add_argument("--layers", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--compiled", action="store_true", help="the loop by torch.compile, too, which takes minutes")
    parser.add_argument("--lanes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--optim", choices=("adagrad", "adamw"), default="adagrad")
    parser.add_argument("--sentences", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5, help="0: only compile what recurrence needs")
    options = parser.parse_args()
    if not torch.cuda.is_available() or gpu_recurrence(DTYPE, torch.device("cuda", 0)) is None:
        raise SystemExit("gpu.py: a GPU of NVIDIA and Triton are needed")
    flops, bandwidth = describe_machine()
    if "recurrence" in options.only:
        bench_recurrence(options, flops, bandwidth)
    if "sizes" in options.only:
        bench_sizes(options.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"training", "profile"} & set(options.only):
            make_vocabulary(folder, options.train_file)
        if "training" in options.only:
            bench_training(options, folder)
        if "profile" in options.only:
            bench_profile(options, folder)
    if "embedding" in options.only:
        bench_embedding(options)


if __name__ == "__main__":
    main()
