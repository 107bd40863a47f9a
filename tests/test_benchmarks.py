import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_pictures
import pytest
from unreadable import without_rights

from shards.errors import UserError
from xmodal.benchmarks import known_benchmarks, load_benchmark, load_definition, read_benchmark

ROOT = Path(__file__).parent.parent


def write(folder: Path, table: str | bytes, settings: str = "") -> str:
    """A benchmark with the pictures flat/{a,b}.png and solid/{a,b}.png, and the given table."""
    for style in ("flat", "solid"):
        (folder / "images" / style).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            (folder / "images" / style / f"{name}.png").write_bytes(made_pictures.png())
    (folder / "table.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    file = folder / "made.yaml"
    file.write_text(f"name: made\nimages: {folder / 'images'}\nlabels: {folder / 'table.csv'}\n{settings}")
    return str(file)


def classed(folder: Path, table: str, classes: str = "{0: negative, 2: positive}", name: str = "table.csv") -> str:
    """The same with classes, and the table under another name."""
    file = Path(write(folder, table, f"classes: {classes}\n"))
    (folder / "table.csv").rename(folder / name)
    file.write_text(file.read_text().replace("table.csv", name))
    return str(file)


def complaint(file: str) -> list[str]:
    """What is wrong and what to do, as the user reads it."""
    with pytest.raises(UserError) as caught:
        load_benchmark(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    return lines


TABLE = "path,score\nflat/a.png,0.5\nsolid/a.png,0.5\nflat/b.png,-1\nsolid/b.png,-1\n"


def test_paths_and_scores_are_read_in_the_order_of_the_table(tmp_path):
    benchmark = load_benchmark(write(tmp_path, TABLE))
    assert benchmark.paths == ["flat/a.png", "solid/a.png", "flat/b.png", "solid/b.png"]
    assert benchmark.scores.tolist() == [0.5, 0.5, -1, -1]
    assert benchmark.image_path(1) == tmp_path / "images" / "solid" / "a.png"


def test_what_is_no_path_of_a_picture_is_missing(tmp_path):
    # A column of captions, given as that of paths.
    caption = "a dog on a beach, " * 20
    table = f'path,score\nflat/a.png,1\n"{caption}",-1\nflat/a.png/b.png,1\n'
    assert read_benchmark(write(tmp_path, table)).missing.tolist() == [False, True, True]
    what, _ = complaint(write(tmp_path, table))
    assert "no such picture (2 of 3 are missing)" in what


def test_pictures_in_a_folder_that_may_not_be_looked_into_are_missing(public_folder):
    file = write(public_folder, TABLE)
    (public_folder / "images" / "flat").chmod(0o600)
    with without_rights():
        assert read_benchmark(file).missing.tolist() == [True, False, True, False]


def test_without_a_pattern_every_picture_is_a_group(tmp_path):
    assert load_benchmark(write(tmp_path, TABLE)).groups.tolist() == [0, 1, 2, 3]


def test_a_pattern_names_the_group_of_a_picture(tmp_path):
    benchmark = load_benchmark(write(tmp_path, TABLE, r"group_pattern: '([^/]+)\.png$'"))
    assert benchmark.groups.tolist() == [0, 0, 1, 1]


def test_a_picture_that_the_pattern_does_not_match_is_a_group_by_itself(tmp_path):
    benchmark = load_benchmark(write(tmp_path, TABLE, "group_pattern: '(flat)/'"))
    groups = benchmark.groups.tolist()
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3


def test_columns_may_have_other_names_and_others_beside_them(tmp_path):
    settings = "path_column: file\nscore_column: mean\n"
    benchmark = load_benchmark(write(tmp_path, "mean,note,file\n0.25,x,flat/a.png\n", settings))
    assert (benchmark.paths, benchmark.scores.tolist()) == (["flat/a.png"], [0.25])


def test_the_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(tmp_path):
    assert load_benchmark(write(tmp_path, "\ufeff" + TABLE)).scores.tolist() == [0.5, 0.5, -1, -1]


def test_the_emoji_benchmark_has_798_pictures_in_399_groups(monkeypatch):
    monkeypatch.chdir(ROOT)
    benchmark = load_benchmark("configs/benchmarks/emoji.yaml")
    assert len(benchmark.paths) == len(benchmark.scores) == len(benchmark.groups) == 798
    assert len(set(benchmark.groups.tolist())) == 399
    of_group = {group: set(benchmark.scores[benchmark.groups == group].tolist()) for group in benchmark.groups}
    assert all(len(scores) == 1 for scores in of_group.values())


def test_a_missing_definition_is_named(tmp_path):
    assert str(tmp_path / "none.yaml") in complaint(str(tmp_path / "none.yaml"))[0]


def test_a_missing_table_is_named_with_the_definition(tmp_path):
    file = write(tmp_path, TABLE)
    (tmp_path / "table.csv").unlink()
    what, _ = complaint(file)
    assert what.startswith(f"{file}: labels: ")
    assert "table.csv" in what


@pytest.mark.parametrize("table", ["", "path,score\n"])
def test_a_table_without_rows_is_refused(tmp_path, table):
    assert "table.csv: no rows" in complaint(write(tmp_path, table))[0]


def test_a_missing_column_is_named_with_those_there(tmp_path):
    what, remedy = complaint(write(tmp_path, "path,mean\nflat/a.png,1\n"))
    assert what.endswith("table.csv: no column 'score'")
    assert "['path', 'mean']" in remedy


@pytest.mark.parametrize("score", ["good", "", "nan", "inf", '"1,5"'])
def test_a_score_that_is_no_number_is_named_with_its_line_and_column(tmp_path, score):
    what, _ = complaint(write(tmp_path, f"path,score\nflat/a.png,1\nsolid/a.png,{score}\n"))
    assert "table.csv: line 3: score: " in what


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    what, _ = complaint(write(tmp_path, 'path,score,note\n\nflat/a.png,1,"two\nlines"\n\nflat/b.png,x,\n'))
    assert "table.csv: line 6: score: 'x'" in what


@pytest.mark.parametrize("row", [",1", "1"])
def test_an_empty_path_is_named_with_its_line(tmp_path, row):
    header = "path,score" if row == ",1" else "score,path"
    assert "table.csv: line 2: path: empty" in complaint(write(tmp_path, f"{header}\n{row}\n"))[0]


def test_missing_pictures_are_counted_and_the_first_is_named(tmp_path):
    what, remedy = complaint(write(tmp_path, "path,score\nflat/a.png,1\nflat/x.png,1\nflat/y.png,1\n"))
    assert "flat/x.png: no such picture (2 of 3 are missing)" in what
    assert "made.yaml" in remedy


def test_a_table_that_is_not_utf8_is_refused(tmp_path):
    assert "table.csv: not a CSV file in UTF-8" in complaint(write(tmp_path, b"path,score\n\xff\xfe.png,1\n"))[0]


def test_an_unknown_key_is_named_with_the_file(tmp_path):
    file = write(tmp_path, TABLE, "imagez: elsewhere\n")
    what, _ = complaint(file)
    assert what.startswith(file)
    assert "imagez" in what


def test_a_missing_key_is_named_with_the_file(tmp_path):
    file = tmp_path / "made.yaml"
    file.write_text("name: made\nimages: images\n")
    assert complaint(str(file))[0] == f"{file}: labels: not given"


@pytest.mark.parametrize("pattern", ["(", "[a-z]+", ""])
def test_a_pattern_that_names_no_group_is_refused(tmp_path, pattern):
    file = write(tmp_path, TABLE, f"group_pattern: '{pattern}'\n")
    assert complaint(file)[0].startswith(f"{file}: group_pattern: {pattern!r}")


@pytest.mark.parametrize("name", ["a/b", "", "..", "two words"])
def test_a_name_that_cannot_name_a_file_is_refused(tmp_path, name):
    file = write(tmp_path, TABLE)
    Path(file).write_text(Path(file).read_text().replace("name: made", f"name: '{name}'"))
    assert complaint(file)[0].startswith(f"{file}: name: {name!r}")


def test_a_group_that_takes_no_part_leaves_the_path_as_its_name(tmp_path):
    benchmark = load_benchmark(write(tmp_path, TABLE, "group_pattern: '(nowhere)?'"))
    assert len(set(benchmark.groups.tolist())) == len(benchmark.paths)


def test_the_advice_for_a_benchmark_names_its_file_and_no_option(tmp_path):
    file = write(tmp_path, TABLE, "colour: x")
    what, remedy = complaint(file)
    assert what == f"{file}: colour: no such setting"
    assert remedy.strip() == f"mend {file}; configs/benchmarks/emoji.yaml shows all settings"
    assert complaint(write(tmp_path, TABLE, "imags: x"))[1].strip() == "did you mean images?"


def test_the_benchmarks_classes_are_mapped_to_ours(tmp_path):
    file = classed(tmp_path, "path,class\nflat/a.png,2\nsolid/a.png,0\nflat/b.png, 2\n")
    benchmark = load_benchmark(file)
    assert benchmark.scores.tolist() == [1, -1, 1]
    assert not benchmark.config.is_graded
    assert benchmark.counts() == {"negative": 1, "neutral": 0, "positive": 2}


def test_a_tsv_with_emotions_is_read(tmp_path):
    table = "class\tpath\njoy\tflat/a.png\nfear\tsolid/a.png\ncalm\tflat/b.png\n"
    file = classed(tmp_path, table, "{joy: positive, fear: negative, calm: neutral}", "table.tsv")
    benchmark = load_benchmark(file)
    assert (benchmark.scores.tolist(), benchmark.config.has_neutral) == ([1, -1, 0], True)


def test_a_folder_for_each_class_needs_no_table(tmp_path):
    file = Path(write(tmp_path, TABLE))
    (tmp_path / "images" / "flat" / "notes.txt").write_text("no picture")
    text = f"name: made\nimages: {tmp_path}/images\nlabels: {tmp_path}/images\n"
    file.write_text(text + "classes: {flat: negative, solid: positive}\n")
    benchmark = load_benchmark(str(file))
    assert benchmark.paths == ["flat/a.png", "flat/b.png", "solid/a.png", "solid/b.png"]
    assert benchmark.scores.tolist() == [-1, -1, 1, 1]
    file.write_text(text + "classes: {flat: negative, plain: positive}\n")
    assert "images/solid: 'solid' is not one of the classes flat, plain" in complaint(str(file))[0]
    file.write_text(text)
    assert "is a folder, but there are no classes" in complaint(str(file))[0]


def test_a_class_outside_the_mapping_is_named_with_its_line_and_the_nearest(tmp_path):
    table = "path,class\nflat/a.png,amusement\nflat/b.png,amusemnt\n"
    what, remedy = complaint(classed(tmp_path, table, "{amusement: positive, fear: negative}"))
    assert what.endswith("table.csv: line 3: class: 'amusemnt' is not one of the classes amusement, fear")
    assert remedy.strip().startswith("did you mean amusement? else add it to ")


@pytest.mark.parametrize(
    "classes", ["{0: bad, 1: positive}", "{1: positive}", "{0: neutral, 1: negative}", "{0: [negative], 1: positive}"]
)
def test_a_mapping_that_lacks_a_class_is_refused(tmp_path, classes):
    assert "made.yaml: classes: " in complaint(classed(tmp_path, "path,class\nflat/a.png,1\n", classes))[0]


def test_where_it_is_allowed_missing_pictures_are_marked(tmp_path):
    file = write(tmp_path, "path,score\nflat/a.png,1\nflat/x.png,1\n")
    assert load_benchmark(file, allow_missing=True).missing.tolist() == [False, True]
    file = write(tmp_path, "path,score\nflat/x.png,1\n")
    with pytest.raises(UserError, match="1 of 1 are missing"):
        load_benchmark(file, allow_missing=True)


def test_the_paths_start_at_the_root(tmp_path):
    (tmp_path / "elsewhere" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere" / "images" / "a.png").write_bytes(made_pictures.png())
    (tmp_path / "elsewhere" / "t.csv").write_text("path,score\na.png,1\n")
    file = tmp_path / "made.yaml"
    file.write_text("name: made\nimages: images\nlabels: t.csv\n")
    assert load_benchmark(str(file), root=str(tmp_path / "elsewhere")).missing.tolist() == [False]


# Counts and classes as the authors' tables have them.
PAPER = {
    "5agree": (882, 301, 581, True),
    "4agree": (1116, 427, 689, False),
    "3agree": (1269, 500, 769, True),
    "emotion_ROI_test": (594, 396, 198, True),
    "twitter_testing_2": (603, 216, 387, False),
    "FI_complete": (23308, None, None, False),
}
LINES = {
    "5agree": "1000028444_428246659240579072_BfFq8nsCEAAD4Ao.jpg,1\n"
    "1000565959_427974272750206977_BfB0fb6IMAAKP0z.jpg,0",
    "emotion_ROI_test": "joy/232.jpg,1\nsadness/232.jpg,0",
    "twitter_testing_2": "0_368686168_528626713920798720_B1YHicpCQAAAibZ.jpg,1\n"
    "40357418_528257363502170113.jpg,0\n7_1_B1YHicpCQAAAibZ.png,0",
    "FI_complete": "amusement/amusement_4098.jpg,2\nanger/anger_0001.jpg,0",
}


def test_every_definition_is_named_after_its_file():
    known = known_benchmarks()
    assert {*PAPER, *(f"FI_split_{number}" for number in range(1, 6)), "emoji"} <= set(known)
    for name in known:
        assert load_definition(name).name == name


@pytest.mark.parametrize("name", PAPER)
def test_the_expected_counts_are_the_papers(name):
    expected = load_definition(name).expected
    assert (expected.pictures, expected.negative, expected.positive, expected.certain) == PAPER[name]
    if expected.negative is not None:
        assert expected.negative + expected.positive == expected.pictures


@pytest.mark.parametrize("name", LINES)
def test_lines_of_the_authors_tables_are_read(name, tmp_path):
    config = load_definition(name, root=str(tmp_path))
    Path(config.images).mkdir(parents=True)
    Path(config.labels).write_text(f"path,class\n{LINES[name]}\n")
    benchmark = read_benchmark(name, root=str(tmp_path))
    assert benchmark.scores.tolist()[:2] == [1, -1]
    assert benchmark.missing.all()
    if name == "twitter_testing_2":
        # The same medium under two names.
        assert benchmark.groups[0] == benchmark.groups[2] != benchmark.groups[1]


def test_the_five_divisions_of_fi_are_those_of_the_single_definitions():
    complete = load_definition("FI_complete")
    assert [split.test for split in complete.splits] == [load_definition(f"FI_split_{n}").labels for n in range(1, 6)]
    assert complete.classes == load_definition("FI_split_1").classes


@pytest.mark.parametrize(("name", "meant"), [("5agre", "5agree"), ("fi_complete", "FI_complete"), ("emojis", "emoji")])
def test_a_misspelt_name_gets_the_nearest(name, meant):
    assert complaint(name) == [f"{name}: no such benchmark", f"        did you mean {meant}?"]


def test_a_name_like_none_gets_them_all():
    assert "5agree" in complaint("zzzzzz")[1]


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        (["evaluate", "-m", "x", "-b", "5agree"], "5agree: no such benchmark", "installed from its clone"),
        (["benchmarks", "list"], "no benchmark is known by name here", "installed from its clone"),
        (["crossval", "-m", "x", "-b", "5agree"], "five_fold.yaml: no such recipe", "from the folder of its clone"),
        (["finetune-fi", "-m", "x"], "given_splits.yaml: no such recipe", "from the folder of its clone"),
    ],
)
def test_without_its_clone_xmodal_says_that_it_lacks_it(installed, given, what, remedy):
    done = subprocess.run(
        [sys.executable, "-m", "xmodal.cli", *given],
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    told = done.stderr.splitlines()
    assert what in told[-2]
    assert remedy in told[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages alone, as a wheel has them."""
    folder = tmp_path_factory.mktemp("wheel") / "site-packages"
    for package in ("shards", "xmodal"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_where_to_get_a_benchmark_that_is_not_here_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    what, remedy = complaint("5agree")
    assert "5agree.csv: No such file or directory" in what
    assert "github.com/fabiocarrara" in remedy
