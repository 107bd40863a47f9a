"""Hosts on one machine: each a network, process and mount namespace of its own, on a switch that only they are on.

Needs root, `unshare`, `nsenter` and `ip`. A host's end takes all of its processes with it, as a power cut would.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("unshare", "nsenter", "ip", "mount")


def missing() -> str | None:
    """Why there can be no hosts here, if so."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    done = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces may be made here: {done.stderr.strip()}"


@dataclass(frozen=True)
class Host:
    """A host, running for as long as its first process does."""

    address: str
    init: int
    """Its first process."""
    switch: int
    port: str
    """Its end of the cable, at the switch."""

    def prefix(self) -> list[str]:
        """What runs a command on it."""
        return ["nsenter", "--target", str(self.init), "--net", "--pid", "--mount", "--uts", "--"]

    def count_processes(self, name: str) -> int:
        """How many processes of this name (as they call themselves) run on it."""
        return sum(" ".join(command).startswith(name) for command in self._commands())

    def runs(self, script: str) -> bool:
        """Whether a Python runs this script on it."""
        return any(script in command for command in self._commands())

    def _commands(self) -> Iterator[list[str]]:
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own:
                    yield process.cmdline()

    def unplug(self) -> None:
        """Cut its link."""
        _run_in(self.switch, "ip", "link", "set", self.port, "down")

    def plug_in(self) -> None:
        """Heal it."""
        _run_in(self.switch, "ip", "link", "set", self.port, "up")

    def power_off(self) -> None:
        """End it with all that runs on it."""
        os.kill(self.init, 9)


@contextmanager
def network_of_hosts(count: int, own_folders: Sequence[Path] = ()) -> Iterator[list[Host]]:
    """Hosts 10.77.0.1 to 10.77.0.`count`; each has a /dev/shm and `own_folders` of its own, all else is shared."""
    with ExitStack() as stack:
        switch = stack.enter_context(_namespaces([]))
        _run_in(switch, "ip", "link", "add", "switch", "type", "bridge")
        _run_in(switch, "ip", "link", "set", "switch", "up")
        hosts = []
        for number in range(1, count + 1):
            init = stack.enter_context(_namespaces([Path("/dev/shm"), *own_folders]))
            port, address = f"port{number}", f"10.77.0.{number}"
            cable = ["ip", "link", "add", "eth0", "netns", str(init), "type", "veth", "peer", "name", port]
            _run_in(switch, *cable)
            _run_in(switch, "ip", "link", "set", port, "master", "switch", "up")
            _run_in(init, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run_in(init, "ip", "link", "set", device, "up")
            hosts.append(Host(address, init, switch, port))
        yield hosts


@contextmanager
def _namespaces(own_folders: Sequence[Path]) -> Iterator[int]:
    """A first process in namespaces of its own; its end ends all others in them."""
    mounts = " && ".join(["true", *(f"mount -t tmpfs tmpfs '{folder}'" for folder in own_folders)])
    process = subprocess.Popen(
        [
            *("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", f"{mounts} && echo up && exec sleep 100000"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        (child,) = psutil.Process(process.pid).children()
        yield child.pid
    finally:
        process.kill()
        process.wait()
        time.sleep(0.1)


def _run_in(init: int, *command: str) -> None:
    """With the mounts of this machine: only the network is another's, which `ip` may see by process numbers."""
    subprocess.run(["nsenter", "--target", str(init), "--net", "--", *command], check=True, capture_output=True)
