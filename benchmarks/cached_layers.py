"""How much faster a head trains on layers that were kept on disk: epochs with and without, in turns.

    python benchmarks/cached_layers.py ../shared/data/tasks/sst2/train.jsonl.gz --config_name small

Random weights, which are as fast as trained ones; the first epoch with the cache, which fills it, is not counted. An
epoch of the head alone on layers in memory is the limit.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench import describe_machine
from timing import CONFIGS, Table, interleaved

sys.path.insert(0, str(CONFIGS.parent))
from finetune_glue import collate
from modeling_elmo import ElmoConfig, ElmoForSequenceClassification, ElmoTokenizer
from modeling_elmo.layer_cache import CachedCollator, LayerCache
from modeling_elmo.sentence_tasks import TaskSpec, load_files, prepare


def epoch(model: ElmoForSequenceClassification, batches: list[Any], make_batch: Callable[[Any], dict]) -> None:
    """One step of Adam on each batch."""
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.train()
    for batch in batches:
        model(**make_batch(batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="sentences with labels")
    parser.add_argument("--config_name", default="small")
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    describe_machine(Table())
    data = prepare(load_files({"train": args.table}), TaskSpec())
    assert data.train is not None
    examples = list(data.train.select(range(args.examples)))
    batches = [examples[start : start + args.batch_size] for start in range(0, len(examples), args.batch_size)]
    plain = partial(collate, ElmoTokenizer(), 256)
    words = sum(int(plain(batch)["attention_mask"].sum()) for batch in batches)
    print(f"{args.config_name}, {len(examples)} sentences, {words} words with boundaries, batches of {args.batch_size}")
    print("head                 layers computed   from disk   in memory   disk against computed")
    for head, dim in (("linear", None), ("recurrent", 100), ("recurrent", 300)):
        config = ElmoConfig.from_json_file(str(CONFIGS / f"{args.config_name}.json"))
        config.update({"head": head, "head_dim": dim, "num_labels": data.num_labels})
        model = ElmoForSequenceClassification(config)
        times = measure(model, batches, plain, args.rounds)
        name = head if dim is None else f"{head}, {dim} cells"
        columns = " ".join(
            f"{times[way]:{width}.2f} s" for way, width in (("computed", 15), ("disk", 9), ("memory", 9))
        )
        print(f"{name:20}{columns} {times['computed'] / times['disk']:17.1f} x", flush=True)


def measure(
    model: ElmoForSequenceClassification, batches: list[Any], plain: Callable[[Any], dict], rounds: int
) -> dict[Any, float]:
    """Median seconds of an epoch with layers that are computed, read from disk, and held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        cache = LayerCache(folder, model)
        cache.add(map(plain, batches))
        cached = CachedCollator(plain, cache)
        in_memory = [cached(batch) for batch in batches]
        ways: dict[Any, Callable[[], object]] = {
            "computed": lambda: epoch(model, batches, plain),
            "disk": lambda: epoch(model, batches, cached),
            "memory": lambda: epoch(model, in_memory, dict),
        }
        return interleaved(ways, rounds)


if __name__ == "__main__":
    main()
