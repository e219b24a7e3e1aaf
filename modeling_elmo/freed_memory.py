"""Freed memory stays with the process, for the tensors of the next step."""

import ctypes
import os
import platform

# mallopt's numbers for them (glibc's malloc.h), and as much as an int takes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1
LARGEST_BLOCK = 2**30
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask glibc not to give freed memory back to the system before the process ends; elsewhere nothing happens.

    glibc gives large blocks back at once, and each page of the next one costs a fault: more than a quarter of the time
    of a training step on the CPU (benchmarks/README.md). This holds for the whole process, so it is for scripts and
    commands to call, not for a library. What the user asks of glibc by environment variables goes before it.

    Returns:
        Whether glibc took it.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, LARGEST) and mallopt(MMAP_THRESHOLD, LARGEST_BLOCK))
