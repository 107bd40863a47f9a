"""What of torch, CUDA, DeepSpeed, Ray, S3 and SLURM this machine has, and what is missing."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for."""

    subject: str
    ok: bool
    detail: str
    """What is there, or what its absence means and how to get it."""
    required: bool = False
    """Whether xmodal cannot run at all without it."""


def examine() -> list[Finding]:
    """Look at this machine. Changes nothing and asks no network by itself."""
    findings = [
        Finding(
            subject="python",
            ok=sys.version_info >= (3, 11),
            detail=f"{sys.version.split()[0]} (3.11 or later)",
            required=True,
        )
    ]
    findings += [
        _package(name) for name in ("torch", "deepspeed", "ray", "timm", "transformers", "accelerate", "webdataset")
    ]
    findings += [
        _cuda(),
        _program("c++", "training with compile=true on processors needs it: install g++"),
        _shared_memory(),
        _s3(),
        _slurm(),
    ]
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(subject=name, ok=True, detail=importlib.metadata.version(name), required=True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(subject=name, ok=False, detail=f"missing: pip install {name}", required=True)


def _cuda() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: of a library that it links to
        return Finding(subject="cuda", ok=False, detail=f"torch cannot be loaded: {error}")
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        return Finding(subject="cuda", ok=False, detail=f"no GPU: training runs on {cores} CPU cores by gloo")
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return Finding(subject="cuda", ok=True, detail=f"CUDA {torch.version.cuda}: {names}")


def _program(name: str, purpose: str, *, required: bool = False) -> Finding:
    path = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    return Finding(subject=name, ok=path is not None, detail=path or f"missing. {purpose}", required=required)


def _shared_memory() -> Finding:
    if not os.path.isdir("/dev/shm"):
        return Finding(subject="/dev/shm", ok=False, detail="missing: Ray falls back to files in its temporary folder")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    return Finding(
        subject="/dev/shm", ok=free >= 0.5, detail=f"{free:.1f} GiB free (Ray and the loaders' workers use it)"
    )


def _s3() -> Finding:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return Finding(subject="s3", ok=False, detail="boto3 is missing: pip install boto3")
    try:
        # From the environment and the config files; the instance's own service would be a network call.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:
        return Finding(subject="s3", ok=False, detail=f"credentials cannot be read: {error}")
    if credentials is None:
        return Finding(subject="s3", ok=False, detail="no credentials in the environment or ~/.aws; local folders only")
    return Finding(subject="s3", ok=True, detail=f"credentials found ({credentials.method})")


def _slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding(subject="slurm", ok=False, detail="no sbatch on the path; needed for the scripts in slurm/ only")
    try:
        answer = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return Finding(subject="slurm", ok=False, detail="sbatch is there but does not answer within 10 seconds")
    if answer.returncode:
        last_line = (answer.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return Finding(subject="slurm", ok=False, detail=f"sbatch is there but does not work: {last_line}")
    return Finding(subject="slurm", ok=True, detail=answer.stdout.strip())
