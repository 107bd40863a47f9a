"""Verbs about shards and views."""

from shards.errors import UserError
from xmodal.cli.arguments import action_parser, parsed_arguments, print_table, read_config


def curate(arguments: list[str]) -> None:
    """Shards → view: drop duplicates and benchmark pictures, filter, balance, split.

    `--dry-run` says what each step would leave, and writes nothing.
    """
    from xmodal.curation.config import CurateConfig
    from xmodal.curation.curate import curate as run
    from xmodal.curation.funnel import funnel_table

    dry_run = "--dry-run" in arguments
    config = read_config(CurateConfig, [argument for argument in arguments if argument != "--dry-run"], curate)
    summary = run(config, dry_run=dry_run)
    print(f"{'A dry run: nothing is written to' if dry_run else 'View'} {summary.view}; samples left after each step")
    print(funnel_table(summary.funnel, summary.splits_by_class))
    if not dry_run:
        print(f"fingerprint {summary.fingerprint[:12]}")


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
    parser = action_parser()
    parser.add_argument("views", nargs="*")
    parser.add_argument("--csv")
    parsed = parsed_arguments(parser, rest, "view")
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


def forget(arguments: list[str]) -> None:
    """Posts and authors who are to be forgotten → out of all later views, and out of the shards if asked for."""
    from xmodal.curation.forget import forget as run

    if not arguments or {"-h", "--help"} & set(arguments):
        print(_FORGET_USAGE)
        return
    parser = action_parser()
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--posts")
    parser.add_argument("--authors")
    parser.add_argument("--reason", default="")
    parser.add_argument("--scrub", action="store_true")
    parsed = parsed_arguments(parser, arguments, "forget")
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
    print_table(f"Dataset {parsed.dataset}", rows)


_FORGET_USAGE = """\
usage: xmodal forget [--posts FILE] [--authors FILE] [--reason TEXT] [--scrub] DATASET

  --posts FILE    ids of posts, one a line; or a file of `deleted/` that `xmodal collect` wrote, or that folder
  --authors FILE  authors, likewise, as posts name them
  --reason TEXT   kept with them, and the time
  --scrub         also take the samples of all that are to be forgotten out of the shards, for good

Later views leave them out, and older views that hold them are refused. See docs/forgetting.md."""


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
    parser = action_parser()
    parser.add_argument("url", nargs="?")
    parser.add_argument("--num_workers", type=int, default=0)
    parsed = parsed_arguments(parser, arguments, "shards")
    if parsed.url is None:
        raise UserError("command line: no URL of shards", "see `xmodal shards --help`")
    if parsed.num_workers < 0:
        raise UserError(f"command line: num_workers: {parsed.num_workers} must be at least 0", "give --num_workers 4")
    return parsed.url, parsed.num_workers
