"""Virtual environments of the peers: they want other versions of what we use, and of what each other uses."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".peers-venv"
"""Holds one for each benchmark that needs one."""


def environment_of_peers(folder: Path, versions: Mapping[str, str]) -> Path:
    """The python of the environment in which these packages are installed; it is made where it is not there."""
    pins = [f"{name}=={version}" for name, version in versions.items()]
    python, stamp = folder / "bin" / "python", folder / "installed-pins.txt"
    if not stamp.exists() or stamp.read_text().splitlines() != pins:
        print(f"installing {', '.join(pins)} into {folder} (some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pins], check=True)
        stamp.write_text("".join(f"{pin}\n" for pin in pins))
    return python


def versions_of_peers(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """What is installed there."""
    code = "import importlib.metadata, json, sys\n"
    code += "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
    return json.loads(subprocess.check_output([str(python), "-c", code, *packages]))
