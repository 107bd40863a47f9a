from pathlib import Path

import made_pictures
import pytest

from shards.errors import UserError
from xmodal.benchmarks import load_benchmark

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
