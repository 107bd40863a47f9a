"""What people said of posts: a CSV file of classes, and the posts of a dataset that its rows mean."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shards.errors import UserError
from xmodal.labels import CLASSES, parse_label


@dataclass(frozen=True, kw_only=True)
class HumanLabels:
    """The rows of a file."""

    named_by: Literal["post_id", "path"]
    """What a row names its post by: its id, or the path of a picture of it."""
    classes: Mapping[str, int | None]
    """Name → class id; None where rows of one name differ."""


def read_human_labels(file: str, class_column: str) -> HumanLabels:
    """Read `post_id` or `path`, and the class (its id or name), of each row; rows without a class are passed over.

    Raises UserError for a file that cannot be read, and for a class that is none.
    """
    classes: dict[str, int | None] = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            columns = reader.fieldnames or []
            named_by: Literal["post_id", "path"] = "post_id" if "post_id" in columns else "path"
            if named_by not in columns or class_column not in columns:
                missing = class_column if named_by in columns else "post_id or path"
                raise UserError(f"{file}: has no column {missing}", "name its columns, or give --class_column NAME")
            for row in reader:
                name, value = row[named_by], row[class_column]
                if name and value:
                    class_id = _class_id(value, f"{file}: line {reader.line_num}: {class_column}")
                    classes[name] = class_id if classes.get(name, class_id) == class_id else None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "check the path of the file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a CSV file in UTF-8: {error}", "write it again") from error
    return HumanLabels(named_by=named_by, classes=classes)


def posts_of_rows(labels: HumanLabels, post_ids: Sequence[str], urls: Sequence[str]) -> dict[str, int]:
    """Post id → class, for the posts of a dataset that the rows mean. `post_ids` and `urls` are those of its samples.

    A path means the picture whose URL is it, or ends with it. A post that rows call by two classes is left out, and so
    is a path that means pictures of several posts.
    """
    if labels.named_by == "post_id":
        known = set(post_ids)
        return {name: found for name, found in labels.classes.items() if found is not None and name in known}
    posts_by_name: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for post_id, url in zip(post_ids, urls, strict=True):
        posts_by_name[url.rpartition("/")[2]].append((url, post_id))
    classes_of: dict[str, set[int | None]] = defaultdict(set)
    for path, class_id in labels.classes.items():
        candidates = posts_by_name.get(path.rpartition("/")[2], [])
        meant = {post_id for url, post_id in candidates if url == path or url.endswith(f"/{path}")}
        if len(meant) == 1:
            classes_of[meant.pop()].add(class_id)
    return {
        post_id: found
        for post_id, (found, *others) in ((one, list(classes)) for one, classes in classes_of.items())
        if found is not None and not others
    }


def _class_id(value: str, where: str) -> int:
    label = parse_label(value)
    if label is None or max(label) != 1:
        raise UserError(f"{where}: no class", f"give {', '.join(CLASSES)}, or 0, 1, 2")
    return label.index(1)
