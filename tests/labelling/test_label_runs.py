"""Whole runs of `xmodal label` on a real local Ray: teachers, selected posts, hosts that are down, and mistakes."""

import json
import re
from collections import Counter
from typing import Any

import label_command
import made_pictures as made
import pytest
import web_server as web
from label_cases import SECRET, failures, members, post
from tiny_classifier import save_classifier

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.storage import open_storage
from xmodal.labelling import label as driver
from xmodal.labelling.cluster import _common_identity
from xmodal.labelling.config import LabelConfig
from xmodal.teacher.lexicon import LexiconTeacher


@pytest.mark.parametrize("kind", ["transformers", "ensemble"])
def test_a_classifier_labels_on_ray_and_texts_are_kept_where_asked_for(server, tmp_path, ray_folder, kind):
    model = save_classifier(tmp_path / "tiny-bert")
    classifier = {"kind": "transformers", "model": str(model)}
    teacher = classifier if kind == "transformers" else {"kind": kind, "members": [classifier, {"kind": "lexicon"}]}
    urls = [server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(4)]
    texts = ["a great day!", "so sad", "it is\nthe day  ", "not good"]
    posts = [{"id": str(number), "text": texts[number], "media": [urls[number]]} for number in range(4)]
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(label_command.write_posts(tmp_path / "posts.jsonl", [*posts, {"id": "none"}])),
        dataset=str(tmp_path / "dataset"),
        posts_per_unit=2,
        keep_text=True,
        teacher=teacher | {"num_actors": 2},
        fetch={"allow_networks": label_command.LOOPBACK},
    )
    done = label_command.run([*label_command.LABEL, "--config", str(config)], label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr

    from xmodal.teacher.classifier import ClassifierTeacher

    read = ClassifierTeacher(str(model))
    name, expected = "tiny-bert", read.label(texts)
    if kind == "ensemble":
        of_both = zip(expected, LexiconTeacher().label(texts), strict=True)
        name = "mean of tiny-bert, vader"
        expected = [tuple((a + b) / 2 for a, b in zip(*labels, strict=True)) for labels in of_both]
    found = members(tmp_path / "dataset")
    assert sorted(found) == sorted(f"{number}-0.{kind}" for number in range(4) for kind in ("jpg", "json", "txt"))
    for number, label in enumerate(expected):
        fields = json.loads(found[f"{number}-0.json"])
        assert fields["soft_label"] == pytest.approx(label, abs=2e-5)
        assert fields["teacher"]["name"] == name
        assert read.revision in fields["teacher"]["revision"]
        assert found[f"{number}-0.txt"].decode() == texts[number]
    assert [told["reason"] for told in failures(tmp_path / "dataset")] == ["no_text"]


def test_units_are_cut_over_the_selected_posts_of_a_folder_of_pages(server, tmp_path, ray_folder):
    url = server.answer("a.jpg", web.content(made.jpeg()))

    def page(*tweets: dict[str, Any]) -> str:
        media = [{"media_key": "3_1", "type": "photo", "url": url}, {"media_key": "7_1", "type": "video"}]
        return json.dumps({"data": tweets, "includes": {"media": media}}) + "\n"

    def tweet(tweet_id: str, key: str = "3_1", **changes: Any) -> dict[str, Any]:
        text = f"What a lovely {SECRET} day, once more"
        return {"id": tweet_id, "text": text, "lang": "en", "attachments": {"media_keys": [key]}} | changes

    retweeted = {"referenced_tweets": [{"type": "retweeted", "id": "9"}]}
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "b.jsonl").write_text("not JSON\n" + page(tweet("3"), tweet("4", lang="fr")))
    (folder / "a.jsonl").write_text(
        page(tweet("1"), tweet("10", **retweeted), tweet("11", key="7_1"), tweet("12", text=SECRET), tweet("2"))
        + page(tweet("13", key="3_9"))
    )
    config = label_command.write_config(
        tmp_path / "label.yaml",
        posts=str(folder),
        dataset=str(tmp_path / "dataset"),
        posts_per_unit=2,
        select={"languages": ["en"], "min_words": 6, "photos_only": True, "kinds": ["post"]},
        fetch={"allow_networks": ["127.0.0.0/8"]},
    )
    done = label_command.run([*label_command.LABEL, "--config", str(config)], label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr

    dataset = tmp_path / "dataset"
    assert [name for name in members(dataset) if name.endswith(".jpg")] == ["1-0.jpg", "2-0.jpg", "3-0.jpg"]
    assert [shard["samples"] for shard in read_dataset(open_storage(str(dataset)))["shards"]] == [2, 0, 1]
    # Of page a: 1 and 2; then what could not be read of a and of b; then 3.
    assert [(told["file"], told["line"], told["reason"], told["post_id"]) for told in failures(dataset)] == [
        ("a.jsonl", 2, "media_not_included", "13"),
        ("b.jsonl", 1, "bad_json", None),
    ]
    rejected = {"language": 1, "not_a_photo": 1, "repost": 1, "too_few_words": 1}
    assert json.loads((dataset / "dataset.json").read_text())["rejected"] == rejected
    assert re.search(r"left out +1 language, 1 not_a_photo, 1 repost, 1 too_few_words\n", done.stdout)


def test_a_teacher_that_cannot_be_loaded_is_told_in_two_lines(tmp_path, ray_folder):
    posts = label_command.write_posts(tmp_path / "posts.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    settings = {
        "posts": posts,
        "dataset": tmp_path / "d",
        "teacher.kind": "transformers",
        "teacher.model": tmp_path / "none",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    done = label_command.run([*label_command.LABEL, *arguments], label_command.environment(ray_folder))
    # Ray itself says a line or two where the machine has no network.
    first, second = done.stderr.splitlines()[-2:]
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert first.startswith(f"xmodal: teacher.model: {tmp_path}/none: cannot be loaded")
    assert second.strip().startswith("give a Hugging Face hub name")


def test_posts_in_a_compressed_file_that_is_cut_off_end_the_run_in_two_lines(server, tmp_path, ray_folder):
    import gzip

    url = server.answer("a.jpg", web.content(made.jpeg()))
    posts = b"".join(post(str(number), url) + b"\n" for number in range(200))
    (tmp_path / "posts.jsonl.gz").write_bytes(gzip.compress(posts)[:-20])
    arguments = [
        "--posts",
        str(tmp_path / "posts.jsonl.gz"),
        "--dataset",
        str(tmp_path / "d"),
        "--posts_per_unit",
        "20",
        label_command.ALLOW_LOOPBACK,
    ]
    done = label_command.run([*label_command.LABEL, *arguments], label_command.environment(ray_folder))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"xmodal: {tmp_path}/posts.jsonl.gz: not a whole compressed file" in done.stderr


def test_a_host_that_is_down_costs_its_own_units_alone_and_they_are_done_when_it_answers(server, tmp_path, ray_folder):
    good = [server.answer(f"good-{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(24)]
    later = [server.answer(f"later-{number}.jpg", web.content(made.jpeg(seed=100 + number))) for number in range(24)]
    media = [url.rsplit("/", 1)[1] for url in later] + good
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": "fine", "media": [url]} for number, url in enumerate(media)],
    )
    dataset = tmp_path / "dataset"
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={dataset}", "--posts_per_unit=24"]
    command += ["--fetch.max_tries=1", "--fetch.connect_seconds=2", label_command.ALLOW_LOOPBACK]
    command += ["--politeness.patience_seconds=2"]
    variables = label_command.environment(ray_folder)

    down = label_command.run([*command, "--base_url=http://127.0.0.1:9/"], variables)
    assert down.returncode == 2
    assert "Traceback" not in down.stderr
    assert "wait for their pictures: 1; the first is 000000: none of its 24 pictures could be had" in down.stderr
    assert "connection_error" in down.stderr
    assert [path.name for path in dataset.glob("*.tar")] == ["000001.tar"]

    # The recipe holds for what is committed: another base_url would make other samples of the same posts.
    other = label_command.run([*command, f"--base_url={server.base_url}"], variables)
    assert other.returncode == 2
    assert "base_url: begun with 'http://127.0.0.1:9/'" in other.stderr
    gone = label_command.run([*command, "--base_url=http://127.0.0.1:9/", "--commit_outages=true"], variables)
    assert gone.returncode == 0, gone.stderr
    # Those that were asked for until the host as a whole was taken to be down, and the others.
    reasons = Counter(told["reason"] for told in failures(dataset))
    assert reasons.keys() == {"connection_error", "host_down"}
    assert reasons.total() == 24
    assert [path.name for path in sorted(dataset.glob("*.tar"))] == ["000000.tar", "000001.tar"]


def test_a_run_that_committed_nothing_binds_the_next_one_to_nothing(server, tmp_path, ray_folder):
    names = [server.answer(f"{number}.jpg", web.content(made.jpeg(seed=number))) for number in range(24)]
    posts = label_command.write_posts(
        tmp_path / "posts.jsonl",
        [{"id": str(number), "text": "fine", "media": [url.rsplit("/", 1)[1]]} for number, url in enumerate(names)],
    )
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'dataset'}"]
    variables = label_command.environment(ray_folder)
    forgotten = label_command.run(command, variables)
    assert forgotten.returncode == 2
    assert "none of its 24 pictures could be had (bad_url)" in forgotten.stderr
    assert "base_url" in forgotten.stderr.splitlines()[-1]
    command.append(f"--base_url={server.base_url}")
    not_allowed = label_command.run(command, variables)
    assert not_allowed.returncode == 2
    assert "none of its 24 pictures could be had (forbidden_address)" in not_allowed.stderr
    assert "fetch.allow_networks" in not_allowed.stderr.splitlines()[-1]
    mended = label_command.run([*command, label_command.ALLOW_LOOPBACK], variables)
    assert mended.returncode == 0, mended.stderr
    assert len(list((tmp_path / "dataset").glob("*.tar"))) == 1


@pytest.mark.parametrize("base_url", ["http://", "http://[x", "ftp://host/", "host/folder"])
def test_a_base_url_without_a_host_is_refused_at_once(tmp_path, base_url):
    with pytest.raises(UserError, match="base_url"):
        LabelConfig(posts="posts.jsonl", dataset=str(tmp_path), base_url=base_url)


def test_a_folder_of_pictures_that_is_not_there_is_told_at_once(tmp_path):
    posts = label_command.write_posts(tmp_path / "posts.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    config = LabelConfig(posts=str(posts), dataset=str(tmp_path / "dataset"), media_folder=str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: no such folder"):
        driver.label(config)
    assert not (tmp_path / "dataset").exists()


def test_pictures_are_fetched_or_read_from_a_folder_and_not_both():
    with pytest.raises(UserError, match="media_folder: 'm' has no effect with base_url"):
        LabelConfig(posts="p", dataset="d", media_folder="m", base_url="http://example.org/")


def test_a_ray_address_where_nothing_listens_is_told_at_once(tmp_path, ray_folder):
    posts = label_command.write_posts(tmp_path / "p.jsonl", [{"id": "1", "text": "fine", "media": ["http://a/b.jpg"]}])
    command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'd'}", "--ray_address=127.0.0.1:9"]
    done = label_command.run(command, label_command.environment(ray_folder), seconds=60)
    label_command.assert_told_in_two_lines(done, "ray_address: 127.0.0.1:9: no Ray cluster answers")


@pytest.mark.parametrize("folder", ["/proc/1", "/dev/null", "/dev/null/below"])
def test_a_dataset_that_cannot_be_written_is_told_in_two_lines(tmp_path, capsys, folder):
    posts = label_command.write_posts(tmp_path / "p.jsonl", [{"id": "1", "text": "fine", "media": ["http://a/b.jpg"]}])
    label_command.assert_refused(capsys, [f"--posts={posts}", f"--dataset={folder}"], folder)


def test_teachers_that_differ_from_node_to_node_are_refused():
    same = {"name": "model", "revision": "a"}
    assert _common_identity([same, dict(same)]) == same
    with pytest.raises(UserError, match=r"teacher\.model: one node has"):
        _common_identity([same, same | {"revision": "b"}])
