"""What the verbs do with a command line, and how they print."""

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from shards.errors import UserError

T = TypeVar("T")


def named(arguments: list[str], *names: str) -> list[str]:
    """The arguments, those that are no settings as the settings of these names, in their order."""
    bare, settings = apart(arguments)
    given = [f"--{name}={value}" for name, value in zip(names, bare, strict=False)]
    return [*given, *bare[len(names) :], *settings]


def apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands for itself, and the settings, each of which has a value: behind `=`, or as the next argument."""
    bare: list[str] = []
    settings: list[str] = []
    takes_value = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        (settings if is_flag or takes_value else bare).append(argument)
        takes_value = is_flag and "=" not in argument
    return bare, settings


_SWITCHES = {"--allow-missing": "--allow_missing=true"}


def listed(arguments: list[str], settings: Mapping[str, str]) -> list[str]:
    """The arguments, with `-m A B`, `--models A B` or `--models '[A, B]'` as one list, and switches as settings.

    `settings` are the short flag and the name of each such setting; its flags may come several times, between others.
    """
    names = {flag: name for short, name in settings.items() for flag in (short, f"--{name}")}
    found: list[str] = []
    given: dict[str, list[Any]] = {}
    name = None
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in names:
            name = None if equals else names[flag]
            given.setdefault(names[flag], []).extend(_items(value) if equals else [])
        elif name and not argument.startswith("-"):
            given[name] += _items(argument)
        else:
            name = None
            found.append(_SWITCHES.get(argument, argument))
    return found + [f"--{name}={json.dumps(values)}" for name, values in given.items()]


def _items(text: str) -> list[Any]:
    """What a list in brackets, as in YAML, holds; anything else is an item itself."""
    try:
        return yaml.safe_load(text) if text.startswith("[") else [text]
    except yaml.YAMLError:
        return [text]


def with_inputs(arguments: list[str]) -> list[str]:
    """The arguments, `-m X` as the setting `model`, and what is no setting nor the value of one as `inputs`."""
    inputs, settings = apart(arguments)
    spelt = ["--model" if argument == "-m" else argument for argument in settings]
    return spelt + ([f"--inputs={json.dumps(inputs)}"] if inputs else [])


def read_config(config_class: type[T], arguments: list[str], verb: Callable[..., Any]) -> T:
    """The settings of a verb, whose `--help` says what its docstring does. Raises UserError for those it lacks."""
    from xmodal.config import load_config

    description = inspect.cleandoc(verb.__doc__ or "")
    command = f"xmodal {verb.__name__.replace('_', '-')}"
    return load_config(config_class, arguments, command=command, description=description)


def action_parser() -> argparse.ArgumentParser:
    """For a verb with actions of its own (`xmodal models list`), whose help is a text; see `parsed_arguments`."""
    return argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)


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
