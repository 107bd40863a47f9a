"""Verbs about posts and their labels."""

import os

from shards.errors import UserError
from xmodal.cli.arguments import named, print_table, read_config


def collect(arguments: list[str]) -> None:
    """Live stream → posts: follow X, Mastodon or Bluesky until told to stop."""
    from xmodal.collecting.collect import CollectConfig
    from xmodal.collecting.collect import collect as run

    summary = run(read_config(CollectConfig, arguments, collect))
    rejected = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items()) or "none"
    print_table(
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
    config = read_config(LabelConfig, [argument for argument in arguments if argument != "--retry-failures"], label)
    summary = driver.retry_failures(config) if retry else driver.label(config)
    failures, rejected = (
        ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
        for counts in (summary.failures, summary.rejected)
    )
    if summary.retryable:
        failures += f"; --retry-failures tries {summary.retryable} of them again"
    print_table(
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


def agree(arguments: list[str]) -> None:
    """Two datasets of the same posts → how often their teachers agree (`xmodal agree FIRST SECOND`)."""
    from xmodal.label_quality.agree import AgreeConfig, agreement_table
    from xmodal.label_quality.agree import agree as run
    from xmodal.label_quality.page import table_text

    summary = run(read_config(AgreeConfig, named(arguments, "first", "second"), agree))
    agreement = summary.agreement
    print_table(
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

    summary = run(read_config(CalibrateConfig, named(arguments, "dataset"), calibrate))
    print_table(
        f"Calibration on {summary.num_judged} posts",
        [
            ("temperature", f"{summary.temperature}, fitted on {summary.num_fitted} other posts"),
            ("names left out", summary.num_unmatched),
        ],
    )
    print(table_text(calibration_table(summary)))
