"""Hosts that `pdsh` and `ssh` reach by name, each with an sshd of its own; no key of this machine's is used."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import network_hosts
from network_hosts import Host, network_of_hosts

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


def missing() -> str | None:
    """Why there can be no such hosts here, if so."""
    absent = [name for name in ("ssh", "ssh-keygen", "pdsh") if shutil.which(name) is None]
    absent += [] if SSHD else ["sshd"]
    return f"not installed: {', '.join(absent)}" if absent else network_hosts.missing()


@contextmanager
def reachable_hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts named host1 to host`count`, on which root may log in from any of them; their files lie in `folder`."""
    assert SSHD
    # ssh reads the home of the user database, whatever HOME says: so all is in the folder of the machine's settings.
    settings = Path("/etc/ssh")
    with ExitStack() as stack:
        # /run holds the folder that sshd wants for itself.
        hosts = stack.enter_context(network_of_hosts(count, [settings, Path("/run")]))
        names = [f"host{number}" for number in range(1, count + 1)]
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{host.address} {name}\n" for host, name in zip(hosts, names, strict=True))
        )
        ssh = folder / "ssh"
        ssh.mkdir()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / key)], check=True)
        shutil.copy(ssh / "user_key.pub", ssh / "authorized_keys")
        (ssh / "ssh_known_hosts").write_text(f"{','.join(names)} {(ssh / 'host_key.pub').read_text()}")
        (ssh / "ssh_config").write_text(
            f"Host *\n  IdentityFile {settings}/user_key\n  IdentitiesOnly yes\n  BatchMode yes\n"
        )
        (ssh / "sshd_config").write_text(
            f"HostKey {settings}/host_key\nAuthorizedKeysFile {settings}/authorized_keys\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\n"
        )
        for host, name in zip(hosts, names, strict=True):
            run_on(host, "hostname", name)
            run_on(host, "mount", "--bind", str(folder / "hosts"), "/etc/hosts")
            run_on(host, "cp", "-r", f"{ssh}/.", str(settings))
            run_on(host, "mkdir", "/run/sshd")
            log = stack.enter_context(open(folder / f"sshd-{name}.log", "w"))
            # It ends with its host.
            subprocess.Popen([*host.prefix(), SSHD, "-D", "-e"], stdout=log, stderr=subprocess.STDOUT)
        for name in names:
            wait_until_reachable(hosts[0], name)
        yield hosts


def wait_until_reachable(host: Host, name: str, seconds: float = 60) -> None:
    """Wait until a host can log in on the one of this name."""
    deadline = time.monotonic() + seconds
    login = [*host.prefix(), "ssh", "-o", "ConnectTimeout=2", name, "true"]
    while (done := subprocess.run(login, capture_output=True, text=True)).returncode != 0:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


def run_on(host: Host, *command: str) -> None:
    subprocess.run([*host.prefix(), *command], check=True, capture_output=True)
