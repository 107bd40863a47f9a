"""Verbs about students and benchmarks."""

import json

from shards.errors import UserError
from xmodal.cli.arguments import action_parser, apart, listed, parsed_arguments, print_table, read_config, with_inputs


def evaluate(arguments: list[str]) -> None:
    """Students → scores on human-labelled benchmarks, with intervals, and predictions with their paths.

    `xmodal evaluate -m STUDENT ... -b BENCHMARK ...` takes several of both, and compares each two students.
    """
    from shards.json_object import without_nan
    from xmodal.evaluation.evaluate import EvaluateConfig
    from xmodal.evaluation.evaluate import evaluate as run

    config = read_config(EvaluateConfig, listed(arguments, {"-m": "models", "-b": "benchmarks"}), evaluate)
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
            print(comparisons_text(evaluation.comparisons, bullet="- " if config.format == "markdown" else ""))
    if config.html:
        from xmodal.evaluation.output_files import write_html
        from xmodal.report.evaluation_page import evaluation_page

        write_html(config.html, evaluation_page(evaluation))


def predict(arguments: list[str]) -> None:
    """A student → its probabilities for files, folders, views, datasets or s3:// prefixes of pictures, as a table.

    `xmodal predict -m STUDENT FILE|FOLDER|VIEW|s3://... --output predictions.csv`; .parquet and .jsonl too. The same
    command again goes on where it was ended; what cannot be read is in predictions.csv.failures.jsonl.
    """
    from xmodal.evaluation.predict_pictures import PredictConfig, predict_pictures

    config = read_config(PredictConfig, with_inputs(arguments), predict)
    summary = predict_pictures(config)
    if summary is None:  # of a process that is not the first
        return
    rows: list[tuple[str, object]] = [(name, f"{count:,}") for name, count in summary["labels"].items()]
    rows.append(("failed", f"{summary['failures']:,}"))
    print_table(config.output, rows)


def explain(arguments: list[str]) -> int:
    """Pictures → the same with where a student looked in them, as heat maps.

    `xmodal explain -m STUDENT IMAGE ... [--class positive] [--method rollout|gradient] [--output FOLDER]`
    """
    from xmodal.evaluation.explain import ExplainConfig
    from xmodal.evaluation.explain import explain as run

    given = [
        f"--label{argument.removeprefix('--class')}" if argument.partition("=")[0] == "--class" else argument
        for argument in arguments
    ]
    written, num_failures = run(read_config(ExplainConfig, with_inputs(given), explain))
    for file in written:
        print(file)
    return 1 if num_failures else 0


def table(arguments: list[str]) -> None:
    """The paper's table beside what was evaluated here (`xmodal table SCORES.json ...`)."""
    from xmodal.evaluation.paper_table import TableConfig, paper_table

    files, settings = apart(arguments)
    given = [f"--scores={json.dumps(files)}"] if files else []
    print(paper_table(read_config(TableConfig, [*given, *settings], table)))


def benchmarks(arguments: list[str]) -> int:
    """Human-labelled benchmarks: which are known, and whether a copy is whole (`xmodal benchmarks list|verify`)."""
    from xmodal.benchmarks import INSTALL_FROM_CLONE
    from xmodal.evaluation.output_files import check_output_file, write_json
    from xmodal.evaluation.verify import list_benchmarks, verify_benchmark

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_BENCHMARKS_USAGE)
        return 0
    action, *rest = arguments
    if action not in ("list", "verify"):
        raise UserError(f"command line: {action}: no such action", "choose one of list, verify")
    parser = action_parser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--root", default="")
    parser.add_argument("--json")
    parsed = parsed_arguments(parser, rest, "benchmarks")
    if action == "list":
        known = list_benchmarks(parsed.root)
        if not known:
            raise UserError("no benchmark is known by name here", INSTALL_FROM_CLONE)
        for name, config, is_here in known:
            count = config.expected.pictures
            pictures = "" if count is None else f"{count if config.expected.certain else f'about {count}'} pictures"
            kind = "scores" if config.is_graded else "classes"
            here = "here" if is_here else "not here"
            print(f"{name:<18}  {pictures:<20}  {kind:<8} {here:<9} {', '.join(config.protocols)}")
        return 0
    if not parsed.names:
        raise UserError("command line: no benchmark", "xmodal benchmarks verify 5agree, or a YAML file")
    check_output_file("json", parsed.json)
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
        write_json(parsed.json, [verification.to_json() for verification in verifications])
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
