"""What commands share: their help, mistakes told in one line, folders whole or not there, and locks."""

import argparse
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

LOCK_FILE = ".lock"


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m modeling_elmo.MODULE`, whose help is the module's docstring as it stands."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        f"python -m modeling_elmo.{module}", description=description, formatter_class=formatter
    )


class _Lenient:
    """A stream that leaves out what it cannot write."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str):
        with suppress(OSError):
            self._stream.write(text)

    def flush(self):
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def lenient_output() -> Iterator[None]:
    """Let no work end because of what it tells meanwhile: stdout escapes characters that its encoding lacks, and stderr
    leaves out what it cannot write, such as a progress bar on a full disk or into a pipe that nobody reads."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # There is no stderr where the shell has closed it.
    with open(os.devnull, "w") as nowhere, redirect_stderr(_Lenient(sys.stderr or nowhere)):
        yield


@lenient_output()
def run_command(run: Callable[[], object], *mistakes: type[Exception], stopped: str = "stopped") -> int:
    """The exit code of a command: 0 for success, 2 for a mistake, 130 for Ctrl-C, which are told in a line on stderr.

    Args:
        run: what the command does.
        mistakes: exceptions whose message is meant for the user; those of a full disk or memory are always some.
        stopped: what is told after Ctrl-C.
    """
    to_be_told: tuple[type[Exception], ...] = (*mistakes, OSError, MemoryError, SafetensorError)
    try:
        with _terminated_in_order():
            run()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 128 + signal.SIGINT
    except to_be_told as error:
        print("error:", one_line(error) or "there is not enough memory", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Let SIGTERM end the process as an exception does, so that scratch files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_first_process() -> bool:
    """Whether this is the first of a launcher's processes, or the only one; known before anything is set up."""
    return os.environ.get("RANK", "0") == "0"


def one_line(error: BaseException | str) -> str:
    """A message without line breaks."""
    return " ".join(str(error).split())


def listing(names: Iterable[Any], limit: int = 8) -> str:
    """Names for a message, cut short after `limit`."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"


def unlock(lock: FileLock):
    """Let others have what a lock guards. Its file goes first, so that none is left behind."""
    if lock.is_locked:
        with suppress(PermissionError):  # on Windows nobody deletes a locked file, and `release` does afterwards
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch file beside `path` that takes its place if the block ends without an error, and goes away if not."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place if the block ends without an error.

    Raises:
        FileExistsError: `folder` has files in it, now or when the block ends, and is not to be replaced.
    """

    def check():
        if folder.exists() and not replace and not (folder.is_dir() and not any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists: choose another folder")

    check()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        check()  # another command may have written it meanwhile
        # A filled folder cannot be renamed onto another. Killed between the two, both lie whole in the scratch folder.
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:  # an interruption, too
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
