"""Memory of this process."""

import resource
import sys


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
