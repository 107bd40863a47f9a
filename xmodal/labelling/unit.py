"""One unit: a range of posts → the samples of its shard, and a line for each that gave none. Knows no Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from shards.writer import Sample
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.fetch import FetchResult, fetch_in_order
from xmodal.crawl.folder import read_in_order
from xmodal.crawl.pictures import PictureConfig
from xmodal.crawl.politeness import HostGate
from xmodal.labels import SoftLabel
from xmodal.posts.post import Post
from xmodal.posts.readers import PostRecord

MIN_MEDIA_OF_OUTAGE = 20
"""Fewer pictures than this may all be gone by chance; then they are failures like others."""


class UnitOutageError(Exception):
    """No picture of a whole unit could be had, for `reasons` (codes of the failures file) that may pass."""

    def __init__(self, num_media: int, reasons: str) -> None:
        super().__init__(num_media, reasons)
        self.num_media, self.reasons = num_media, reasons


async def unit_samples(
    records: Sequence[PostRecord],
    *,
    label_posts: Callable[[Sequence[Post]], Sequence[SoftLabel]],
    teacher: dict[str, str],
    base_url: str | None,
    media_folder: str | None,
    fetch: FetchConfig,
    gate: HostGate,
    pictures: PictureConfig,
    keep_text: bool,
    commit_outages: bool,
    retried: Collection[tuple[str, int]] | None,
    shard_failures: list[dict[str, Any]],
) -> AsyncIterator[Sample]:
    """The samples of a unit in the order of its posts; what gives none is appended to `shard_failures`.

    `label_posts` gives a soft label for each post; it may block, and is told all posts at once while the pictures come
    in. `teacher` is its name and revision. Pictures are read from `media_folder` where there is one. `retried` are the
    pictures (post id, media number) that a round of retries tries again; None for all of the unit. Raises
    UnitOutageError where every picture failed for reasons that may pass, such as a host that is down, unless
    `commit_outages`; and where a round of retries found nothing.
    """
    media, unusable = unit_media(records, base_url)
    if retried is None:
        shard_failures += unusable
    else:
        media = [one for one in media if (one[0].id, one[1]) in retried]
    posts = [record.post for record in records if record.post]
    label_of: dict[str, SoftLabel] = {}
    labelling = asyncio.create_task(asyncio.to_thread(label_posts, posts))
    labelling.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits where no picture came
    urls = [url for _, _, url in media]
    if media_folder is None:
        results = fetch_in_order(urls, fetch, pictures, gate)
    else:
        results = read_in_order(urls, media_folder, fetch.max_bytes, pictures)
    place = 0
    async for result in results:
        post, media_number, _ = media[place]
        place += 1
        if result.picture is None:
            shard_failures.append(_fetch_failure(post, media_number, result))
            continue
        if not label_of:
            soft_labels = await labelling
            # The first of two posts with one id is the one whose pictures are kept.
            label_of = {post.id: label for post, label in reversed(list(zip(posts, soft_labels, strict=True)))}
        yield _sample(post, media_number, result, label_of[post.id], teacher, keep_text=keep_text)
    if not label_of and retried is not None:
        raise UnitOutageError(len(media), ", ".join(sorted({failure["reason"] for failure in shard_failures})))
    if not label_of and not commit_outages:
        _refuse_outage(len(media), shard_failures)


def unit_media(
    records: Sequence[PostRecord], base_url: str | None
) -> tuple[list[tuple[Post, int, str]], list[dict[str, Any]]]:
    """The photos of a unit's posts (post, media number, URL), and the failure records of all that is none."""
    media: list[tuple[Post, int, str]] = []
    unusable: list[dict[str, Any]] = []
    seen: set[str] = set()
    for record in records:
        post = record.post
        if post is None:
            unusable.append(_record_failure(record, record.post_id, record.author, record.reason or ""))
        elif post.id in seen:
            # Two samples of one key in one tar would be read as one.
            unusable.append(_record_failure(record, post.id, post.author, "duplicate_post"))
        else:
            seen.add(post.id)
            for number, picture in enumerate(post.media):
                if picture.type == "photo":
                    media.append((post, number, absolute_url(picture.url, base_url)))
                else:
                    unusable.append(
                        failure_record(
                            post_id=post.id,
                            author=post.author,
                            media_number=number,
                            reason="media_not_included" if picture.type == "missing" else "not_a_photo",
                            url=picture.url,
                        )
                    )
    return media, unusable


def _refuse_outage(num_media: int, shard_failures: Sequence[dict[str, Any]]) -> None:
    """Raise UnitOutageError where a whole unit failed for reasons that may pass: its shard would stay empty for good.

    So may some that are settings: where all URLs are relative, it is `base_url` that is missing or wrong; where all
    addresses are forbidden, `allow_networks`; where no file is there, `media_folder`.
    """
    settings = ("bad_url", "forbidden_address", "no_such_file", "outside_folder")
    passing = [failure["reason"] for failure in shard_failures if failure["retryable"] or failure["reason"] in settings]
    if num_media >= MIN_MEDIA_OF_OUTAGE and len(passing) == num_media:
        raise UnitOutageError(num_media, ", ".join(sorted(set(passing))))


def absolute_url(url: str, base_url: str | None) -> str:
    """Where a picture lies. An empty URL or a broken one stays as it is, for the fetcher to refuse."""
    try:
        if base_url is None or not url.strip() or urlsplit(url).scheme:
            return url
        return urljoin(base_url, url)
    except ValueError:
        return url


def failure_record(
    *,
    reason: str,
    post_id: str | None = None,
    author: str | None = None,
    media_number: int | None = None,
    url: str | None = None,
    file: str | None = None,
    line: int | None = None,
    detail: str | None = None,
    http_status: int | None = None,
    retryable: bool = False,
    tries: int = 0,
) -> dict[str, Any]:
    """One line of a failures file. `file` and `line` are the input's, where a whole post gave nothing.

    `author` is there to be forgotten by.
    """
    return {
        "post_id": post_id,
        "author": author,
        "media_number": media_number,
        "url": url,
        "file": file,
        "line": line,
        "reason": reason,
        "detail": detail,
        "http_status": http_status,
        "retryable": retryable,
        "tries": tries,
    }


def _record_failure(record: PostRecord, post_id: str | None, author: str | None, reason: str) -> dict[str, Any]:
    return failure_record(
        post_id=post_id, author=author, reason=reason, file=record.file, line=record.line, detail=record.detail
    )


def _fetch_failure(post: Post, media_number: int, result: FetchResult) -> dict[str, Any]:
    return failure_record(
        post_id=post.id,
        author=post.author,
        media_number=media_number,
        url=result.url,
        reason=result.reason or "",
        http_status=result.http_status,
        retryable=result.retryable,
        tries=result.tries,
    )


def _sample(
    post: Post, media_number: int, result: FetchResult, label: SoftLabel, teacher: dict[str, str], *, keep_text: bool
) -> Sample:
    picture = result.picture
    assert picture is not None
    return Sample(
        key=post.key(media_number),
        image=picture.content,
        image_extension=picture.extension,
        fields={
            # Six digits: more would let the last bits of another processor's arithmetic into the shard's bytes.
            "soft_label": [round(probability, 6) for probability in label],
            "teacher": teacher,
            "post_id": post.id,
            "url": result.url,
            "sha256": picture.sha256,
            "pdq": picture.pdq,
            "width": picture.width,
            "height": picture.height,
            # Empty where unknown: a field that is null first and text later has no one type for other readers.
            "lang": post.lang or "",
            "created_at": post.created_at or "",
            "source": post.source or "",
            "author": post.author or "",
        },
        text=post.text if keep_text else None,
    )
