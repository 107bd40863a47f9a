"""The command `xmodal`: one subcommand a verb, each a thin call."""

import argparse
import atexit
import contextlib
import inspect
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shards.errors import UserError

if TYPE_CHECKING:
    from xmodal.models.convert import Conversion

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0, or 2 for a mistake of the user's, told in two lines."""
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
    except UserError as error:
        print(f"xmodal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xmodal: interrupted", file=sys.stderr)
        return 130


def collect(arguments: list[str]) -> None:
    """Live stream → posts: follow X, Mastodon or Bluesky until told to stop."""
    from xmodal.collecting.collect import CollectConfig
    from xmodal.collecting.collect import collect as run

    summary = run(_config(CollectConfig, arguments, collect))
    rejected = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items()) or "none"
    _print_table(
        f"Posts {os.path.abspath(summary.folder)}",
        [
            ("posts written", summary.posts),
            ("rejected", rejected),
            ("deleted", f"{summary.removed} taken out again, {summary.deletions} listed in deleted/"),
            ("files", ", ".join(summary.files) or "none"),
        ],
    )


def label(arguments: list[str]) -> None:
    """Posts → shards: fetch the pictures, let the teacher read the texts (on Ray).

    `--retry-failures` tries again what could not be fetched; `--status DATASET` says how far a run is.
    """
    from xmodal.labelling import label as driver
    from xmodal.labelling.config import LabelConfig

    if arguments[:1] == ["--status"]:
        if len(arguments) != 2:
            raise UserError("command line: --status takes one dataset", "xmodal label --status s3://bucket/dataset")
        print(driver.status(arguments[1]))
        return
    retry = "--retry-failures" in arguments
    config = _config(LabelConfig, [argument for argument in arguments if argument != "--retry-failures"], label)
    summary = driver.retry_failures(config) if retry else driver.label(config)
    failures, rejected = (
        ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
        for counts in (summary.failures, summary.rejected)
    )
    if summary.retryable:
        failures += f"; --retry-failures tries {summary.retryable} of them again"
    _print_table(
        f"Dataset {summary.dataset}",
        [
            ("left out", rejected),
            ("posts", summary.posts),
            ("pictures named by them", summary.media),
            ("samples", summary.samples),
            ("failures", failures),
            ("shards", f"{len(summary.shards)} ({summary.shards_there_before} were there before)"),
        ],
    )


def curate(arguments: list[str]) -> None:
    """Shards → view: drop duplicates and benchmark pictures, filter, balance, split.

    `--dry-run` says what each step would leave, and writes nothing.
    """
    from xmodal.curation.config import CurateConfig
    from xmodal.curation.curate import curate as run
    from xmodal.curation.funnel import funnel_table

    dry_run = "--dry-run" in arguments
    config = _config(CurateConfig, [argument for argument in arguments if argument != "--dry-run"], curate)
    summary = run(config, dry_run=dry_run)
    print(f"{'A dry run: nothing is written to' if dry_run else 'View'} {summary.view}; samples left after each step")
    print(funnel_table(summary.funnel, summary.splits_by_class))
    if not dry_run:
        print(f"fingerprint {summary.fingerprint[:12]}")


def agree(arguments: list[str]) -> None:
    """Two datasets of the same posts → how often their teachers agree (`xmodal agree FIRST SECOND`)."""
    from xmodal.label_quality.agree import AgreeConfig, agreement_table
    from xmodal.label_quality.agree import agree as run
    from xmodal.label_quality.page import table_text

    summary = run(_config(AgreeConfig, _named(arguments, "first", "second"), agree))
    agreement = summary.agreement
    _print_table(
        f"Agreement on {agreement.num_samples} samples",
        [
            ("flips", f"{100 * agreement.flips:.1f} %"),
            ("kappa", f"{agreement.kappa:.3f}"),
            ("only in one", f"{summary.only_first} in the first, {summary.only_second} in the second"),
        ],
    )
    print(table_text(agreement_table(agreement)))


def calibrate(arguments: list[str]) -> None:
    """Dataset and human labels → how far its teacher's confidence can be believed (`xmodal calibrate DATASET`)."""
    from xmodal.label_quality.calibrate import CalibrateConfig, calibration_table
    from xmodal.label_quality.calibrate import calibrate as run
    from xmodal.label_quality.page import table_text

    summary = run(_config(CalibrateConfig, _named(arguments, "dataset"), calibrate))
    _print_table(
        f"Calibration on {summary.num_judged} posts",
        [
            ("temperature", f"{summary.temperature}, fitted on {summary.num_fitted} other posts"),
            ("names left out", summary.num_unmatched),
        ],
    )
    print(table_text(calibration_table(summary)))


def train(arguments: list[str]) -> int:
    """View → student: train by DeepSpeed; `deepspeed launch/train.py` does the same on many ranks.

    Ends with exit code 75 where it was asked to stop (SIGTERM, or the stop file) and can go on. `--dry-run` says what
    the run would do, the memory that it takes, and how long by a step that is really done, and writes nothing.
    """
    # Before torch is there, whose sockets warn where an address has no name, as on many a cluster's inner network.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from xmodal.training.config import TrainConfig

    # As other tools spell it, and as our settings are spelt.
    others = [argument for argument in arguments if argument not in ("--dry-run", "--dry_run")]
    is_dry_run = len(others) < len(arguments)
    config = _config(TrainConfig, others, train)
    _use_processors_without_gpu()
    if is_dry_run:
        from xmodal.training.dry_run import dry_run

        dry_run(config, partial(print, flush=True))
        return 0
    from xmodal.training.stop import EXIT_STOPPED
    from xmodal.training.train import train as run

    return 0 if run(config) else EXIT_STOPPED


def export(arguments: list[str]) -> None:
    """Checkpoint → student: a timm folder with a model card; also to the hub and as ONNX (`xmodal export RUN OUT`)."""
    _use_processors_without_gpu()
    from xmodal.training.export import ExportConfig
    from xmodal.training.export import export as run

    # As the hub's own tools spell it.
    spelt = [argument.replace("--push-to-hub", "--push_to_hub", 1) for argument in arguments]
    config = _config(ExportConfig, _named(spelt, "checkpoint", "output"), export)
    summary = run(config)
    rows: list[tuple[str, object]] = [
        ("from", f"{summary.checkpoint}, step {summary.step}"),
        ("weights", f"{summary.weights}, {summary.num_parameters:,}"),
    ]
    if summary.onnx_difference is not None:
        rows.append(("model.onnx", f"its logits differ from the student's by {summary.onnx_difference:.1e} at most"))
    if summary.url:
        rows.append(("uploaded", summary.url))
    _print_table(f"Student {os.path.abspath(config.output)}", rows)


def _use_processors_without_gpu() -> None:
    """Tell DeepSpeed so before it is imported, where it would look for a GPU, and warn."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def evaluate(arguments: list[str]) -> None:
    """Students → scores on human-labelled benchmarks, with intervals, and predictions with their paths.

    `xmodal evaluate -m STUDENT ... -b BENCHMARK ...` takes several of both, and compares each two students.
    """
    from shards.json_object import without_nan
    from shards.storage import LocalStorage
    from xmodal.evaluation.evaluate import EvaluateConfig
    from xmodal.evaluation.evaluate import evaluate as run

    config = _config(EvaluateConfig, _listed(arguments, {"-m": "models", "-b": "benchmarks"}), evaluate)
    evaluation = run(config)
    if not evaluation.judgements:  # of a process that is not the first
        return
    from xmodal.evaluation.table import comparisons_text, results_csv, results_markdown, results_text

    if config.format == "json":
        print(json.dumps(without_nan(evaluation.to_json()), indent=2))
    else:
        table = {"text": results_text, "markdown": results_markdown, "csv": results_csv}[config.format]
        print(table(evaluation.rows()))
        if evaluation.comparisons and config.format != "csv":
            print(comparisons_text(evaluation.comparisons))
    if config.html:
        from xmodal.report.evaluation_page import evaluation_page

        file = Path(config.html)
        LocalStorage(file.parent).replace(file.name, evaluation_page(evaluation).encode(errors="replace"))


def table(arguments: list[str]) -> None:
    """The paper's table beside what was evaluated here (`xmodal table SCORES.json ...`)."""
    from xmodal.evaluation.paper_table import TableConfig, paper_table

    files = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    given = [f"--scores={json.dumps(files)}"] if files else []
    print(paper_table(_config(TableConfig, [*given, *arguments[len(files) :]], table)))


def benchmarks(arguments: list[str]) -> int:
    """Human-labelled benchmarks: which are known, and whether a copy is whole (`xmodal benchmarks list|verify`)."""
    from xmodal.evaluation.json_file import write_json
    from xmodal.evaluation.verify import list_benchmarks, verify_benchmark

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_BENCHMARKS_USAGE)
        return 0
    action, *rest = arguments
    if action not in ("list", "verify"):
        raise UserError(f"command line: {action}: no such action", "choose one of list, verify")
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--root", default="")
    parser.add_argument("--json")
    parsed = _parsed(parser, rest, "benchmarks")
    if action == "list":
        for config, is_here in list_benchmarks(parsed.root):
            count = config.expected.pictures
            pictures = "" if count is None else f"{count if config.expected.certain else f'about {count}'} pictures"
            kind = "scores" if config.is_graded else "classes"
            here = "here" if is_here else "not here"
            print(f"{config.name:<18}  {pictures:<20}  {kind:<8} {here:<9} {', '.join(config.protocols)}")
        return 0
    if not parsed.names:
        raise UserError("command line: no benchmark", "xmodal benchmarks verify 5agree, or a YAML file")
    verifications = []
    for name in parsed.names:
        verification = verify_benchmark(name, root=parsed.root)
        verifications.append(verification)
        by_class = ", ".join(f"{count} {class_name}" for class_name, count in verification.by_class.items() if count)
        print(f"{verification.benchmark}: {verification.pictures} pictures; {by_class}", flush=True)
        for finding in verification.findings:
            print(f"  {finding.kind:<8} {finding.what}")
            for group in finding.pictures[:_PICTURES_TOLD]:
                print(f"           {' = '.join(group)}")
            if len(finding.pictures) > _PICTURES_TOLD:
                print(f"           and {len(finding.pictures) - _PICTURES_TOLD} more; --json FILE lists all")
        if verification.is_sound:
            print("  ok       nothing is missing or broken")
    if parsed.json:
        write_json(Path(parsed.json), [verification.to_json() for verification in verifications])
    return 0 if all(verification.is_sound for verification in verifications) else 1


_PICTURES_TOLD = 5
_BENCHMARKS_USAGE = """\
usage: xmodal benchmarks list [--root FOLDER]
       xmodal benchmarks verify NAME ... [--root FOLDER] [--json FILE]

  list    the benchmarks that are known by name: their size, kind and protocols, and whether they are here
  verify  look at every picture: what is missing, what does not decode, whether the counts are the expected ones, which
          pictures are duplicates, and which of those are in two folds; exit code 1 for a copy that is not whole

NAME is one of the list, or a YAML file; a new benchmark is one such file in configs/benchmarks.
--root FOLDER: where the paths of the definitions start; by default the working folder.
--json FILE: all that was found, with every path."""


def report(arguments: list[str]) -> None:
    """Everything of a run → one HTML page."""
    from xmodal.report.report import ReportConfig
    from xmodal.report.report import report as run

    print(f"report: {os.path.abspath(run(_config(ReportConfig, arguments, report)))}")


def demo(arguments: list[str]) -> None:
    """The whole way on the emoji set that ships with the project."""
    from xmodal.demo.demo import DemoConfig
    from xmodal.demo.demo import demo as run

    summary = run(_config(DemoConfig, arguments, demo))
    print(summary)


def forget(arguments: list[str]) -> None:
    """Posts and authors who are to be forgotten → out of all later views, and out of the shards if asked for."""
    from xmodal.curation.forget import forget as run

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_FORGET_USAGE)
        return
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--posts")
    parser.add_argument("--authors")
    parser.add_argument("--reason", default="")
    parser.add_argument("--scrub", action="store_true")
    parsed = _parsed(parser, arguments, "forget")
    if parsed.dataset is None:
        raise UserError("command line: no dataset", "see `xmodal forget --help`")
    if parsed.posts is None and parsed.authors is None and not parsed.scrub:
        raise UserError("command line: nobody to forget", "give --posts FILE, --authors FILE or --scrub")
    summary = run(
        parsed.dataset, posts=parsed.posts, authors=parsed.authors, reason=parsed.reason, take_out=parsed.scrub
    )
    rows: list[tuple[str, object]] = [
        ("posts to forget", f"{len(summary.all.post_ids)} ({len(summary.new.post_ids)} of them new)"),
        ("authors to forget", f"{len(summary.all.authors)} ({len(summary.new.authors)} of them new)"),
        ("their samples", f"{summary.samples}, which later views leave out"),
    ]
    if summary.unmatched_posts or summary.unmatched_authors:
        unmatched = f"{summary.unmatched_posts} posts and {summary.unmatched_authors} authors of those that were given"
        rows.append(("of no sample", f"{unmatched}; see that they are written as the dataset has them"))
    if summary.unreadable:
        rows.append(("not looked into", f"{len(summary.unreadable)} shards; the first is {summary.unreadable[0]}"))
    if summary.unknown_authors:
        rows.append(("author not known", f"{summary.unknown_authors} samples, which can be forgotten by post alone"))
    if summary.scrubbed is None:
        rows.append(("scrubbed", "no; --scrub takes their pictures out of the shards"))
    else:
        done = summary.scrubbed
        rows.append(("scrubbed", f"{done.samples} samples out of {done.shards} shards; {done.deleted} files deleted"))
    _print_table(f"Dataset {parsed.dataset}", rows)


_FORGET_USAGE = """\
usage: xmodal forget [--posts FILE] [--authors FILE] [--reason TEXT] [--scrub] DATASET

  --posts FILE    ids of posts, one a line; or a file of `deleted/` that `xmodal collect` wrote, or that folder
  --authors FILE  authors, likewise, as posts name them
  --reason TEXT   kept with them, and the time
  --scrub         also take the samples of all that are to be forgotten out of the shards, for good

Later views leave them out, and older views that hold them are refused. See docs/forgetting.md."""


def view(arguments: list[str]) -> None:
    """Two views: what differs between them, and which step dropped what (`xmodal view diff A B`)."""
    from shards.view import open_view
    from xmodal.curation.view_diff import diff_text, diff_views, write_differences

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_VIEW_USAGE)
        return
    action, *rest = arguments
    if action != "diff":
        raise UserError(f"command line: {action}: no such action", "choose diff")
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("views", nargs="*")
    parser.add_argument("--csv")
    parsed = _parsed(parser, rest, "view")
    if len(parsed.views) != 2:
        raise UserError("command line: diff takes two views", "xmodal view diff BEFORE AFTER")
    before, after = (open_view(url) for url in parsed.views)
    diff = diff_views(before, after)
    print(diff_text(diff))
    if parsed.csv:
        write_differences(diff, parsed.csv)


_VIEW_USAGE = """\
usage: xmodal view diff BEFORE AFTER [--csv FILE]

  diff    how the recipes and inputs of two views differ, and of the samples that only one of them has, why the
          other has not: which step dropped them

--csv FILE: a row for each sample that differs: key, change, why."""


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
        _parsed(argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False), rest, "models")
        print(models_table())
    elif action == "convert":
        _convert_model(rest)
    else:
        _pull_model(rest)


def _convert_model(arguments: list[str]) -> None:
    from xmodal.models.convert import convert
    from xmodal.published import published_model

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--as", dest="name")
    parser.add_argument("--pixels", choices=("0..1", "-1..1"))
    parser.add_argument("--gelu", choices=("exact", "tanh"))
    # What begins with a dash would be taken for a setting.
    pairs = itertools.pairwise([*arguments, ""])
    given = ["--pixels=-1..1" if pair == ("--pixels", "-1..1") else pair[0] for pair in pairs]
    parsed = _parsed(parser, [argument for argument in given if argument != "-1..1"], "models")
    if len(parsed.paths) != 2:
        raise UserError("command line: convert takes a file and a folder", "xmodal models convert FILE.h5 FOLDER")
    model = published_model(parsed.name) if parsed.name else None
    done = convert(*parsed.paths, model=model, pixels=parsed.pixels, gelu=parsed.gelu)
    _print_table(f"Student {os.path.abspath(done.folder)}", _rows_of(done))


def _pull_model(arguments: list[str]) -> None:
    from xmodal.models.pull import pull
    from xmodal.published import published_model, pulled_folder

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--url")
    parsed = _parsed(parser, arguments, "models")
    if len(parsed.names) != 1:
        raise UserError("command line: pull takes one name", "xmodal models pull ViT_L16")
    model = published_model(parsed.names[0])
    done = pull(model, url=parsed.url)
    _print_table(f"Student {pulled_folder(model.name)}", _rows_of(done) if done else [("pulled", "before, and whole")])


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
       xmodal models pull [--url URL] NAME

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
  --url       another place to have the weights from than the authors' release"""


def shards(arguments: list[str]) -> int:
    """Any WebDataset: list its shards, check them, index them (`xmodal shards ls|verify|index URL`)."""
    from shards.inspection import find_shards, measure_shards, verify_shards
    from shards.verify import Problem

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_SHARDS_USAGE)
        return 0
    action, *rest = arguments
    if action not in ("ls", "verify", "index"):
        raise UserError(f"command line: {action}: no such action", "choose one of ls, verify, index")
    url, num_workers = _url_and_workers(rest)
    found = find_shards(url)
    if action == "verify":
        num_broken = 0
        for report in verify_shards(found, num_workers):
            print(f"{report.name}  {report.samples:>8} samples  {report.bytes:>13} bytes", flush=True)
            for problem in report.problems:
                print(f"  {problem}")
            num_broken += bool(report.problems)
        print(f"{len(found.names)} shards, {num_broken} with problems")
        return 1 if num_broken else 0
    samples = size = num_broken = num_problems = 0
    for shard in measure_shards(found, num_workers, keep_indexes=action == "index"):
        if isinstance(shard, Problem):
            print(shard, flush=True)
            num_broken += 1
            continue
        print(f"{shard.name}  {shard.samples:>8} samples  {shard.bytes:>13} bytes", flush=True)
        for problem in shard.problems:
            print(f"  {problem}")
        samples, size = samples + shard.samples, size + shard.bytes
        num_problems += len(shard.problems)
    broken = f", {num_broken} cannot be read" if num_broken else ""
    problems = f", {num_problems} problems in samples" if num_problems else ""
    print(f"{len(found.names)} shards, {samples} samples, {size} bytes{broken}{problems}")
    return 1 if num_broken else 0


_SHARDS_USAGE = """\
usage: xmodal shards ls|verify|index URL [--num_workers N]

  ls      samples and bytes of each shard, and what is broken in samples (pictures are not decoded)
  verify  read every member once and say what is broken; exit code 1 if anything is
  index   the same, and write the indexes that are missing or another tar's, so that the shards can be streamed

ls and index: exit code 1 if any shard cannot be read.

URL is a folder, an s3:// prefix, or a pattern of tars: 's3://bucket/data/{000000..000099}.tar'.
--num_workers N: so many shards at a time; by default one a core."""


def _url_and_workers(arguments: list[str]) -> tuple[str, int]:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--num_workers", type=int, default=0)
    parsed = _parsed(parser, arguments, "shards")
    if parsed.url is None:
        raise UserError("command line: no URL of shards", "see `xmodal shards --help`")
    if parsed.num_workers < 0:
        raise UserError(f"command line: num_workers: {parsed.num_workers} must be at least 0", "give --num_workers 4")
    return parsed.url, parsed.num_workers


def _parsed(parser: argparse.ArgumentParser, arguments: list[str], verb: str) -> argparse.Namespace:
    """What a parser makes of arguments; those that it does not know are a mistake of the user's."""
    try:
        parsed, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}", f"see `xmodal {verb} --help`") from error
    if unknown:
        raise UserError(f"command line: {unknown[0]}: no such setting", f"see `xmodal {verb} --help`")
    return parsed


def doctor(arguments: list[str]) -> int:
    """Say what of torch, CUDA, DeepSpeed, Ray, S3 and SLURM is there and what is missing."""
    from xmodal.doctor import examine

    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: xmodal doctor\n\n{VERBS['doctor'][0]}")
        return 0
    if arguments:
        raise UserError(f"command line: {arguments[0]}: no such setting", "`xmodal doctor` takes none")
    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'ok' if finding.ok else '--':<4}{finding.subject:<{width}}  {finding.detail}")
    return 0 if all(finding.ok for finding in findings if finding.required) else 1


VERBS: dict[str, tuple[str, Callable[[list[str]], int | None]]] = {
    verb.__name__: ((verb.__doc__ or "").splitlines()[0], verb)
    for verb in (
        *(collect, label, curate, agree, calibrate, train, export, evaluate, table, report, demo),
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
    lines += [f"  {verb:<11}{summary}" for verb, (summary, _) in VERBS.items()]
    lines += ["", "Start with:  xmodal demo"]
    return "\n".join(lines)


def _named(arguments: list[str], *names: str) -> list[str]:
    """The arguments, those that stand first and are no settings as the settings of these names."""
    given = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))[: len(names)]
    return [f"--{name}={value}" for name, value in zip(names, given, strict=False)] + arguments[len(given) :]


_SWITCHES = {"--allow-missing": "--allow_missing=true"}


def _listed(arguments: list[str], flags: Mapping[str, str]) -> list[str]:
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


def _config(config_class: type[T], arguments: list[str], verb: Callable[..., Any]) -> T:
    from xmodal.config import load_config

    description = inspect.cleandoc(verb.__doc__ or "")
    return load_config(config_class, arguments, command=f"xmodal {verb.__name__}", description=description)


def _print_table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


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


if __name__ == "__main__":
    command()
