import re
import threading
import time
from contextlib import contextmanager

import collecting
import pytest
import stream_servers
from collecting import collected, events, ids

from shards.errors import UserError
from xmodal.posts.readers import read_posts


@contextmanager
def publishing(service, *batches):
    """Publish each batch once one more stream is open; a batch is events, or a callable."""

    def publish():
        for number, batch in enumerate(batches, start=1):
            service.feed.wait_for_streams(number)
            batch() if callable(batch) else service.feed.publish(*batch)

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()


def test_what_is_selected_of_a_stream_is_written_in_its_order(source, service, tmp_path):
    published = [
        *events(source, 1, 2),
        *events(source, 3, text="two"),
        *events(source, 4, photo=False),
        *events(source, 5, 2, 6),
    ]
    select = {"languages": ["en"], "min_words": 6, "photos_only": True, "kinds": ["post"]}
    with publishing(service, published):
        summary = collecting.run(source, service.url, tmp_path, max_posts=4, select=select)
    assert collected(tmp_path) == ids(source, 1, 2, 5, 6)
    assert summary.posts == 4
    assert summary.rejected == {"too_few_words": 1, "no_media": 1, "duplicate_post": 1}
    (name,) = summary.files
    assert re.fullmatch(rf"{source}-\d{{8}}T\d{{6}}Z-000001\.jsonl\.zst", name)
    post = next(read_posts(str(tmp_path / name))).post
    assert (post.source, post.lang, post.kind) == (source, "en", "post")
    assert post.text == "a quite long text of a good day 1"
    assert post.media[0].url.startswith("https://")


def test_the_folder_of_a_collection_is_read_as_posts(source, service, tmp_path):
    with publishing(service, events(source, *range(1, 8))):
        collecting.run(source, service.url, tmp_path, max_posts=7, files={"posts_per_file": 3})
    assert [record.post.id for record in read_posts(str(tmp_path))] == ids(source, *range(1, 8))


def test_a_cut_connection_costs_no_post_and_doubles_none(source, service, tmp_path):
    service.feed.drop_after = [3, 0, 4]
    # 4 and 5 are published before the stream is cut and never sent by it, 6 and 7 while there is none.
    with publishing(service, events(source, 1, 2, 3, 4, 5), events(source, 6, 7), events(source, 8, 9)):
        summary = collecting.run(source, service.url, tmp_path, max_posts=9)
    assert collected(tmp_path) == ids(source, *range(1, 10))
    assert summary.posts == 9
    assert service.feed.open_streams >= 3


def test_a_second_run_goes_on_where_the_first_one_stopped(source, service, tmp_path):
    with publishing(service, events(source, 1, 2, 3)):
        collecting.run(source, service.url, tmp_path, max_posts=3)
    service.feed.publish(*events(source, 4, 5))
    collecting.run(source, service.url, tmp_path, max_posts=2)
    assert collected(tmp_path) == ids(source, 1, 2, 3, 4, 5)


def test_a_second_run_writes_no_post_of_the_first_again_even_without_a_cursor(source, service, tmp_path):
    with publishing(service, events(source, 1, 2, 3)):
        collecting.run(source, service.url, tmp_path, max_posts=3)
    (tmp_path / "state.json").unlink()
    with publishing(service, [], events(source, 2, 3, 4)):
        summary = collecting.run(source, service.url, tmp_path, max_posts=1)
    assert collected(tmp_path) == ids(source, 1, 2, 3, 4)
    assert summary.rejected == {"duplicate_post": 2}


def test_a_refusal_is_obeyed_before_the_next_connection(source, service, tmp_path):
    # X tells when its limit is reset, the others how long to wait.
    reset = int(time.time()) + 3
    header = {"x-rate-limit-reset": str(reset)} if source == "x" else {"Retry-After": "2"}
    service.feed.refusals = [(429, header)]
    with publishing(service, events(source, 1)):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    refused, accepted = service.feed.times
    assert accepted >= reset if source == "x" else accepted - refused >= 2
    assert collected(tmp_path) == ids(source, 1)


def test_an_error_of_the_server_is_no_end(source, service, tmp_path):
    service.feed.refusals = [(503, {}), (500, {})]
    with publishing(service, events(source, 1)):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    assert len(service.feed.connections) == 3


def test_a_silent_stream_is_connected_again(source, service, tmp_path):
    service.feed.silent = True

    def speak():
        service.feed.silent = False
        service.feed.publish(*events(source, 1))

    with publishing(service, [], speak):
        collecting.run(source, service.url, tmp_path, max_posts=1, reconnect={"stall_seconds": 1.0})
    assert service.feed.open_streams == 2


@pytest.mark.parametrize("source", ["x", "mastodon"])
def test_keep_alives_hold_a_quiet_stream_open(source, service, tmp_path):
    collecting.run(source, service.url, tmp_path, max_seconds=2.5, reconnect={"stall_seconds": 1.0})
    assert service.feed.open_streams == 1


@pytest.mark.parametrize("source", ["x", "mastodon"])
def test_a_bad_token_is_the_users_to_mend_and_is_not_shown(source, service, tmp_path, monkeypatch):
    variable = {"x": "X_BEARER_TOKEN", "mastodon": "MASTODON_ACCESS_TOKEN"}[source]
    monkeypatch.setenv(variable, "wrong-secret")
    with pytest.raises(UserError, match="401") as caught:
        collecting.run(source, service.url, tmp_path)
    assert variable in caught.value.remedy
    assert "wrong-secret" not in str(caught.value)
    assert len(service.feed.connections) == 1
    monkeypatch.delenv(variable)
    with pytest.raises(UserError, match="not set"):
        collecting.run(source, service.url, tmp_path)


@pytest.mark.parametrize("status", [400, 404])
def test_an_answer_that_will_not_change_is_the_users_to_mend(source, service, tmp_path, status):
    service.feed.refusals = [(status, {})]
    with pytest.raises(UserError, match=str(status)):
        collecting.run(source, service.url, tmp_path)


@pytest.mark.parametrize("source", ["x"])
def test_a_token_that_is_revoked_costs_nothing_of_what_came_before(source, service, tmp_path):
    service.feed.drop_after = [2]

    def revoke():
        service.feed.refusals.append((401, {}))
        service.feed.publish(*events(source, 1, 2))

    with publishing(service, revoke), pytest.raises(UserError, match="401"):
        collecting.run(source, service.url, tmp_path, files={"flush_seconds": 60.0})
    assert collected(tmp_path) == ids(source, 1, 2)


def test_files_end_by_the_number_of_their_posts(source, service, tmp_path):
    with publishing(service, events(source, *range(1, 11))):
        summary = collecting.run(source, service.url, tmp_path, max_posts=10, files={"posts_per_file": 4})
    sizes = [len(list(read_posts(str(tmp_path / name)))) for name in summary.files]
    assert sizes == [4, 4, 2]
    assert collected(tmp_path) == ids(source, *range(1, 11))


@pytest.mark.parametrize("source", ["mastodon", "bluesky"])
def test_a_post_deleted_while_its_file_grows_is_not_in_it_and_all_deletions_are_listed(source, service, tmp_path):
    published = [
        *events(source, 1, 2),
        stream_servers.deletion_of(source, 1, at=3),
        stream_servers.deletion_of(source, 77, at=3),
        *events(source, 4),
    ]
    with publishing(service, published):
        summary = collecting.run(source, service.url, tmp_path, max_posts=3)
    assert collected(tmp_path) == ids(source, 2, 4)
    assert (summary.posts, summary.removed, summary.deletions) == (2, 1, 2)
    assert [record["id"] for record in collecting.lines(tmp_path / "deleted")] == ids(source, 1, 77)


@pytest.mark.parametrize("source", ["bluesky"])
def test_a_deleted_account_is_listed(source, service, tmp_path):
    with publishing(service, [stream_servers.account_deletion(1, at=1), *events(source, 2)]):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    assert [record["author"] for record in collecting.lines(tmp_path / "deleted")] == ["did:plc:author1"]


@pytest.mark.parametrize("source", ["bluesky"])
def test_posts_of_an_account_that_is_deleted_while_their_file_grows_are_not_in_it(source, service, tmp_path):
    published = [*events(source, 1, 2), stream_servers.account_deletion(1, at=3), *events(source, 4)]
    with publishing(service, published):
        summary = collecting.run(source, service.url, tmp_path, max_posts=3)
    assert collected(tmp_path) == ids(source, 2, 4)
    assert summary.removed == 1


@pytest.mark.parametrize("source", ["x"])
def test_x_is_asked_for_what_the_paper_asked_and_for_a_backfill_only_after_a_gap(source, service, tmp_path):
    service.feed.drop_after = [1]
    with publishing(service, events(source, 1), events(source, 2)):
        collecting.run(source, service.url, tmp_path, max_posts=2)
    first, second = service.feed.connections
    for wanted in ("expansions=attachments.media_keys%2Creferenced_tweets.id%2Cauthor_id", "note_tweet", "media_key"):
        assert wanted in first
    assert "backfill_minutes" not in first
    assert "backfill_minutes=2" in second


@pytest.mark.parametrize("source", ["x"])
def test_rules_of_the_config_are_set_and_what_only_others_match_is_left_out(source, service, tmp_path):
    service.feed.rules = [
        {"id": "1", "value": "cats has:images", "tag": "xmodal"},
        {"id": "2", "value": "dogs", "tag": "xmodal"},
        {"id": "3", "value": "birds", "tag": "a colleague's"},
    ]
    ours, theirs = {"matching_rules": [{"id": "1", "tag": "xmodal"}]}, {"matching_rules": [{"id": "3", "tag": "birds"}]}
    first, second, third = events(source, 1, 2, 3)
    with publishing(service, [first | ours, second | theirs, third | ours]):
        collecting.run(source, service.url, tmp_path, max_posts=2, x={"rules": ["cats has:images", "fish"]})
    assert collected(tmp_path) == ids(source, 1, 3)
    assert {rule["value"] for rule in service.feed.rules} == {"cats has:images", "birds", "fish"}
    assert service.feed.connections[0].startswith("/2/tweets/search/stream?")


@pytest.mark.parametrize("source", ["mastodon"])
def test_a_hashtag_of_mastodon_is_followed_and_caught_up(source, service, tmp_path):
    service.feed.drop_after = [1]
    mastodon = {"hashtag": "cats", "local": True}
    with publishing(service, events(source, 1), events(source, 2)):
        collecting.run(source, service.url, tmp_path, max_posts=2, mastodon=mastodon)
    assert service.feed.connections[0] == "/api/v1/streaming/hashtag/local?tag=cats"
    assert any(path.startswith("/api/v1/timelines/tag/cats?") for path in service.feed.other_requests)


@pytest.mark.parametrize("source", ["mastodon"])
def test_mastodon_catches_up_over_many_pages(source, service, tmp_path):
    with publishing(service, events(source, 1)):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    service.feed.publish(*events(source, *range(2, 100)))
    collecting.run(source, service.url, tmp_path, max_posts=98)
    assert collected(tmp_path) == ids(source, *range(1, 100))
    first = next(record for record in collecting.lines(tmp_path) if record["id"] == ids(source, 1)[0])
    later = next(record for record in collecting.lines(tmp_path) if record["id"] == ids(source, 2)[0])
    assert first["created_at"] == later["created_at"]  # one from the stream, one from a page


def test_events_that_are_broken_or_strange_end_nothing(source, service, tmp_path):
    strange = {
        "x": [{}, {"data": []}, {"data": {"id": 7}}, {"data": "x"}, {"errors": []}],
        "mastodon": [{"event": "update", "data": text} for text in ("{", "[]", "null", '{"id": "1"}')]
        + [{"event": "announcement", "data": "1"}, {"event": "delete", "data": ""}],
        "bluesky": [{}, {"time_us": True, "did": "d"}, {"time_us": 1, "did": "d", "kind": "identity"}],
    }[source]
    with publishing(service, [*strange, *events(source, 1)]):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    assert collected(tmp_path) == ids(source, 1)
    assert service.feed.open_streams == 1


@pytest.mark.parametrize("source", ["x"])
def test_a_disconnect_that_x_announces_is_no_end(source, service, tmp_path):
    notice = {"errors": [{"title": "operational-disconnect", "disconnect_type": "UpstreamOperationalDisconnect"}]}
    with publishing(service, [*events(source, 1), notice], events(source, 2)):
        service.feed.drop_after = []
        # A backfill would bring the notice again, as no real one does.
        collecting.run(source, service.url, tmp_path, max_posts=2, x={"backfill_minutes": 0})
    assert collected(tmp_path) == ids(source, 1, 2)


def test_progress_has_counts_and_no_texts(source, service, tmp_path, caplog):
    caplog.set_level("INFO")
    with publishing(service, events(source, 1, 2)):
        collecting.run(source, service.url, tmp_path, max_posts=2, progress_seconds=1e-9)
    assert f"{source}: 2 posts" in caplog.text
    assert "good day" not in caplog.text
    assert stream_servers.TOKEN not in caplog.text


@pytest.mark.parametrize("source", ["bluesky"])
def test_a_folder_serves_one_source_and_one_process(source, service, tmp_path):
    with publishing(service, events(source, 1)):
        collecting.run(source, service.url, tmp_path, max_posts=1)
    with pytest.raises(UserError, match="holds a collection from bluesky"):
        collecting.run("x", "http://127.0.0.1:9", tmp_path)
    thread = threading.Thread(target=collecting.run, args=(source, service.url, tmp_path), kwargs={"max_seconds": 3.0})
    thread.start()
    service.feed.wait_for_streams(2)
    with pytest.raises(UserError, match="another process"):
        collecting.run(source, service.url, tmp_path)
    thread.join()


@pytest.mark.parametrize("source", ["bluesky"])
def test_a_folder_that_cannot_be_is_the_users_to_mend(source, service, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        collecting.run(source, service.url, tmp_path / "file" / "folder")


@pytest.mark.parametrize("source", ["bluesky"])
def test_a_state_that_is_none_is_the_users_to_mend(source, service, tmp_path):
    for content in ("{", "[]", "{}", '{"source": "bluesky", "cursor": 3, "num_files_begun": 1}'):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(UserError, match="not the state of a collection"):
            collecting.run(source, service.url, tmp_path)
