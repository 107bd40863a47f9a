"""Verbs about a whole run, and about the machine."""

import os

from shards.errors import UserError
from xmodal.cli.arguments import read_config


def report(arguments: list[str]) -> None:
    """Everything of a run → one HTML page."""
    from xmodal.report.report import ReportConfig
    from xmodal.report.report import report as run

    print(f"report: {os.path.abspath(run(read_config(ReportConfig, arguments, report)))}")


def demo(arguments: list[str]) -> None:
    """The whole way on the emoji set that ships with the project."""
    from xmodal.demo.demo import DemoConfig
    from xmodal.demo.demo import demo as run

    summary = run(read_config(DemoConfig, arguments, demo))
    print(summary)


def doctor(arguments: list[str]) -> int:
    """Say what of torch, CUDA, DeepSpeed, Ray, S3 and SLURM is there and what is missing."""
    from xmodal.doctor import examine

    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: xmodal doctor\n\n{doctor.__doc__}")
        return 0
    if arguments:
        raise UserError(f"command line: {arguments[0]}: no such setting", "`xmodal doctor` takes none")
    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.ok else '--':<4}{finding.subject:<{width}}  {finding.detail}")
    return 0 if all(finding.ok for finding in findings if finding.required) else 1
