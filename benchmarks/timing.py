"""Taking turns, and the table of what came out."""

import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from statistics import median

import torch

from modeling_elmo import ElmoConfig, ElmoModel, ElmoTokenizer
from modeling_elmo.corpus import Corpus, write_corpus
from modeling_elmo.lanes import Lanes, Position, TypeTable
from modeling_elmo.text_files import ReadingReport

CONFIGS = Path(__file__).parents[1] / "configs"


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(contestants: dict[Hashable, Callable[[], object]], rounds: int) -> dict[Hashable, float]:
    """Median seconds of each, all run in turns, `rounds` times after a first time that is not counted.

    One that answers with a number has measured itself; short ones are repeated until a turn takes 50 ms.
    """
    repeats = {}
    for name, function in contestants.items():
        function()
        once = seconds(function)
        repeats[name] = max(1, int(0.05 / max(once, 1e-9)))
    times: dict[Hashable, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, function in contestants.items():
            start = time.perf_counter()
            own = [result for _ in range(repeats[name]) if isinstance(result := function(), float)]
            passed = time.perf_counter() - start
            times[name].append((sum(own) if own else passed) / repeats[name])
    return {name: median(values) for name, values in times.items()}


class Table:
    """Rows are printed as they come, since a run takes long."""

    def __init__(self):
        self._head = False

    def note(self, text: str):
        print(text, flush=True)

    def row(
        self, work: str, against: str, dtype, words_per_second: float, other: float | None, ours: float | None = None
    ):
        """`other` and `ours` are seconds of the same work; their ratio is how many times as fast ours is."""
        if not self._head:
            print(f"\n{'work':34} {'against':38} {'dtype':9} {'words/s':>9} {'ratio':>6}")
            self._head = True
        ratio = f"{other / ours:.2f}x" if other and ours else ""
        name = str(dtype).removeprefix("torch.")
        print(f"{work:34} {against:38} {name:9} {words_per_second:9,.0f} {ratio:>6}", flush=True)


def random_model(name: str) -> ElmoModel:
    """A model of `configs/NAME.json` with its initial weights, always the same."""
    torch.manual_seed(0)
    return ElmoModel(ElmoConfig.from_json_file(CONFIGS / f"{name}.json")).eval().requires_grad_(False)


def lanes(sentences: list[list[str]], config: ElmoConfig, num_lanes: int, steps: int) -> dict[str, torch.Tensor]:
    """A batch of the lanes of real sentences, as train.py makes it; sets `config.lm_vocab_size`."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), sentences, lambda words: [words], ElmoTokenizer(), ReadingReport())
        corpus = Corpus(folder)
        tokenizer = ElmoTokenizer().train_new_from_counts(corpus.frequent_words(1, None))
        config.lm_vocab_size = tokenizer.lm_vocab_size
        window, _ = Lanes(corpus, num_lanes, seed=0).read(Position.at_the_end(num_lanes), steps)
        return TypeTable(corpus, tokenizer).batch(window)
