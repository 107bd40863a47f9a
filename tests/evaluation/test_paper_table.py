import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from xmodal import cli
from xmodal.evaluation.paper_table import TableConfig, paper_cells, paper_table, read_all_scores, what_is_missing
from xmodal.published import PUBLISHED


def metrics(accuracy: float, **more: Any) -> dict[str, Any]:
    return {"n": 882, "accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02, **more}


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_MODELS", str(tmp_path / "models"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """What evaluating single students, and several at once, leaves."""
    documents = {
        "ViT_B32": {"5agree": metrics(0.87), "4agree": metrics(0.79, missing=2, partial=True)},
        "mine": {"mvsa": metrics(0.7)},
        "all": {
            "models": {"paper_3_8/student": {"5agree": metrics(0.88)}, "B-T4SA_1.0": {"5agree": metrics(0.81)}},
            "comparisons": [],
        },
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return [str(tmp_path / f"{name}.json") for name in documents]


def test_the_papers_rows_stand_in_their_order_with_what_was_evaluated_here(files):
    cells = paper_cells(read_all_scores(files))
    rows = [(of_model[0].row, of_model[0].model) for of_model in cells]
    expected = {f"3.{number}": None for number in range(1, 9)}
    assert [row for row, _ in rows[:8]] == list(expected)
    assert rows[4] == ("3.5", "ViT_B32")
    # Ours, made by the recipe of that row.
    assert rows[7] == ("3.8", "paper_3_8/student")
    assert rows[8:] == [(None, "B-T4SA_1.0"), (None, "mine")]
    assert [cell.benchmark for cell in cells[0]] == ["5agree", "4agree", "3agree", "mvsa"]
    for of_model in cells[:7]:
        published = PUBLISHED[of_model[0].model].accuracy
        assert {cell.benchmark: cell.published for cell in of_model[:3]} == published


def test_a_student_of_our_recipe_for_a_model_without_a_row_stands_for_it_too():
    (cells,) = (of_one for of_one in paper_cells({"paper_b_t4sa_1_0": {"5agree": metrics(0.8)}}) if of_one[0].ours)
    assert (cells[0].row, cells[0].published, cells[0].difference) == (None, 81.2, pytest.approx(-1.2))


def test_a_recipe_that_two_models_share_is_that_of_the_one_with_a_row():
    (cells,) = (of_one for of_one in paper_cells({"paper_3_5/student": {"5agree": metrics(0.8)}}) if of_one[0].ours)
    assert (cells[0].row, cells[0].published) == ("3.5", 86.5)
    (cells,) = (of_one for of_one in paper_cells({"merged_T4SA": {"5agree": metrics(0.8)}}) if of_one[0].ours)
    assert (cells[0].row, cells[0].model, cells[0].published) == (None, "merged_T4SA", None)


def test_weights_that_no_release_holds_are_told_to_be_had_by_hand():
    cells = paper_cells({"B-T4SA_1.0": {"4agree": metrics(0.8)}})
    assert "B-T4SA_1.0: its weights are not here: xmodal models pull B-T4SA_1.0 --file B-T4SA_1.0.h5" in (
        what_is_missing(cells)
    )


def test_the_difference_and_whether_the_published_number_is_outside_of_the_interval(files):
    five, four, three, other = paper_cells(read_all_scores(files))[4]
    assert five.difference == pytest.approx(87 - 86.5)
    assert not five.is_outside
    assert four.difference == pytest.approx(79 - 82.6)
    assert (four.is_outside, four.is_partial) == (True, True)
    assert (three.ours, three.published, other.published) == (None, 78.9, None)


def test_the_text_says_what_is_missing(files, tmp_path):
    (tmp_path / "models" / "ViT_B16").mkdir(parents=True)
    text = paper_table(TableConfig(scores=files, root=str(tmp_path)))
    lines = text.splitlines()
    assert "86.5 / 87.0 +0.5 [85.0, 89.0]" in lines[5]
    assert "82.6 / 79.0 -3.6 [77.0, 81.0]!*" in lines[5]
    assert "78.9 / —" in lines[5]
    assert "70.0 [68.0, 72.0]" in lines[10]
    assert f"4agree: {tmp_path}/dataset/benchmark/Twitter Testing Dataset I/4agree.csv is not here" in text
    assert "ViT_L32: its weights are not here: xmodal models pull ViT_L32" in lines
    assert "ViT_B16: not evaluated: xmodal evaluate -m ViT_B16 -b 5agree 4agree 3agree --json ViT_B16.json" in lines
    # Of whom there are some numbers, a second file would have the name of the first.
    other = "paper_3_8/student: not evaluated on 4agree, 3agree: make its file anew, with -b 5agree 4agree 3agree"
    assert other in lines
    assert "! the published accuracy lies outside of the interval" in lines


def test_who_does_as_the_table_says_fills_its_cells(tmp_path):
    for name in PUBLISHED:
        (tmp_path / "models" / name).mkdir(parents=True)
    advised = [line.split() for line in what_is_missing(paper_cells({})) if "xmodal evaluate" in line]
    assert len(advised) == 8
    for words in advised:
        benchmarks, file = words[words.index("-b") + 1 : -2], words[-1]
        # What evaluating a single student writes.
        (tmp_path / file).write_text(json.dumps({benchmark: metrics(0.8) for benchmark in benchmarks}))
    cells = paper_cells(read_all_scores([str(tmp_path / words[-1]) for words in advised]))
    assert [of_model[0].row for of_model in cells] == [f"3.{number}" for number in range(1, 9)]
    assert all(cell.ours == 80 for of_model in cells for cell in of_model)


def test_the_table_has_other_forms(files, capsys):
    assert cli.main(["table", "--format", "csv", *files]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 10 * 4
    (row,) = [row for row in rows if (row["model"], row["benchmark"]) == ("ViT_B32", "5agree")]
    assert (row["published"], row["ours"], row["difference"]) == ("86.5", "87.0", "0.5")
    assert cli.main(["table", *files, "--format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["cells"]) == 40
    assert document["missing"]
    assert cli.main(["table", "--format=markdown"]) == 0
    header, rule, first, *_ = capsys.readouterr().out.splitlines()
    assert header == "| row | model | 5agree | 4agree | 3agree |"
    assert rule == "| --- | --- | --- | --- | --- |"
    assert first == "| 3.1 | B-T4SA_1.0_upd | 82.2 / — | 78.0 / — | 75.5 / — |"


def test_without_the_definitions_of_the_benchmarks_there_is_a_table_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.benchmarks._OF_CLONE", tmp_path / "none")  # as of a wheel
    monkeypatch.chdir(tmp_path)
    lines = paper_table(TableConfig()).splitlines()
    assert lines[1].split()[:3] == ["3.1", "B-T4SA_1.0_upd", "82.2"]
    assert any(line.startswith("5agree: its definition is not here: ") for line in lines)


def test_in_markdown_no_name_of_a_student_makes_a_column(tmp_path):
    (tmp_path / "a|b.json").write_text(json.dumps({"5agree": metrics(0.8)}))
    table = paper_table(TableConfig(scores=[str(tmp_path / "a|b.json")], format="markdown"))
    assert "| — | a\\|b | — / 80.0 " in table


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"5agree": 3}',
        '{"5agree": {"auc": 1}}',
        '{"5agree": {"accuracy": "0.9"}}',
        '{"models": [], "comparisons": []}',
        '{"models": {"a": []}, "comparisons": []}',
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        read_all_scores([str(tmp_path / "x.json")])


def test_two_files_with_the_same_student_on_the_same_benchmark_are_refused(tmp_path):
    """Two evaluations of `runs/a/student` and `runs/b/student` beside others: none may stand for the other."""
    for name, accuracy in (("x", 0.8), ("y", 0.6)):
        models = {"student": {"5agree": metrics(accuracy)}, f"other-{name}": {"5agree": metrics(0.7)}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"models": models, "comparisons": []}))
    files = [str(tmp_path / "x.json"), str(tmp_path / "y.json")]
    with pytest.raises(UserError, match=r"y\.json: has student on 5agree, and so has .*x\.json"):
        read_all_scores(files)
    # One student on other benchmarks is one.
    models = {"student": {"4agree": metrics(0.6)}, "more": {"5agree": metrics(0.7)}}
    (tmp_path / "y.json").write_text(json.dumps({"models": models, "comparisons": []}))
    assert set(read_all_scores(files)["student"]) == {"5agree", "4agree"}


def test_a_missing_file_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        read_all_scores([str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="must have different file names"):
        TableConfig(scores=["a/x.json", "b/x.json"])
