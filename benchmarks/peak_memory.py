"""What a process needed at most. Nothing large is imported here: AllenNLP's environment reads this file, too."""

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Resident bytes of this process at most; Linux's `ru_maxrss` begins with those of the process that started it."""
    if sys.platform == "linux":
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
