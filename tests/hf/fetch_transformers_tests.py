"""Fetch the common model tests of the installed transformers, which its wheel leaves out, from the package index.

    python tests/hf/fetch_transformers_tests.py

They are not copied into this repository: the release that is installed brings its own, and so tells what it expects.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import transformers

CACHE = Path(__file__).parents[2] / ".cache"
PACKAGE = "transformers_tests"


def download(version: str, folder: Path) -> Path:
    """Let pip put the source distribution of that release into `folder`; pip prints what goes wrong."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), f"transformers=={version}"], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def extract(archive: Path, folder: Path):
    """Write `tests/*.py` of a source distribution, and nothing else, into `folder`."""
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".py" and path.parts[1:-1] == ("tests",):
                members.extract(member.replace(name=path.name), folder, filter="data")


def fetch(version: str = transformers.__version__) -> Path:
    """Download and extract the tests of that release, unless they are there.

    Returns:
        The folder to put on `sys.path` so that `import transformers_tests` finds them.

    Raises:
        `RuntimeError`: the source distribution holds no model tests.
    """
    folder = CACHE / f"transformers-{version}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        package = Path(work, "new", PACKAGE)
        package.mkdir(parents=True)
        extract(download(version, Path(work)), package)
        if not (package / "test_modeling_common.py").is_file():
            raise RuntimeError(
                f"the source distribution of transformers {version} has no tests/test_modeling_common.py"
            )
        (package / "__init__.py").touch()
        package.parent.rename(folder)  # the last step, so that a folder that exists is complete
    return folder


if __name__ == "__main__":
    print(fetch())
