"""Freed memory stays with a process that asks for it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_elmo import freed_memory
from modeling_elmo.freed_memory import VARIABLES

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

# Of a block of 40 MiB that is freed and allocated five times: about 10,000 pages each time if it is given back. The
# turns before that fill glibc's cache of small pieces, which takes seven; one is left over beside each aligned block.
FAULTS = """
import resource, sys
import torch
from freed_memory import keep_freed_memory

asked = sys.argv[1] == "keep" and keep_freed_memory()
for turn in range(15):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(40 * 2**20, dtype=torch.uint8).fill_(1)
print(int(asked), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> tuple[int, int]:
    """What a process was told and how many faults it had; it has imported torch and one file of ours, to start fast."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment["PYTHONPATH"] = str(Path(freed_memory.__file__).parent)
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    asked, number = map(int, done.stdout.split())
    return asked, number


def test_next_tensor_costs_no_faults():
    asked, number = faults("keep")
    assert asked and number < 100
    assert faults("as it is")[1] > 1000


def test_users_variables_come_first():
    asked, number = faults("keep", MALLOC_MMAP_THRESHOLD_="65536")
    assert not asked and number > 1000
