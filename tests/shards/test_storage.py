"""Local storage: what is committed is visible once and whole; mistakes are errors that a user can read."""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from unreadable import make_too_deep, without_rights

from shards.errors import ConfigError, UserError
from shards.storage import TEMPORARY_PREFIX, LocalStorage, open_folder_of, open_storage


def commit(storage: LocalStorage, name: str, content: bytes) -> bool:
    temporary = storage.new_temporary(name)
    temporary.write_bytes(content)
    return storage.commit(temporary, name)


def test_a_committed_file_is_visible_under_its_name(storage: LocalStorage) -> None:
    assert commit(storage, "a.tar", b"content")
    assert storage.read("a.tar") == b"content"
    assert storage.size("a.tar") == 7
    assert storage.exists("a.tar")
    assert storage.names() == ["a.tar"]


def test_objects_of_folders_below_are_listed_in_the_same_order_each_time(storage: LocalStorage) -> None:
    for name in ("b/x.jpg", "b/c/y.jpg", "a.jpg", "z.jpg", ".hidden", ".hidden-folder/h.jpg", "b/.h.jpg"):
        (storage.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (storage.folder / name).write_bytes(b"")
    (storage.folder / "b" / "circle").symlink_to(storage.folder)
    assert list(storage.names_below()) == ["a.jpg", "b/c/y.jpg", "b/x.jpg", "z.jpg"]
    assert storage.read("b/c/y.jpg") == b""


def test_what_is_in_a_folder_comes_where_the_folders_own_name_does(storage: LocalStorage) -> None:
    # A dot comes before a slash: by their whole paths they would be in another order.
    for name in ("a.jpg", "a/x.jpg", "a-/x.jpg"):
        (storage.folder / name).parent.mkdir(exist_ok=True)
        (storage.folder / name).write_bytes(b"")
    assert list(storage.names_below()) == ["a/x.jpg", "a-/x.jpg", "a.jpg"]


def test_a_folder_below_that_cannot_be_listed_is_named_and_does_not_hide_the_others(
    storage: LocalStorage, public_folder: Path
) -> None:
    deep = make_too_deep(storage.folder / "b")
    for name in ("a", "c"):
        storage.replace(name, b"")
    assert list(storage.names_below()) == ["a", f"{deep}/", "c"]

    for name in ("a/x", "b/x", "c/x"):
        (public_folder / name).parent.mkdir()
        (public_folder / name).write_bytes(b"")
    (public_folder / "b").chmod(0o300)
    with without_rights():
        assert list(LocalStorage(public_folder).names_below()) == ["a/x", "b/", "c/x"]
        # Of the folder itself nothing else could be said.
        with pytest.raises(PermissionError):
            list(LocalStorage(public_folder / "b").names_below())


def test_a_link_that_cannot_be_followed_is_named_and_reading_it_says_why(storage: LocalStorage) -> None:
    (storage.folder / "circle.jpg").symlink_to("circle.jpg")
    (storage.folder / "nowhere.jpg").symlink_to("none")
    assert list(storage.names_below()) == ["circle.jpg"]
    with pytest.raises(OSError, match="Too many levels"):
        storage.read("circle.jpg")


def test_a_second_commit_is_told_so_and_leaves_the_first_ones_bytes(storage: LocalStorage) -> None:
    assert commit(storage, "a.tar", b"first")
    assert not commit(storage, "a.tar", b"second")
    assert storage.read("a.tar") == b"first"


def test_a_commit_leaves_no_temporary_file_whoever_wins(storage: LocalStorage) -> None:
    commit(storage, "a.tar", b"first")
    commit(storage, "a.tar", b"second")
    assert os.listdir(storage.folder) == ["a.tar"]


def test_a_reader_that_has_a_shard_open_keeps_it_while_others_try_to_commit(storage: LocalStorage) -> None:
    commit(storage, "a.tar", b"first")
    with open(storage.folder / "a.tar", "rb") as file:
        commit(storage, "a.tar", b"second")
        assert file.read() == b"first"
        assert os.fstat(file.fileno()).st_ino == (storage.folder / "a.tar").stat().st_ino


def test_of_many_threads_exactly_one_wins_each_name(storage: LocalStorage) -> None:
    names = [f"{number:03d}.tar" for number in range(25)]
    barrier = threading.Barrier(8)
    wins: dict[str, list[bytes]] = {name: [] for name in names}

    def race(content: bytes) -> None:
        for name in names:
            barrier.wait()
            if commit(storage, name, content):
                wins[name].append(content)

    threads = [threading.Thread(target=race, args=(b"%d" % number * 100,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert wins[name] == [storage.read(name)]


RACE = """
import sys, time, pathlib
from shards.storage import LocalStorage
storage, me = LocalStorage(sys.argv[1]), sys.argv[2].encode() * 1000
pathlib.Path(sys.argv[1], f"ready-{sys.argv[2]}").touch()
while not storage.exists("go"):
    time.sleep(0.001)
for number in range(40):
    temporary = storage.new_temporary(f"{number}.tar")
    temporary.write_bytes(me)
    if storage.commit(temporary, f"{number}.tar"):
        print(number)
"""


def test_of_many_processes_exactly_one_wins_each_name(storage: LocalStorage) -> None:
    processes = {
        me: subprocess.Popen(
            [sys.executable, "-c", RACE, str(storage.folder), me], stdout=subprocess.PIPE, text=True, cwd="/"
        )
        for me in "abc"
    }
    deadline = time.monotonic() + 60
    while not all(storage.exists(f"ready-{me}") for me in processes):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    storage.replace("go", b"")
    won = [(int(number), me) for me, process in processes.items() for number in process.communicate()[0].split()]
    assert all(process.returncode == 0 for process in processes.values())
    assert sorted(number for number, _ in won) == list(range(40))
    for number, me in won:
        assert storage.read(f"{number}.tar") == me.encode() * 1000


def test_replace_puts_new_content_in_the_place_of_the_old(storage: LocalStorage) -> None:
    storage.replace("view.json", b"old")
    storage.replace("view.json", b"new")
    assert storage.read("view.json") == b"new"
    assert os.listdir(storage.folder) == ["view.json"]


def test_a_file_is_copied_to_the_place_of_another(storage: LocalStorage, tmp_path: Path) -> None:
    for content in (b"old", os.urandom(3_000_000)):
        (tmp_path / "file").write_bytes(content)
        storage.put_file("a", tmp_path / "file")
        assert storage.read("a") == (tmp_path / "file").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        storage.put_file("a", tmp_path / "none")
    assert os.listdir(storage.folder) == ["a"]


def test_a_reader_sees_all_of_the_old_or_all_of_the_new_content(storage: LocalStorage) -> None:
    contents = [bytes([number]) * 200_000 for number in range(30)]
    storage.replace("view.json", contents[0])
    seen = set()
    finished = threading.Event()

    def read() -> None:
        while not finished.is_set():
            seen.add(storage.read("view.json"))

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        storage.replace("view.json", content)
    finished.set()
    reader.join()
    assert seen
    assert seen <= set(contents)


def test_a_replace_that_is_cut_off_leaves_the_old_content(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.replace("view.json", b"old")

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        storage.replace("view.json", b"new")
    assert storage.read("view.json") == b"old"
    assert storage.names() == ["view.json"]


def test_no_reader_takes_a_temporary_file_for_a_shard(storage: LocalStorage) -> None:
    temporary = storage.new_temporary("000001.tar")
    temporary.write_bytes(b"half")
    storage.replace(f"{TEMPORARY_PREFIX}000001.failures-0", b"staged")
    assert not temporary.match("*.tar")
    assert list(storage.folder.glob("*.tar")) == []
    assert storage.names() == storage.names(".tar") == []


def test_two_temporary_files_of_one_name_do_not_collide(storage: LocalStorage) -> None:
    assert storage.new_temporary("a.tar") != storage.new_temporary("a.tar")


def test_leftovers_are_dropped_and_counted_and_nothing_else_is(storage: LocalStorage) -> None:
    commit(storage, "a.tar", b"content")
    for _ in range(3):
        storage.new_temporary("a.tar").write_bytes(b"half")
    assert storage.discard_leftovers(0) == 3
    assert os.listdir(storage.folder) == ["a.tar"]
    assert storage.discard_leftovers(0) == 0


def test_a_temporary_file_of_a_writer_that_may_live_is_left_alone(storage: LocalStorage) -> None:
    living, dead = storage.new_temporary("a.tar"), storage.new_temporary("b.tar")
    for path in (living, dead):
        path.write_bytes(b"half")
    os.utime(dead, (time.time() - 100, time.time() - 100))
    assert storage.discard_leftovers(60) == 1
    assert storage.commit(living, "a.tar")
    assert not dead.exists()


def test_a_temporary_file_that_was_swept_away_is_written_again(storage: LocalStorage, monkeypatch) -> None:
    replace = os.replace

    def sweep_and_replace(temporary: Path, final: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        assert storage.discard_leftovers(60, {"a.parquet"}) == 1
        replace(temporary, final)

    monkeypatch.setattr(os, "replace", sweep_and_replace)
    storage.replace("a.parquet", b"index")
    assert storage.read("a.parquet") == b"index"
    assert os.listdir(storage.folder) == ["a.parquet"]


def test_a_temporary_file_of_a_committed_name_goes_whatever_its_age_and_its_writer_has_lost(
    storage: LocalStorage,
) -> None:
    late, other = storage.new_temporary("a.tar"), storage.new_temporary("a.tar.tar")
    for path in (late, other):
        path.write_bytes(b"half")
    commit(storage, "a.tar", b"content")
    assert storage.discard_leftovers(60, {"a.tar"}) == 1
    assert not late.exists()
    assert not storage.commit(late, "a.tar")
    assert storage.read("a.tar") == b"content"
    assert storage.commit(other, "a.tar.tar")


def test_a_temporary_file_that_is_gone_with_nothing_committed_is_an_error(storage: LocalStorage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.commit(storage.new_temporary("a.tar"), "a.tar")


def test_names_are_sorted_and_leave_out_folders_and_hidden_files(storage: LocalStorage) -> None:
    for name in ("b.tar", "a.tar", "a.json", ".hidden.tar"):
        storage.replace(name, b"")
    (storage.folder / "c.tar").mkdir()
    assert storage.names(".tar") == ["a.tar", "b.tar"]
    assert not storage.exists("c.tar")


def test_a_range_is_the_slice_of_the_whole(storage: LocalStorage) -> None:
    content = bytes(range(256)) * 20
    storage.replace("a.tar", content)
    assert storage.read_range("a.tar", 0, len(content)) == content
    assert storage.read_range("a.tar", 300, 700) == content[300:1000]
    assert storage.read_range("a.tar", 17, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (5000, 1)])
def test_a_range_past_the_end_is_an_error_that_names_the_file(storage: LocalStorage, offset: int, length: int) -> None:
    storage.replace("a.tar", bytes(100))
    with pytest.raises(OSError, match=r"a\.tar: ends before"):
        storage.read_range("a.tar", offset, length)


def test_what_is_not_there_is_a_file_not_found_error(storage: LocalStorage) -> None:
    for look in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            look("a.tar")
    storage.delete("a.tar")
    storage.discard(storage.new_temporary("a.tar"))


def test_a_folder_is_made_where_that_is_asked_for(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "new" / "folder", create=True)
    assert storage.names() == []
    assert storage.url == str(tmp_path / "new" / "folder")


def test_a_missing_folder_is_a_users_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as caught:
        open_storage(tmp_path / "missing")
    assert str(tmp_path / "missing") in caught.value.what
    assert caught.value.remedy
    assert not (tmp_path / "missing").exists()


def test_a_file_url_is_the_folder_that_it_names(tmp_path: Path) -> None:
    assert open_storage(f"file://{tmp_path}").url == str(tmp_path)


@pytest.mark.parametrize("url", ["gs://bucket", "https://host/folder"])
def test_a_scheme_that_is_not_supported_is_a_users_error(url: str) -> None:
    scheme = url.partition("://")[0]
    with pytest.raises(UserError, match=f"'{scheme}' is not supported"):
        open_storage(url, create=True)


def test_a_users_error_reads_as_what_is_wrong_and_what_to_do() -> None:
    assert str(UserError("a: wrong", "do b")).split("\n") == ["a: wrong", "        do b"]


def test_a_config_error_names_its_file_its_whole_key_and_the_value() -> None:
    error = ConfigError("lr", 3, "is out of range (0, 1]").within("optimizer").of("train.yaml")
    assert isinstance(error, UserError)
    assert error.what == "train.yaml: optimizer.lr: 3 is out of range (0, 1]"
    assert "--optimizer.lr VALUE" in error.remedy


@pytest.mark.parametrize("error", [UserError("a: wrong", "do b"), ConfigError("lr", 3, "is too large", "train.yaml")])
def test_an_error_comes_whole_out_of_another_process(error: UserError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert str(other) == str(error)


def test_a_file_lies_in_the_folder_of_its_path_which_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file, folder in (
        ("a.json", Path()),
        ("new/folder/a.json", Path("new/folder")),
        (tmp_path / "p" / "a.json", tmp_path / "p"),
        (f"file://{tmp_path}/q/a.json", tmp_path / "q"),
        ("/a.json", Path("/")),
        ("file:///a.json", Path("/")),
    ):
        storage, name = open_folder_of(file)
        assert (storage.url, name) == (str(folder), "a.json")
        assert folder.is_dir()


@pytest.mark.parametrize("file", ["", "folder/", "s3://bucket", "s3://bucket/prefix/", "file://", "gs://bucket/a"])
def test_what_names_no_file_is_told_and_makes_no_folder(file: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names no file|storage scheme 'gs' is not supported"):
        open_folder_of(file)
    assert not list(tmp_path.iterdir())
