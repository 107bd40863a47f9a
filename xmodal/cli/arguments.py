"""What the verbs do with a command line, and how they print."""

import argparse
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from shards.errors import UserError

T = TypeVar("T")


def named(arguments: list[str], *names: str) -> list[str]:
    """The arguments, those that stand first and are no settings as the settings of these names."""
    given = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))[: len(names)]
    return [f"--{name}={value}" for name, value in zip(names, given, strict=False)] + arguments[len(given) :]


_SWITCHES = {"--allow-missing": "--allow_missing=true"}


def listed(arguments: list[str], flags: Mapping[str, str]) -> list[str]:
    """The arguments, with `-m A B` as the list setting that the flag stands for, and switches as settings."""
    found: list[str] = []
    given: dict[str, list[str]] = {}
    flag = None
    for argument in arguments:
        if argument in flags:
            flag = argument
            given.setdefault(flags[flag], [])
        elif flag and not argument.startswith("-"):
            given[flags[flag]].append(argument)
        else:
            flag = None
            found.append(_SWITCHES.get(argument, argument))
    return found + [f"--{name}={json.dumps(values)}" for name, values in given.items()]


def with_inputs(arguments: Sequence[str]) -> list[str]:
    """The arguments, `-m X` as the setting `model`, and what is no setting nor the value of one as `inputs`."""
    settings: list[str] = []
    inputs: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "-m":
            settings += ["--model", *itertools.islice(remaining, 1)]
        elif not argument.startswith("-"):
            inputs.append(argument)
        elif "=" in argument or argument in ("-h", "--help"):
            settings.append(argument)
        else:
            settings += [argument, *itertools.islice(remaining, 1)]
    return settings + ([f"--inputs={json.dumps(inputs)}"] if inputs else [])


def read_config(config_class: type[T], arguments: list[str], verb: Callable[..., Any]) -> T:
    """The settings of a verb, whose `--help` says what its docstring does. Raises UserError for those it lacks."""
    from xmodal.config import load_config

    description = inspect.cleandoc(verb.__doc__ or "")
    return load_config(config_class, arguments, command=f"xmodal {verb.__name__}", description=description)


def parsed_arguments(parser: argparse.ArgumentParser, arguments: list[str], verb: str) -> argparse.Namespace:
    """What a parser makes of arguments; those that it does not know are a mistake of the user's."""
    try:
        parsed, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}", f"see `xmodal {verb} --help`") from error
    if unknown:
        raise UserError(f"command line: {unknown[0]}: no such setting", f"see `xmodal {verb} --help`")
    return parsed


def print_table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Print names and what they are of, aligned, below a title."""
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
