import tracemalloc

import pytest

from shards.errors import UserError
from xmodal.posts.post import Media, Post
from xmodal.posts.readers import ReadShare, check_posts_file, posts_fingerprint, read_posts

TEXTS = (
    'id,text\n784000000000000001,"A lovely day, isn\'t it"\n784000000000000002,no picture\n784000000000000003,so sad\n'
)
LIST = """\
id_tweet,path
784000000000000003,78400/784000000000000003-0.jpg
784000000000000001,78400/784000000000000001-0.jpg
"""
SHUFFLED = "data/78400/784000000000000001-1.jpg 2\ndata/78400/784000000000000003-4.jpg 0\n"
SHUFFLED_AGAIN = "data/78400/784000000000000001-0.jpg 2\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "raw_tweets_text.csv").write_text(TEXTS)
    (tmp_path / "README.md").write_text("not posts")
    return tmp_path


def paths(posts: str, posts_format="auto") -> dict[str, list[str]]:
    return {record.post.id: [media.url for media in record.post.media] for record in read_posts(posts, posts_format)}


def told(folder) -> list[tuple]:
    return [
        (record.file, record.line, record.post.id if record.post else record.reason) for record in read_posts(folder)
    ]


def test_the_crawls_files_give_the_posts_that_have_pictures_in_the_order_of_the_texts(folder):
    (folder / "all_imgs.csv").write_text(LIST)
    first, second = read_posts(str(folder))
    assert first.post == Post(
        id="784000000000000001",
        text="A lovely day, isn't it",
        media=(Media(url="78400/784000000000000001-0.jpg"),),
        lang="en",
        source="t4sa",
    )
    assert (second.file, second.line, second.post.id) == ("raw_tweets_text.csv", 4, "784000000000000003")


def test_the_lists_of_b_t4sa_may_be_shuffled_and_several(folder):
    (folder / "b-t4sa_train.txt").write_text(SHUFFLED)
    (folder / "b-t4sa_val.txt").write_text(SHUFFLED_AGAIN + SHUFFLED)
    both = {
        "784000000000000001": ["data/78400/784000000000000001-1.jpg", "data/78400/784000000000000001-0.jpg"],
        "784000000000000003": ["data/78400/784000000000000003-4.jpg"],
    }
    assert paths(str(folder)) == paths(str(folder / "b-t4sa_*.txt")) == paths(str(folder), "t4sa") == both
    assert paths(str(folder / "raw_tweets_text.csv")) == both
    one = {name: found[:1] for name, found in both.items()}
    assert paths(str(folder / "b-t4sa_train.txt")) == one


def test_what_cannot_be_read_has_its_file_and_line(folder):
    (folder / "all_imgs.csv").write_text(LIST + "9,cover.jpg\n\n9,78400/784000000000000009-0.jpg\n")
    with (folder / "raw_tweets_text.csv").open("ab") as texts:
        texts.write(b'784000000000000001,again\nx7,a\n784000000000000003\n"784,open\n7,unlisted\n')
    assert told(str(folder)) == [
        ("all_imgs.csv", 4, "bad_row"),
        ("raw_tweets_text.csv", 2, "784000000000000001"),
        ("raw_tweets_text.csv", 4, "784000000000000003"),
        ("raw_tweets_text.csv", 5, "duplicate_post"),
        ("raw_tweets_text.csv", 6, "bad_row"),
        ("raw_tweets_text.csv", 7, "bad_row"),
        ("raw_tweets_text.csv", 8, "bad_row"),
        ("all_imgs.csv", 6, "no_text"),
    ]


def test_texts_in_a_broken_encoding_or_empty_are_told_with_their_id(folder):
    (folder / "raw_tweets_text.csv").write_bytes(b"784000000000000001,caf\xe9\n784000000000000003,\n")
    (folder / "all_imgs.csv").write_text(LIST)
    found = [(record.reason, record.detail, record.post_id) for record in read_posts(str(folder))]
    assert found == [
        ("bad_row", "text: not UTF-8", "784000000000000001"),
        ("no_text", "text: missing or empty", "784000000000000003"),
    ]


def labels(posts: str) -> dict[str, tuple[float, ...] | None]:
    return {record.post.id: record.post.label for record in read_posts(posts) if record.post}


def test_the_class_that_a_list_gives_all_pictures_of_a_post_is_its_label(folder):
    (folder / "b-t4sa_train.txt").write_text(SHUFFLED)
    assert labels(str(folder)) == {"784000000000000001": (0, 0, 1), "784000000000000003": (1, 0, 0)}
    (folder / "b-t4sa_val.txt").write_text(
        "data/78400/784000000000000001-0.jpg 1\ndata/78400/784000000000000003-4.jpg 0\n"
    )
    assert labels(str(folder)) == {"784000000000000001": None, "784000000000000003": (1, 0, 0)}


def test_a_list_of_the_crawl_has_no_labels(folder):
    (folder / "all_imgs.csv").write_text(LIST)
    assert set(labels(str(folder)).values()) == {None}


@pytest.mark.parametrize("ending", ["", " ", " 3", " 2 x", " 12", ",", " -1"])
def test_what_is_no_class_is_no_label_and_costs_no_picture(folder, ending):
    (folder / "b-t4sa_train.txt").write_text(f"data/78400/784000000000000001-1.jpg{ending}\n")
    assert labels(str(folder)) == {"784000000000000001": None}


def test_the_label_files_of_t4sa_2_give_posts_without_texts(tmp_path):
    train, val = tmp_path / "bal_T4SA2.0_train.csv", tmp_path / "bal_flat_T4SA2.0_val.csv"
    train.write_text("path,label\n15248/1524809976551821312-0.jpg,2\r\n15162/1516286840428539905-3.jpg,1\n,\n")
    val.write_text('path,label\n15248/1524809976551821312-0.jpg,2\n"15248/1524809976551821312-1.jpg",2\n')
    first, second, third = read_posts(str(tmp_path))
    assert (first.file, first.line, first.reason) == (train.name, 4, "bad_row")
    assert second.post == Post(
        id="1516286840428539905",
        text="",
        media=(Media(url="15162/1516286840428539905-3.jpg"),),
        lang="en",
        source="t4sa",
        label=(0, 1, 0),
    )
    assert [media.url[-5] for media in third.post.media] == ["0", "1"]
    assert (third.post.label, third.file, third.line) == ((0, 0, 1), train.name, 2)
    assert posts_fingerprint(str(tmp_path)) != posts_fingerprint(str(train))
    check_posts_file(str(tmp_path), needs_texts=False)
    with pytest.raises(UserError, match=r"has no raw_tweets_text\.csv"):
        check_posts_file(str(tmp_path))


def test_a_table_without_a_header_and_one_with_more_columns_are_read(folder):
    (folder / "all_imgs.csv").write_text(LIST)
    expected = paths(str(folder))
    (folder / "raw_tweets_text.csv").write_text(TEXTS.removeprefix("id,text\n"))
    assert paths(str(folder)) == expected
    (folder / "raw_tweets_text.csv").write_text(",text,id\n0,a,784000000000000001\n1,b,784000000000000003\n")
    assert paths(str(folder)) == expected


def test_missing_files_and_columns_are_errors_that_name_them(folder):
    with pytest.raises(UserError, match="has no list of pictures"):
        check_posts_file(str(folder))
    (folder / "all_imgs.csv").write_text(LIST)
    (folder / "raw_tweets_text.csv").write_text("key,words\n1,a\n")
    with pytest.raises(UserError, match=r"raw_tweets_text\.csv: has no columns id and text"):
        list(read_posts(str(folder)))
    (folder / "raw_tweets_text.csv").unlink()
    with pytest.raises(UserError, match=r"has no raw_tweets_text\.csv"):
        check_posts_file(str(folder / "all_imgs.csv"))


def test_the_fingerprint_is_of_the_texts_and_the_lists(folder):
    (folder / "all_imgs.csv").write_text(LIST)
    before = posts_fingerprint(str(folder))
    (folder / "all_imgs.csv").write_text(LIST.replace("-0.jpg", "-1.jpg"))
    assert posts_fingerprint(str(folder)) != before
    (folder / "all_imgs.csv").write_text(LIST)
    assert posts_fingerprint(str(folder)) == before
    (folder / "raw_tweets_text.csv").write_text(TEXTS.lower())
    assert posts_fingerprint(str(folder)) != before


def test_only_numbers_are_held_of_each_picture(tmp_path):
    def peak_bytes(num_posts: int) -> int:
        ids = range(10**17, 10**17 + num_posts)
        (tmp_path / "raw_tweets_text.csv").write_text("".join(f"{number},{'text ' * 40}\n" for number in ids))
        (tmp_path / "all_imgs.csv").write_text("".join(f"{n},{'folder/' * 20}{n}-0.jpg\n" for n in reversed(ids)))
        tracemalloc.start()
        try:
            assert sum(1 for record in read_posts(str(tmp_path)) if record.post) == num_posts
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak_bytes(1000), peak_bytes(11_000)
    assert (large - small) / 10_000 < 100  # of some 400 that each post takes in the files


@pytest.mark.parametrize("has_texts", [True, False])
def test_how_much_was_read_grows_with_the_posts(tmp_path, has_texts):
    ids = range(10**17, 10**17 + 1000)
    if has_texts:
        (tmp_path / "raw_tweets_text.csv").write_text("".join(f"{number},{'text ' * 40}\n" for number in ids))
    (tmp_path / "b-t4sa_train.txt").write_text("".join(f"data/{number}-0.jpg 2\n" for number in ids))
    read = ReadShare()
    shares = [read.share() for _ in read_posts(str(tmp_path / "b-t4sa_*.txt"), read_share=read)]
    assert shares == sorted(shares)
    assert 0.4 < shares[499] < 0.6
    assert read.share() == 1.0
