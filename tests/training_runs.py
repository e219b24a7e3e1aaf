"""Runs of scripts and commands for tests, train.py above all: a text that a tiny model learns, and processes that are
forked, so that they start fast.

A start of Python imports for seconds before train.py does anything. A forked process has imported everything, and is a
process of its own for all that matters here: signals, files, limits, sockets.
"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
STARTED_IN = dict(os.environ)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
# torchrun shares its store with what it starts, so that processes started again could find the addresses of dead ones
# there and wait for them (pytorch issue 135712).
TORCHRUN_ENVIRONMENT = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
PATIENCE = 150  # seconds for anything
SLOW_TO_IMPORT = [
    "modeling_elmo.pretraining", "modeling_elmo.finetuning", "matplotlib.figure", "matplotlib.backends.backend_agg",
]  # fmt: skip


def load_script(name: str) -> ModuleType:
    """A script of the top level as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where `dataclasses` looks types up
    spec.loader.exec_module(module)
    return module


def write_text(folder: Path):
    """A text in which each word tells the next one, so that a model can learn it, and a tiny model's config."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    lines = []
    for _ in range(300):
        first = int(rng.integers(30))
        lines.append(" ".join(words[(first + k) % 30] for k in range(int(rng.integers(3, 12)))))
    (folder / "train.txt").write_text("\n".join(lines[:280]) + "\n")
    (folder / "validation.txt").write_text("\n".join(lines[280:]) + "\n")
    config = json.loads((ROOT / "configs/tiny.json").read_text())
    config |= {"char_embedding_dim": 4, "cnn_filters": [[1, 8], [2, 8], [3, 8]], "lstm_dim": 32, "projection_dim": 16}
    (folder / "config.json").write_text(json.dumps(config | {"num_negative_samples": 12}))


def flags(folder: Path, output: Path, **more: object) -> list[str]:
    """Arguments of train.py for the text in `folder`."""
    values = {
        "train_file": folder / "train.txt",
        "validation_file": folder / "validation.txt",
        "output_dir": output,
        "config_name": folder / "config.json",
        "per_device_train_batch_size": 8,
        "unroll_steps": 5,
        "max_steps": 8,
        "logging_steps": 2,
        "pre_tokenized": True,
        "data_cache_dir": folder / "cache",
        **more,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def log_of(output: Path) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def timeless_log(output: Path) -> list[dict]:
    """The lines of a run's log without what a clock has a say in."""
    return [{name: value for name, value in line.items() if name != "words_per_second"} for line in log_of(output)]


def last_step(output: Path) -> int:
    """The step of the last whole line of a log that may be written to at this moment; 0 without one."""
    try:
        *_, last = [line for line in (output / "log.jsonl").read_text().splitlines(keepends=True) if line[-1] == "\n"]
    except (FileNotFoundError, ValueError):
        return 0
    return json.loads(last)["step"]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights to the last bit."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def wait_until(condition: Callable[[], object]):
    """Wait for something that must happen, looking often."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def _live(script: str, argv: list[str], told: Path, environment: dict[str, str], largest_file: int | None, prepare):
    """The whole life of a forked process."""
    os.environ.update(ENVIRONMENT | environment)
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if prepare is not None:
        prepare()
    sys.argv = [f"{script}.py", *argv]
    module = load_script(script) if (ROOT / f"{script}.py").is_file() else importlib.import_module(script)
    sys.exit(module.main())


def fork_server() -> ForkServerContext:
    """`multiprocessing` whose processes are forked; the first one starts the server, which imports torch and ours.

    Their environment is that in which the tests were started, whatever a test has changed meanwhile.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_TO_IMPORT)
    with patch.dict(os.environ, STARTED_IN | ENVIRONMENT, clear=True):
        forkserver.ensure_running()
    return context


class Forked:
    """A run of a script in one or several forked processes, as torchrun would have started them.

    Args:
        argv: its arguments.
        told: file to which standard output and error are appended.
        processes: how many.
        largest_file: bytes beyond which files cannot grow, as if the disk were full.
        prepare: called in each process before the script's main.
        script: which one: train, or a command such as modeling_elmo.embed.
    """

    def __init__(
        self,
        argv: list[str],
        told: Path,
        processes: int = 1,
        largest_file: int | None = None,
        prepare: Callable[[], None] | None = None,
        script: str = "train",
    ):
        context = fork_server()
        told.unlink(missing_ok=True)
        self.told = told
        environment = {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.processes = []
        for rank in range(processes):
            if processes > 1:
                environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            values = {name: str(value) for name, value in environment.items()}
            process = context.Process(
                target=_live, args=(script, argv, told, values, largest_file, prepare), daemon=True
            )
            process.start()
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self) -> int:
        """The exit code of the first process, when all have ended."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        is_late = self.is_alive
        self.kill()
        assert not is_late, f"it hangs: {self.text()}"
        return self.processes[0].exitcode

    def text(self) -> str:
        """What it told."""
        return self.told.read_text() if self.told.exists() else ""


class Torchrun:
    """A run of train.py on two processes, started by torch's own launcher."""

    def __init__(self, argv: list[str], told: Path, *launcher_flags: str):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            *launcher_flags,
        ]
        self.told = told
        with open(told, "w") as file:
            self.agent = subprocess.Popen(
                [*command, str(ROOT / "train.py"), *argv],
                env=os.environ | TORCHRUN_ENVIRONMENT,
                stdout=file,
                stderr=file,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Leave nothing behind."""
        if self.agent.poll() is None:
            for process in (*self.workers(), self.agent):
                process.kill()
            self.agent.wait()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.agent.pid).children(recursive=True)

    def wait(self) -> int:
        """The launcher's exit code, when all have ended."""
        return self.agent.wait(PATIENCE)

    def text(self) -> str:
        return self.told.read_text()


def forked(argv: list[str], told: Path, processes: int = 1, **options) -> tuple[int, str]:
    """Exit code and output of a script's run in forked processes; `options` are those of `Forked`."""
    run = Forked(argv, told, processes, **options)
    return run.wait(), run.text()
