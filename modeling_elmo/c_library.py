"""C compiled on the spot, by the machine's own compiler and for its own processor.

A library is compiled when it is first needed (a second or two) and kept in a folder of the user's
(`~/.cache/modeling_elmo`, or `$MODELING_ELMO_CACHE`). `MODELING_ELMO_KERNELS=0` in the environment asks for none.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
NATIVE = ["-march=native", "-fopenmp"]
# The first that the compiler takes.
CANDIDATE_FLAGS: list[list[str]] = [[*NATIVE, "-mprefer-vector-width=512"], NATIVE, NATIVE[:1], []]


@functools.cache
def c_library(name: str, source: str) -> ctypes.CDLL | None:
    """The library of that source; `None`, with a warning the first time, where it cannot be compiled.

    Args:
        name: what its file's name begins with.
        source: C, with OpenMP or without it.
    """
    if os.environ.get("MODELING_ELMO_KERNELS") == "0":
        return None
    asked = os.environ.get("CC", "").strip() or ("" if os.name == "nt" else "cc")
    if not asked:  # on Windows a cc is rare, and GCC does not align vectors on the stack there (its bug 54412)
        return None
    compiler = [asked] if shutil.which(asked) else asked.split()  # such as "ccache gcc"
    if shutil.which(compiler[0]) is None:
        warnings.warn("modeling_elmo: no C compiler (cc) was found, so the LSTM is slower than it can be", stacklevel=2)
        return None
    try:
        with _cache_folder() as folder:
            return ctypes.CDLL(str(_compiled(compiler, name, source, folder)))
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or error
        warnings.warn(f"modeling_elmo: the LSTM is slower than it can be, its kernel failed: {text}", stacklevel=2)
        return None


def _compiled(compiler: list[str], name: str, source: str, cache: Path) -> Path:
    """The path of the compiled library, from the cache if it is there."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    where = shutil.which(compiler[0])
    parts = (source, str(FLAGS), str(CANDIDATE_FLAGS), str(where), str(compiler), str(version), _processor())
    key = f"{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"
    for library in cache.glob(f"{key}-*.so"):
        if library.is_file() and library.name == _file_name(key, library):
            return library
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        (Path(folder) / "source.c").write_text(source)
        for index, flags in enumerate(CANDIDATE_FLAGS):
            command = [*compiler, *FLAGS, *flags, "source.c", "-o", "library.so", "-lm"]
            is_last = index == len(CANDIDATE_FLAGS) - 1
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", check=is_last, timeout=60
            )
            if done.returncode == 0:
                break
        library = Path(folder) / "library.so"
        target = cache / _file_name(key, library)
        os.replace(library, target)  # whole or not at all, also when many processes start at once
    return target


def _file_name(key: str, library: Path) -> str:
    """It tells what is in the file: to load one that was cut off, as by a loss of power, would end the process."""
    return f"{key}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def _processor() -> str:
    """What a library made with -march=native depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return flags[0] if flags else f"{platform.machine()} {platform.processor()} {platform.node()}"


def user_cache() -> Path:
    """Where this package keeps what can be made again: `$MODELING_ELMO_CACHE`, or a folder in the user's cache.

    It is made if it is not there, and nobody else can write to it then.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling_elmo"
    folder = Path(os.environ.get("MODELING_ELMO_CACHE") or default)
    with suppress(OSError):  # whoever writes into it will tell
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _cache_folder() -> Iterator[Path]:
    """A folder that nobody else can write to, since code is loaded from it; where there is none, one for this once."""
    try:
        folder = user_cache()
        stat = folder.stat()
        is_safe = stat.st_uid == os.getuid() and not stat.st_mode & 0o022 and os.access(folder, os.W_OK)
    except (OSError, AttributeError, RuntimeError):  # Windows has no getuid, and some users have no home
        is_safe = False
    if is_safe:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="modeling_elmo-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)
