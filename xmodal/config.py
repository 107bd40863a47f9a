"""Typed configs from YAML files and dotted overrides: `--config FILE --optimizer.lr 3e-4`.

A config is a frozen dataclass with attribute docstrings, which `--help` shows. jsonargparse checks names and types,
the dataclass its own values; both end as a `UserError` of two lines.
"""

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

import jsonargparse
import jsonargparse.typing
import yaml

from shards.errors import ConfigError, UserError

T = TypeVar("T")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class MisspeltSettingError(UserError):
    """An unknown setting whose name is close to a known one, which the remedy names."""


class _ItemError(Exception):
    """What the parser says of one section of a list: `key` is the section's, such as `teacher.members[1]`."""

    def __init__(self, key: str, message: str, item_class: type) -> None:
        super().__init__(key, message, item_class)
        self.key, self.message, self.item_class = key, message, item_class

    def within(self, parent: str) -> "_ItemError":
        """The same error as the config around it sees it."""
        return _ItemError(f"{parent}.{self.key}", self.message, self.item_class)


def load_config(config_class: type[T], arguments: Sequence[str], *, command: str, description: str) -> T:
    """The config that `arguments` (as on a command line, without the command) and the files they name make.

    Raises UserError for an unknown key, a wrong type, or a value out of range, naming the key, the value and what is
    allowed. `--help` and `--print_config` print and exit.
    """
    parser = _parser_of(config_class, prog=command, description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; later ones win.")
    source = _config_files(arguments)
    try:
        parsed = parser.parse_args(list(arguments))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise _explain(str(error), config_class, arguments, source, command) from error
    try:
        return cast(T, _build(config_class, parsed.as_dict()))
    except ConfigError as error:
        raise error.of(_where(error.key, arguments, source)) from error
    except _ItemError as error:
        raise _explain(error.message, error.item_class, arguments, source, command, within=f"{error.key}.") from error


def _parser_of(config_class: type, **settings: Any) -> jsonargparse.ArgumentParser:
    """A parser of a config's settings. Sections in lists pass it as they are: `_build` parses each by its own class."""
    for item_class in _item_classes(config_class):
        # The parser's own words about an item tell neither its place in the list nor the path to it.
        jsonargparse.typing.register_type(
            item_class,
            serializer=lambda item: item,
            deserializer=lambda item: item,
            type_check=lambda item, item_class: True,
            fail_already_registered=False,
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **settings)
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def _item_class(field_type: Any) -> type | None:
    """The config class of a field that is a list of sections, or of sections and texts (`list[str | Section]`)."""
    if get_origin(field_type) is not list:
        return None
    (item_type,) = get_args(field_type)
    return next((cast(type, one) for one in get_args(item_type) or [item_type] if is_dataclass(one)), None)


def _allows_text(field_type: Any) -> bool:
    """Whether an item of such a list may also be text."""
    return str in get_args(get_args(field_type)[0])


def _item_classes(config_class: Any) -> Iterator[type]:
    for field in fields(config_class):
        if is_dataclass(field.type):
            yield from _item_classes(field.type)
        elif item_class := _item_class(field.type):
            yield item_class


def _build(config_class: Any, values: dict[str, Any]) -> Any:
    """Construct a config and those within it; an error of an inner one gets the path to it."""
    arguments = {}
    for field in fields(config_class):
        if field.name not in values:
            continue
        value = values[field.name]
        # The parser lets these two through: a section's name with a value of its own, and a key with nothing behind it.
        if is_dataclass(field.type):
            if value is None:
                continue
            if not isinstance(value, dict):
                raise ConfigError(field.name, value, "is not a section, with its settings indented below it")
            try:
                value = _build(field.type, value)
            except (ConfigError, _ItemError) as error:
                raise error.within(field.name) from error
        elif (item_class := _item_class(field.type)) and isinstance(value, list):
            value = [
                item
                if isinstance(item, str) and _allows_text(field.type)
                else _build_item(item_class, item, f"{field.name}[{place}]")
                for place, item in enumerate(value)
            ]
        elif value is None and NoneType not in get_args(field.type):
            raise ConfigError(field.name, value, "is no value; remove the line to keep the default")
        arguments[field.name] = value
    return config_class(**arguments)


def _build_item(item_class: type, item: Any, key: str) -> Any:
    """One section of a list, `key` being its place."""
    if not isinstance(item, dict):
        raise ConfigError(key, item, "is not a section, with its settings behind one dash")
    try:
        parsed = _parser_of(item_class).parse_object(item)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise _ItemError(key, str(error), item_class) from error
    try:
        return _build(item_class, parsed.as_dict())
    except (ConfigError, _ItemError) as error:
        raise error.within(key) from error


def known_keys(config_class: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a config class."""
    keys = []
    for field in fields(config_class):
        keys.append(prefix + field.name)
        if is_dataclass(field.type):
            keys += known_keys(field.type, f"{prefix}{field.name}.")
    return keys


def _config_files(arguments: Sequence[str]) -> str:
    files = [
        argument.removeprefix("--config=") if argument.startswith("--config=") else following
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if argument == "--config" or argument.startswith("--config=")
    ]
    return ", ".join(files) or "command line"


def _where(key: str, arguments: Sequence[str], source: str) -> str:
    """What gave a setting: the command line, or the config files. Of a list, the flag names the whole."""
    flag = f"--{key.partition('[')[0]}"
    return "command line" if {flag, f"{flag}+"} & _flags(arguments) else source


def _flags(arguments: Sequence[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments}


def _explain(
    message: str, config_class: type, arguments: Sequence[str], source: str, command: str, *, within: str = ""
) -> UserError:
    """Turn the parser's words into what is wrong and what to do; `within` comes before all names of settings."""
    see_help = f"see `{command} --help` for what is allowed"
    unknown = re.search(r"(?:Group|Key|key) '([^']*)' does not accept option '([^']*)'", message) or re.search(
        r"()(?:unrecognized arguments: --|[Dd]oes not accept option '|Key '|Option ')([^\s=']+)", message
    )
    if unknown:
        key = ".".join(part for part in unknown.groups() if part)
        close = difflib.get_close_matches(key, known_keys(config_class), n=1, cutoff=0.6)
        what = f"{_where(within + key, arguments, source)}: {within}{key}: no such setting"
        return MisspeltSettingError(what, f"did you mean {within}{close[0]}?") if close else UserError(what, see_help)
    wrong_type = re.search(r'[Kk]ey "([^"]*)":\s+(.*)', message, re.DOTALL)
    if wrong_type:
        key, problem = wrong_type.groups()
        where = "command line" if key == "config" else _where(within + key, arguments, source)
        return UserError(f"{where}: {within}{key}: {_plain(problem)}", see_help)
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        names = missing.group(1)
        # A section of a list has no flags of its own.
        flag = "" if within else f", or give --{names.split(',')[0]} VALUE"
        return UserError(f"{source}: {within}{names}: not given", f"add it to the config{flag}")
    if message.startswith("Unexpected config"):
        return UserError(f"{source}: holds no settings", "write one a line, such as `key: value`")
    return UserError(f"{source}: {_plain(message)}", see_help)


def _plain(problem: str) -> str:
    """The parser's message on one line, types by their names."""
    problem = re.sub(r"<class '([^']*)'>", r"\1", problem).replace("typing.", "").replace('in "<unicode string>", ', "")
    problem = re.sub(r"\s+", " ", problem).strip()
    # Of a setting that may be left out: it is not for the user to know that None is another of its types.
    return re.sub(
        r"Does not validate against any of .* Subtypes: \[(.*), NoneType\] Errors: .* Given value: (.*)",
        r"Expected a \1. Got value: \2",
        problem,
    )
