"""Archives of models, zip or tar, unpacked while they are read."""

import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from .allennlp_format import ConversionError

DAMAGES = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
# Of what lies in front of a member, and `tarfile` reads as a whole: a long name, or attributes.
LONG_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MAX_HEADER = 2**20


class Member(tarfile.TarInfo):
    """A member of a tar archive, unless its name or attributes are so long that reading them would take all memory."""

    def _proc_member(self, archive):  # which `tarfile` leaves to subclasses
        if self.type in LONG_HEADERS and self.size > MAX_HEADER:
            raise RuntimeError(f"it has a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar archive, the latter compressed or not."""
    return _is_tar(path) or zipfile.is_zipfile(path)


def _is_tar(path: Path) -> bool:
    """As `tarfile.is_tarfile`, but true of what is cut off in its first bytes or has too long a header, too."""
    try:
        tarfile.open(path, tarinfo=Member).close()
    except tarfile.TarError:
        return False
    except DAMAGES:
        return True
    return True


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A folder with all that is in an archive, which is gone afterwards. Messages name the archive instead.

    Raises:
        ConversionError: it is damaged or encrypted, would leave its folder, or is larger than the disk has room for.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _unpack(archive, Path(scratch))
            yield Path(scratch)
        except ConversionError as error:
            raise ConversionError(str(error).replace(scratch, str(archive))) from error


def _unpack(archive: Path, folder: Path):
    try:
        if not _is_tar(archive):  # asked first: a tar archive that ends with a zip archive is one, too
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    _check(archive, info.filename, not stat.S_ISLNK(info.external_attr >> 16))
                _check_size(archive, sum(info.file_size for info in file.infolist()), folder)
                file.extractall(folder)
        else:
            with tarfile.open(archive, tarinfo=Member) as file:
                for member in file.getmembers():
                    _check(archive, member.name, member.isfile() or member.isdir())
                    member.mtime = 0  # nobody asks for it, and it may be infinite
                _check_size(archive, sum(member.size for member in file.getmembers()), folder)
                while file.fileobj and file.fileobj.read(2**20):
                    pass  # to the checksum at the end: damage inside is taken for the end of the archive
                file.extractall(folder, filter="data")
    except (*DAMAGES, UnicodeDecodeError) as error:  # RuntimeError: encrypted
        raise ConversionError(f"{archive} is damaged or encrypted ({error}): get it again") from error


def _check(archive: Path, member: str, is_regular: bool):
    path = PurePosixPath(member.replace("\\", "/"))
    if not is_regular or "\0" in member or ".." in path.parts or path.is_absolute() or PureWindowsPath(path).drive:
        raise ConversionError(
            f"{archive} has a member {member!r} that is a link or points outside the folder: the archive is damaged or "
            "hostile, and nothing was unpacked"
        )


def _check_size(archive: Path, size: int, folder: Path):
    if size > shutil.disk_usage(folder).free:
        raise ConversionError(f"{archive} unpacks to more than the free space of {folder}: set TMPDIR to another disk")
