"""The verb about the paper's models."""

import itertools
import os
from typing import TYPE_CHECKING

from shards.errors import UserError
from xmodal.cli.arguments import action_parser, parsed_arguments, print_table

if TYPE_CHECKING:
    from xmodal.models.convert import Conversion


def models(arguments: list[str]) -> None:
    """The paper's twelve models: list them, convert and fetch their weights (`xmodal models list|convert|pull`)."""
    from xmodal.published import models_table

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_MODELS_USAGE)
        return
    action, *rest = arguments
    if action not in ("list", "convert", "pull"):
        raise UserError(f"command line: {action}: no such action", "choose one of list, convert, pull")
    if action == "list":
        parsed_arguments(action_parser(), rest, "models")
        print(models_table())
    elif action == "convert":
        _convert_model(rest)
    else:
        _pull_model(rest)


def _convert_model(arguments: list[str]) -> None:
    from xmodal.models.convert import convert
    from xmodal.published import published_model

    parser = action_parser()
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--as", dest="name")
    parser.add_argument("--pixels", choices=("0..1", "-1..1"))
    parser.add_argument("--gelu", choices=("exact", "tanh"))
    # What begins with a dash would be taken for a setting.
    pairs = itertools.pairwise([*arguments, ""])
    given = ["--pixels=-1..1" if pair == ("--pixels", "-1..1") else pair[0] for pair in pairs]
    parsed = parsed_arguments(parser, [argument for argument in given if argument != "-1..1"], "models")
    if len(parsed.paths) != 2:
        raise UserError("command line: convert takes a file and a folder", "xmodal models convert FILE.h5 FOLDER")
    model = published_model(parsed.name) if parsed.name else None
    done = convert(*parsed.paths, model=model, pixels=parsed.pixels, gelu=parsed.gelu)
    print_table(f"Student {os.path.abspath(done.folder)}", _rows_of(done))


def _pull_model(arguments: list[str]) -> None:
    from xmodal.models.pull import pull
    from xmodal.published import published_model, pulled_folder

    parser = action_parser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--url")
    parser.add_argument("--file")
    parsed = parsed_arguments(parser, arguments, "models")
    if len(parsed.names) != 1:
        raise UserError("command line: pull takes one name", "xmodal models pull ViT_L16")
    if parsed.url and parsed.file:
        raise UserError("command line: --url and --file are two places to have the weights from", "give one of them")
    model = published_model(parsed.names[0])
    done = pull(model, url=parsed.url, file=parsed.file)
    print_table(f"Student {pulled_folder(model.name)}", _rows_of(done) if done else [("pulled", "before, and whole")])


def _rows_of(done: "Conversion") -> list[tuple[str, object]]:
    return [
        ("backbone", f"{done.backbone}, {done.parameters:,} parameters with its head"),
        ("head", done.head),
        ("pictures", f"squares of {done.size} pixels, scaled to {done.pixels}"),
        ("sha256 of the file", done.sha256),
    ]


_MODELS_USAGE = """\
usage: xmodal models list
       xmodal models convert [--as NAME] [--pixels 0..1|-1..1] [--gelu exact|tanh] FILE.h5 FOLDER
       xmodal models pull [--url URL | --file FILE.h5] NAME

  list      each model's name, backbone, input, training set, row and accuracies of the paper's table, and where its
            weights are
  convert   a ViT of vit-keras with three outputs, as Keras wrote it (a whole model, or weights alone), to a student
            with equal predictions, in a new folder; nothing in the file is executed
  pull      a model of the list: its weights are downloaded, checked, converted and kept in $XMODAL_MODELS (by default
            ~/.cache/xmodal/models); from then on its name stands for the student

  --as NAME   the published model that the file is: its pixels, and the GELU of its head
  --pixels    what pixels were scaled to in training, which no file says; by default 0..1 for B/32, -1..1 for others
  --gelu      which GELU the head of two layers has, where the file does not say: exact as Keras's own (the default),
              or tanh as that of tensorflow_addons, which the authors' models have
  --url       another place to have the weights from than the authors' release
  --file      the weights, which are here already; four of the models are in no release"""
