"""How much memory a benchmark's own process has held."""

from pathlib import Path


def peak_mib() -> float:
    """The most that this process has held, MiB; `ru_maxrss` would begin with what the process that started it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
