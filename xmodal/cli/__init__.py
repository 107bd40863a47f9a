"""The command `xmodal`: one subcommand a verb, each a thin call."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from shards.errors import ToldElsewhereError, UserError
from xmodal.cli.data import curate, forget, shards, view
from xmodal.cli.judging import benchmarks, evaluate, explain, predict, table
from xmodal.cli.labelling import agree, calibrate, collect, label
from xmodal.cli.project import demo, doctor, report
from xmodal.cli.published import models
from xmodal.cli.training import crossval, export, finetune_fi, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: the verb's own, or 2 for a mistake of the user's, told in two lines."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        import xmodal

        print(f"xmodal {xmodal.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"xmodal: {verb}: no such command\n        choose one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return run_verb(VERBS[verb][1], rest)


def run_verb(verb: Callable[[list[str]], int | None], arguments: Sequence[str]) -> int:
    """Call a verb with its arguments; a UserError becomes two lines on stderr and exit code 2."""
    _start_logging()
    try:
        return verb(list(arguments)) or 0
    except ToldElsewhereError:
        return 2
    except UserError as error:
        print(f"xmodal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xmodal: interrupted", file=sys.stderr)
        return 130


VERBS: dict[str, tuple[str, Callable[[list[str]], int | None]]] = {
    verb.__name__.replace("_", "-"): ((verb.__doc__ or "").splitlines()[0], verb)
    for verb in (
        *(collect, label, curate, agree, calibrate),
        *(train, export, evaluate, crossval, finetune_fi, predict, explain, table, report, demo),
        *(benchmarks, models, view, forget, shards, doctor),
    )
}


def _overview() -> str:
    lines = [
        "usage: xmodal COMMAND [--config FILE.yaml] [--setting VALUE] [--section.setting VALUE]",
        "",
        "Image sentiment learned from the crowd: a text teacher labels the pictures of posts, a vision student",
        "learns from them. `xmodal COMMAND --help` lists the settings of a command.",
        "",
    ]
    lines += [f"  {verb:<13}{summary}" for verb, (summary, _) in VERBS.items()]
    lines += ["", "Start with:  xmodal demo"]
    return "\n".join(lines)


def _start_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # They speak at INFO of every step that they take.
    for name in ("httpx", "httpx2", "urllib3", "botocore", "filelock", "accelerate", "timm", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Warns, whenever DeepSpeed is imported, that a machine without a GPU has none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def leave(code: int) -> NoReturn:
    """End the process, once Python's own exit handlers have run.

    Not by sys.exit(): native thread pools of the libraries that a verb has loaded are now and then torn down while
    their threads still run, and the C++ runtime then aborts a process that has done all of its work.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):  # of `xmodal --help | head -1`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def command() -> NoReturn:
    """The console command."""
    leave(main())
