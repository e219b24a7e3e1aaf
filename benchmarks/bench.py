"""How fast ELMo is on this machine, against what else there is and against the limit. `make bench`, or

    python benchmarks/bench.py                          # all of it, 20 minutes and more
    python benchmarks/bench.py --short                  # fewer sentences and rounds, under 8 minutes
    python benchmarks/bench.py --only lstm latency      # some of it
    python benchmarks/bench.py --only kernel            # the whole layer in C, against operations of torch
    python benchmarks/bench.py --plot speed.png         # words/s over batch size and length, with the limit

Everything that is compared runs in turns in one session, and medians of the turns are divided: on a shared machine
seconds mean little and ratios much. README.md beside this file says how to read the tables.
"""

import argparse
import cProfile
import functools
import gzip
import itertools
import json
import os
import platform
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent))
from opponents import AllenNLP, Products, TorchLstm, plain_training_model, with_every_word
from peak_memory import peak_bytes
from timing import Table, interleaved, lanes, random_model, seconds
from transformers.utils.logging import disable_progress_bar

import modeling_elmo
from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer, lstm_ops
from modeling_elmo.cpu_kernels import cell_kernels
from modeling_elmo.embed import embed
from modeling_elmo.freed_memory import keep_freed_memory
from modeling_elmo.lstm import ElmoLstm, ElmoState
from modeling_elmo.lstm_ops import naive_lstm
from modeling_elmo.packing import pack
from modeling_elmo.products import has_onednn_products, linear
from modeling_elmo.recurrence_kernel import recurrence_kernel
from modeling_elmo.word_cache import WordCache

ROOT = Path(__file__).parents[1]
TEXT = ROOT.parent / "shared/data/pretrain/validation.txt.gz"
BROWN = ROOT.parent / "shared/fixtures/bilm_tf_brown"
ORIGINAL_TRAINER = 2900  # words/s of the TensorFlow trainer on an idle machine with AVX-512 (issue 3 of this project)


def dtypes() -> list[torch.dtype]:
    """float32, and bfloat16 where oneDNN has products for it."""
    return [torch.float32, *([torch.bfloat16] if has_onednn_products(torch.bfloat16) else [])]


def sentences(number: int) -> list[list[str]]:
    """The first sentences of the validation text, split into words."""
    if not TEXT.is_file():
        raise SystemExit(f"bench.py: {TEXT} is not here: real sentences are needed to measure encoding")
    with gzip.open(TEXT, "rt", encoding="utf-8") as lines:
        return [line.split() for line, _ in zip(lines, range(number), strict=False)]


SQUARE = 2 * 2048**3  # operations of a square product: what this processor can do at most, about


def square_product(dtype: torch.dtype):
    """A function that multiplies by the faster library."""
    square = torch.randn(2048, 2048, dtype=dtype)
    return functools.partial(linear, square, square)


def describe_machine(table: Table):
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in info if "model name" in line), platform.machine())
    flags = next((line for line in info if line.startswith("flags")), "").split()
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    products = [square_product(dtype) for dtype in dtypes()]
    rates = [f"{SQUARE / min(seconds(product) for _ in range(5)) / 1e9:.0f}" for product in products]
    table.note(
        f"machine: {cpu}, {torch.get_num_threads()} threads, {' '.join(units)}; "
        f"square products {' and '.join(rates)} GFLOP/s"
    )
    table.note(
        f"commit {commit.strip()}, modeling_elmo {modeling_elmo.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}; LSTM cell {'compiled' if cell_kernels(torch.float32) else 'in torch'}"
    )
    if len(dtypes()) == 1:
        table.note("bfloat16 is measured in the rows of the kernel alone: this processor has no products for it")


# ---- (a) encoding, and its accuracy


def bench_encode(table: Table, short: bool, python: str | None):
    for name, number in (("small", 800 if short else 2000), ("original", 160 if short else 500)):
        encode_with(table, name, sentences(number), 2 if short else 3, python)
        table.note(f"peak memory, encode {name}: ours {memory_of(name, number):,.0f} MiB")


def encode_with(table: Table, name: str, texts: list[list[str]], rounds: int, python: str | None):
    """Tokenisation, all layers, from a cold start; AllenNLP gets the same sentences sorted by length."""
    words = sum(map(len, texts))
    model, tokenizer = random_model(name), ElmoTokenizer()
    models = {dtype: in_dtype(model, dtype) for dtype in dtypes()}

    def ours(dtype: torch.dtype):
        models[dtype].word_encoder.cache = WordCache(65536)  # empty, as in a fresh process
        for _ in embed(texts, models[dtype], tokenizer, layers="all", dtype=dtype):
            pass

    contestants: dict = {dtype: functools.partial(ours, dtype) for dtype in models}
    allennlp, batch = AllenNLP(python, model) if python else None, 0
    if allennlp:
        batch = allennlp.best_batch(texts[::3])
        contestants["AllenNLP"] = lambda: allennlp.encode(texts, batch)
    times = interleaved(contestants, rounds)
    reference = times.get("AllenNLP")
    if reference:
        table.row(f"AllenNLP encodes, {name}", f"itself, batch {batch}, its best", "float32", words / reference, None)
    for dtype in models:
        table.row(f"encode, {name}", "AllenNLP at its best batch", dtype, words / times[dtype], reference, times[dtype])
    accuracy(table, name, model, models, tokenizer, texts[:6], allennlp)
    if allennlp:
        table.note(f"peak memory, encode {name}: AllenNLP {allennlp.memory() / 2**20:,.0f} MiB")
        allennlp.close()


def in_dtype(model: ElmoModel, dtype: torch.dtype) -> ElmoModel:
    """A frozen copy of the model."""
    copy = ElmoModel(model.config).eval().requires_grad_(False)
    copy.load_state_dict(model.state_dict())
    return copy.to(dtype)


def accuracy(table: Table, name: str, model, models: dict, tokenizer, texts: list[list[str]], allennlp):
    """Differences to the naive reference in float64, and to AllenNLP, over all layers."""
    expected = [naive_layers(model, tokenizer, text) for text in texts]
    for dtype in (torch.float32, torch.bfloat16):  # accuracy can be told also where bfloat16 is emulated
        copy = models.get(dtype) or in_dtype(model, dtype)
        actual = list(embed(texts, copy, tokenizer, layers="all"))
        cosines = [
            torch.cosine_similarity(a.double(), b, dim=-1).flatten() for a, b in zip(actual, expected, strict=True)
        ]
        largest = max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))
        scale = torch.cat([b.flatten() for b in expected]).std()
        table.note(
            f"accuracy, {name}, {str(dtype)[6:]}: largest difference to the naive reference {largest:.1e} at standard "
            f"deviation {scale:.2f}, mean cosine per word {torch.cat(cosines).mean():.6f}"
        )
    if allennlp:
        layers = allennlp.first_batch(texts)  # (layers, texts, words, hidden_size) with boundaries
        actual = list(embed(sorted(texts, key=len), models[torch.float32], tokenizer, layers="all"))
        largest = max(
            float((layers[:, row, 1 : vectors.shape[1] + 1] - vectors).abs().max())
            for row, vectors in enumerate(actual)
        )
        table.note(f"accuracy, {name}, float32: largest difference to AllenNLP with the same weights {largest:.1e}")


@torch.no_grad()
def naive_layers(model: ElmoModel, tokenizer, text: list[str]) -> torch.Tensor:
    """(layers, words, hidden_size) float64 by `naive_lstm`, from the word encoder's float64 vectors."""
    double = ElmoModel(model.config).double()
    double.load_state_dict(model.state_dict())
    ids = tokenizer(text, is_split_into_words=True, return_tensors="pt")["input_ids"][0].long()
    vectors = double.word_encoder(ids)  # (words, projection_dim)
    sides = []
    for side in (0, 1):
        inputs = vectors if side == 0 else vectors.flip(0)
        layers = [inputs]
        for index, layer in enumerate(double.lstm.layers):
            hidden, cell = inputs.new_zeros(inputs.shape[1]), inputs.new_zeros(model.config.lstm_dim)
            weights = (weight[side] for weight in (layer.weight_ih, layer.weight_hh, layer.bias, layer.weight_hr))
            clips = {"cell_clip": layer.cell_clip, "proj_clip": layer.proj_clip, "forget_bias": layer.forget_bias}
            outputs, _, _ = naive_lstm(inputs, *weights, hidden, cell, **clips)
            inputs = outputs + inputs if index > 0 and double.lstm.use_skip_connections else outputs
            layers.append(inputs)
        sides.append(torch.stack(layers if side == 0 else [layer.flip(0) for layer in layers]))
    return torch.cat(sides, dim=-1)[:, 1:-1]


def memory_of(name: str, number: int) -> float:
    """MiB at the most of a process that encodes with the float32 model."""
    command = [sys.executable, __file__, "--memory", name, str(number), "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def print_memory(name: str, number: int):
    for _ in embed(sentences(number), random_model(name), ElmoTokenizer(), layers="all"):
        pass
    print(peak_bytes())


# ---- (b) the LSTM alone


STEPS = {"small": 20, "original": 10}  # words of each text


class OurLstm:
    """`ElmoLstm` with random inputs of `batch` texts of `steps` words, with or without weights that stay laid out."""

    def __init__(self, config: ElmoConfig, batch: int, steps: int, dtype: torch.dtype, keeps_layout: bool = True):
        self.lstm = ElmoLstm(config).eval()
        for layer in self.lstm.layers if not keeps_layout else []:
            layer.laid_out = None
        for parameter in self.lstm.parameters():
            torch.nn.init.uniform_(parameter, -0.05, 0.05)
        self.lstm.to(dtype).requires_grad_(False)
        self.packing = pack(torch.arange(batch) * steps, torch.full((batch,), steps))
        layers, dim = config.num_hidden_layers, config.lstm_dim
        hidden = torch.zeros(layers, 2, batch, config.projection_dim, dtype=dtype)
        self.state = ElmoState(hidden, torch.zeros(layers, 2, batch, dim))
        self.inputs = torch.randn(2, batch * steps, config.projection_dim, dtype=dtype)

    @torch.no_grad()
    def __call__(self):
        self.lstm(self.inputs, self.packing, self.state)


def bench_lstm(table: Table, short: bool):
    for name, batches in (("small", (1, 16, 64, 256)), ("original", (1, 64))):
        config, steps = ElmoConfig.from_json_file(ROOT / f"configs/{name}.json"), STEPS[name]
        for batch in batches:
            for dtype in dtypes():
                contestants = {
                    "ours": OurLstm(config, batch, steps, dtype),
                    "torch": TorchLstm(config, batch, steps, dtype),
                    "limit": Products(config, batch, steps, dtype),
                }
                if batch == 64:
                    contestants["square"] = square_product(dtype)
                times = interleaved(contestants, rounds=5 if short else 9)
                work, rate = f"LSTM, {name}, batch {batch}", batch * steps / times["ours"]
                table.row(work, "nn.LSTM(proj_size)", dtype, rate, times["torch"], times["ours"])
                table.row(work, "its products alone", dtype, rate, times["limit"], times["ours"])
                if "square" in times:
                    # Of a word in both directions: its input, its hidden state and its output, each times a weight.
                    products = config.num_hidden_layers * 2 * 9 * config.lstm_dim * config.projection_dim
                    ours, theirs = (2e-9 * batch * steps * products / times[key] for key in ("ours", "torch"))
                    table.note(
                        f"{work}, {str(dtype)[6:]}: {ours:.0f} GFLOP/s; nn.LSTM {theirs:.0f}, square products "
                        f"{SQUARE / times['square'] / 1e9:.0f}"
                    )


def bench_kernel(table: Table, short: bool):
    """What it brings that a whole layer runs in C, and that it keeps its weights packed."""
    for name, batches in KERNEL_BATCHES.items():
        config = ElmoConfig.from_json_file(ROOT / f"configs/{name}.json")
        for batch, dtype in itertools.product(batches, (torch.float32, torch.bfloat16)):
            if recurrence_kernel(dtype) is None:
                continue
            ours = OurLstm(config, batch, 20, dtype)
            contestants = {
                "in C": ours,
                "itself, packed for each call": OurLstm(config, batch, 20, dtype, keeps_layout=False),
            }
            if dtype in dtypes():
                # Another one, since a layer keeps its weights laid out for one of both ways only.
                other = OurLstm(config, batch, 20, dtype)
                contestants["itself, step by step in torch"] = functools.partial(step_by_step, other)
            elif dtype == torch.bfloat16:
                contestants["itself in float32"] = OurLstm(config, batch, 20, torch.float32)
            times = interleaved(contestants, rounds=5 if short else 9)
            for against in list(contestants)[1:]:
                rate = batch * 20 / times["in C"]
                table.row(f"LSTM, {name}, batch {batch}", against, dtype, rate, times[against], times["in C"])


KERNEL_BATCHES = {"compact": (1, 16, 128), "small": (1, 4, 16, 64, 256), "medium": (4, 64), "original": (1, 4, 16, 64)}


def step_by_step(lstm: OurLstm):
    """Run it as where the layer's kernel does not serve."""
    kernel, lstm_ops.recurrence_kernel = lstm_ops.recurrence_kernel, lambda dtype: None
    try:
        lstm()
    finally:
        lstm_ops.recurrence_kernel = kernel


def bench_profile(table: Table, short: bool):
    """Where the LSTM's time goes: in C, and step by step."""
    for name, dtype in itertools.product(("small", "original"), dtypes()):
        config = ElmoConfig.from_json_file(ROOT / f"configs/{name}.json")
        lstm, of = OurLstm(config, 64, STEPS[name], dtype), f"LSTM, {name}, batch 64, {str(dtype)[6:]}"
        if recurrence_kernel(dtype) is not None:
            own, _, total = profiled(lstm, 10 if short else 50)
            kernel, checks = own("recurrence_kernel.py"), own("fingerprint_of", "'sum' of")
            table.note(
                f"{of}: {kernel / total:.0%} of the time in the kernel, {checks / total:.0%} in checking that weights "
                f"are what they were, {1 - (kernel + checks) / total:.0%} in all else"
            )
        own, cumulative, total = profiled(functools.partial(step_by_step, lstm), 10 if short else 50)
        products, laying_out, cell = own("bmm", "_linear_pointwise"), own("_reorder"), cumulative("cell_forward")
        table.note(
            f"{of}, step by step: {products / total:.0%} of the time in products, {cell / total:.0%} in the cell, "
            f"{laying_out / total:.0%} in laying weights out, "
            f"{1 - (products + cell + laying_out) / total:.0%} in all else"
        )


def profiled(function, times: int):
    """How long functions ran in whose file or name one of some parts is: by themselves, and with what they call; and
    how long all of it took."""
    function()
    profile = cProfile.Profile()
    profile.runcall(lambda: [function() for _ in range(times)])
    entries = {f"{file} {name}": times for (file, _, name), times in pstats.Stats(profile).stats.items()}  # type: ignore

    def spent(place: int, *parts: str) -> float:
        return sum(times[place] for name, times in entries.items() if any(part in name for part in parts))

    return functools.partial(spent, 2), functools.partial(spent, 3), max(times[3] for times in entries.values())


# ---- (c) training


def bench_training(table: Table, short: bool):
    config = ElmoConfig.from_json_file(ROOT / "configs/small.json")
    config.num_negative_samples = 4096
    batch = lanes(sentences(4500), config, num_lanes=64, steps=20)
    distinct = len(batch["distinct_words"])
    table.note(
        f"training step: vocabulary {config.lm_vocab_size:,}, 4,096 negatives, {distinct:,} distinct of 2,560 words"
    )
    every_word = with_every_word(batch, config)
    for dtype in dtypes():
        ours = ElmoForPreTraining(config).train()
        opponents = {
            "nn.LSTM(proj_size), our word encoder": (plain_training_model(config, every_word=False), batch),
            "nn.LSTM(proj_size), CNN on every word": (plain_training_model(config, every_word=True), every_word),
        }

        def step(model, batch, dtype=dtype):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()

        everyone = {"ours": (ours, batch), **opponents}
        contestants = {name: lambda both=both: step(*both) for name, both in everyone.items()}
        times = interleaved(contestants, rounds=3 if short else 7)
        for name in opponents:
            table.row("training step, small, 64 x 20", name, dtype, 64 * 20 / times["ours"], times[name], times["ours"])


def bench_brown(table: Table, short: bool):
    """`train.py` with the options of bilm_tf_brown, as it is."""
    if not BROWN.is_dir():
        table.note(f"train.py on Brown is left out: {BROWN} is not here")
        return
    steps = 60 if short else 200
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_bytes(gzip.decompress((BROWN / "vocab.txt.gz").read_bytes()))
        arguments = {
            "config_name": "tiny", "vocab_file": vocab, "train_file": BROWN / "train.txt.gz", "max_steps": steps,
            "output_dir": f"{folder}/run", "per_device_train_batch_size": 64, "logging_steps": steps // 3,
        }  # fmt: skip
        flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, str(ROOT / "train.py"), "--pre_tokenized", *flags]
        subprocess.run(command, check=True, capture_output=True)
        log = [json.loads(line) for line in (Path(folder) / "run/log.jsonl").read_text().splitlines()]
    rates = [entry["words_per_second"] for entry in log if "words_per_second" in entry]
    rate = median(rates[1:])
    table.row(
        "train.py, tiny (Brown)", f"TensorFlow: {ORIGINAL_TRAINER:,}, another machine", "float32", rate,
        1 / ORIGINAL_TRAINER, 1 / rate,
    )  # fmt: skip


# ---- (d) latency


def bench_latency(table: Table, short: bool, python: str | None):
    text = next(text for text in sentences(2000) if len(text) == 20)
    for name in ("small", "original"):
        latency_of(table, name, text, 5 if short else 15, python)


def latency_of(table: Table, name: str, text: list[str], rounds: int, python: str | None):
    """One sentence, its words never seen before."""
    model, tokenizer = random_model(name), ElmoTokenizer()
    models = {dtype: in_dtype(model, dtype) for dtype in dtypes()}

    @torch.no_grad()
    def ours(dtype: torch.dtype):
        models[dtype].word_encoder.cache = WordCache(65536)
        models[dtype](**tokenizer([text], is_split_into_words=True, return_tensors="pt"))

    contestants: dict = {dtype: functools.partial(ours, dtype) for dtype in models}
    allennlp = AllenNLP(python, model) if python else None
    if allennlp:
        contestants["AllenNLP"] = lambda: allennlp.encode([text], 1)
    times = interleaved(contestants, rounds)
    for dtype in models:
        work, against = f"one sentence of 20 words, {name}", times.get("AllenNLP")
        table.row(work, "AllenNLP", dtype, 20 / times[dtype], against, times[dtype])
        table.note(f"latency, {name}, {str(dtype)[6:]}: {1000 * times[dtype]:.1f} ms")
    if allennlp:
        allennlp.close()


# ---- the plot


def plot(path: str, short: bool):
    """Words/s of the LSTM over batch size, for texts of 10 and 40 words, with its products alone as the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, name in zip(axes, ("small", "original"), strict=True):
        config = ElmoConfig.from_json_file(ROOT / f"configs/{name}.json")
        batches = (1, 4, 16, 64, 256) if name == "small" else (1, 4, 16, 64)
        for color, dtype in zip(("tab:blue", "tab:red"), dtypes(), strict=False):
            for steps, style, limit_style in ((10, "o-", "--"), (40, "s-", ":")):
                if name == "original" and short and steps == 40:
                    continue
                rates = {"ours": [], "limit": []}
                for batch in batches:
                    contestants = {
                        "ours": OurLstm(config, batch, steps, dtype),
                        "limit": Products(config, batch, steps, dtype),
                    }
                    for key, time in interleaved(contestants, rounds=3).items():
                        rates[key].append(batch * steps / time)
                label = f"{str(dtype)[6:]}, {steps} words"
                axis.plot(batches, rates["ours"], style, color=color, label=label, alpha=1 if steps == 10 else 0.6)
                axis.plot(
                    batches, rates["limit"], limit_style, color=color, label=f"{label}: products alone", alpha=0.6
                )
        axis.set(xscale="log", yscale="log", xlabel="texts in a batch", ylabel="words/s", title=f"LSTM, {name}")
        axis.set_xticks(batches, map(str, batches))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)


SECTIONS = ("encode", "lstm", "profile", "training", "brown", "latency")
OTHERS = ("kernel",)  # only where it is asked for


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer sentences and rounds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS + OTHERS, default=SECTIONS, help="measure these")
    parser.add_argument("--allennlp", metavar="PYTHON", help="python of a virtual environment with AllenNLP 2.10.1")
    parser.add_argument("--plot", metavar="FILE", help="draw words/s over batch size and length there")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", nargs=2, metavar=("CONFIG", "SENTENCES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_memory(arguments.memory[0], int(arguments.memory[1]))
        return
    disable_progress_bar()
    keep_freed_memory()  # in all sections, not only behind the first that calls `embed`; others gain more from it
    table = Table()
    describe_machine(table)
    for section in arguments.only:
        extra = (arguments.allennlp,) if section in ("encode", "latency") else ()
        globals()[f"bench_{section}"](table, arguments.short, *extra)
    if not arguments.allennlp:
        table.note("AllenNLP was not measured: give --allennlp PYTHON, or run `make bench`")
    if arguments.plot:
        plot(arguments.plot, arguments.short)
        table.note(f"plot: {arguments.plot}")


if __name__ == "__main__":
    main()
