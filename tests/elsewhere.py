"""Programs as on the machine of somebody who has a folder and not this package."""

import os
import subprocess
import sys
from pathlib import Path

NOT_INSTALLED = """
import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_elmo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""


def run_elsewhere(program: str, home: Path, *arguments: object, **variables: str) -> str:
    """What a program prints in a process without this package, in the folder `home`, where its caches are, too."""
    shared = ("PYTHONPATH", "HF_MODULES_CACHE", "HF_DATASETS_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in shared}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED + program, *map(str, arguments)],
        cwd=home, env=environment | variables, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout
