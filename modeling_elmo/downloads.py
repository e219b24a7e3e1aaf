"""Published weights fetched from their address, once."""

import hashlib
import re
import shutil
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from .allennlp_format import ConversionError
from .c_library import user_cache
from .commands import one_line, whole_file

SECONDS = 60  # without a byte, after which an address is given up


def fetched(source: str | Path) -> Path:
    """A path as it is, or the file behind an address (http, https), which is kept in the cache under its own name.

    Raises:
        ConversionError: it cannot be fetched, or not to its end.
    """
    if not re.match("(?i)https?://", str(source)):
        return Path(source)
    try:
        address = quote(str(source), safe=string.punctuation)  # spaces and other scripts, as browsers show them
        folder = user_cache() / "downloads" / hashlib.sha256(address.encode()).hexdigest()[:16]
        name = PurePosixPath(unquote(urlsplit(address).path)).name
        path = folder / (re.sub(r"[^\w.-]", "_", name).lstrip(".")[-60:] or "download")  # at most 255 bytes
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(address, path)
    except (OSError, HTTPException, ValueError, RuntimeError) as error:  # addresses that are none, users without a home
        raise ConversionError(f"{source} cannot be fetched: {one_line(error)}") from error
    return path


@contextmanager
def told_how_to_fetch_again(sources: Sequence[Path | None]) -> Iterator[None]:
    """Add to a `ConversionError` which of the sources, as `fetched` gave them, are kept: they would be taken again."""
    try:
        yield
    except ConversionError as error:
        kept = [str(source) for source in sources if source and _is_kept(source)]
        if not kept:
            raise
        raise ConversionError(f"{error} (to fetch it again, remove {', '.join(kept)})") from error


def _is_kept(path: Path) -> bool:
    with suppress(RuntimeError):  # without a home, nothing is kept
        return path.is_relative_to(user_cache() / "downloads")
    return False


def _fetch(address: str, path: Path):
    with urlopen(Request(address, headers={"User-Agent": "modeling_elmo"}), timeout=SECONDS) as response:
        length = int(response.headers.get("Content-Length") or 0)
        with whole_file(path) as scratch:
            with (
                scratch.open("wb") as file,
                tqdm.wrapattr(file, "write", total=length or None, desc=path.name) as shown,
            ):
                shutil.copyfileobj(response, shown, 2**20)
            if length and scratch.stat().st_size != length:
                raise OSError(f"{scratch.stat().st_size:,} bytes came of {length:,}: try again")
