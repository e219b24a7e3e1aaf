"""AllenNLP 2.10.1's ELMo on demand, for bench.py, in a virtual environment of its own (see `make bench`).

Reads commands as lines of JSON and answers each with a line of JSON. AllenNLP imports torchvision, whose wheels do not
go with every build of torch and which ELMo does not need, so an empty module stands in for it.
"""

import importlib.machinery
import json
import logging
import os
import sys
import time
import types
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)

import numpy as np  # noqa: E402 - behind the stand-in
import torch  # noqa: E402
from allennlp.modules.elmo import _ElmoBiLm, batch_to_ids  # noqa: E402
from peak_memory import peak_bytes  # noqa: E402


class Worker:
    def load(self, options: str, weights: str):
        self.model = _ElmoBiLm(options, weights).eval()

    @torch.no_grad()
    def encode(self, sentences: list[list[str]], batch_size: int, output: str | None = None):
        """All layers of all sentences, sorted by length; seconds. With `output`, the first batch's layers go there."""
        start = time.perf_counter()
        by_length = sorted(sentences, key=len)
        for first in range(0, len(by_length), batch_size):
            result = self.model(batch_to_ids(by_length[first : first + batch_size]))
            if output:
                np.savez(output, *(layer.numpy() for layer in result["activations"]))
                break
        return time.perf_counter() - start

    def reset(self):
        """Forget the state that AllenNLP carries from batch to batch."""
        self.model._elmo_lstm.reset_states()

    def memory(self):
        return peak_bytes()


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    torch.set_num_threads(int(sys.argv[1]))
    worker = Worker()
    answers.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        command, arguments = json.loads(line)
        answers.write(json.dumps(getattr(worker, command)(**arguments)) + "\n")


if __name__ == "__main__":
    main()
