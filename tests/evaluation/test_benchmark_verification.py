import io
import json
from pathlib import Path

import made_pictures
import pytest
from PIL import Image

from xmodal import cli
from xmodal.evaluation.verify import verify_benchmark


def scaled(content: bytes, size: tuple[int, int]) -> bytes:
    return made_pictures.encode(Image.open(io.BytesIO(content)).resize(size), "JPEG", quality=80)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """20 pictures: two are the same file, another is one of those made smaller, one is damaged, one is not there."""
    contents = [made_pictures.encode(made_pictures.textured(240, 180, seed), "PNG") for seed in range(16)]
    contents += [contents[0], scaled(contents[0], (120, 90)), made_pictures.GARBAGE]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    rows = [f"{number}.png,{number % 2}" for number in range(20)]
    (tmp_path / "table.csv").write_text("\n".join(["path,class", *rows, "3.png,1"]) + "\n")
    for part, numbers in {"train": range(16), "val": range(16, 19), "test": range(18, 20)}.items():
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,class", *(rows[number] for number in numbers)]) + "\n")
    file = tmp_path / "made.yaml"
    file.write_text(
        "name: made\nimages: .\nlabels: table.csv\nclasses: {0: negative, 1: positive}\n"
        "protocols: [zero_shot, five_fold, given_splits]\n"
        "splits: [{train: train.csv, val: val.csv, test: test.csv}]\n"
        "expected: {pictures: 20, negative: 10, positive: 11}\n"
    )
    return file


def test_everything_that_is_wrong_with_a_copy_is_found(benchmark):
    verification = verify_benchmark(str(benchmark), root=str(benchmark.parent))
    assert not verification.is_sound
    assert verification.by_class == {"negative": 10, "neutral": 0, "positive": 11}
    found = {(finding.kind, finding.what): finding.pictures for finding in verification.findings}
    copies = ["0.png", "16.png", "17.png"]
    expected = {
        ("problem", "1 picture missing"): [["19.png"]],
        ("problem", "1 picture that cannot be decoded"): [["18.png"]],
        ("problem", "21 pictures, 20 are expected"): [],
        ("problem", "1 picture named by several rows"): [["3.png"]],
        ("problem", "division 1: 1 picture in several rows of it"): [["18.png"]],
        ("note", "division 1: 1 group of duplicates across its parts"): [copies],
        ("note", "1 group of duplicates that people put into different classes"): [copies],
    }
    assert expected.items() <= found.items()
    assert found["note", "1 group of exact duplicates, 2 pictures"] == [["0.png", "16.png"]]
    assert found["note", "1 group of near duplicates, 3 pictures"] == [copies]
    (crossing,) = (pictures for (_, what), pictures in found.items() if "the paper's 5 folds" in what)
    assert copies in crossing


def test_a_division_that_is_not_one_is_told(benchmark):
    folder = benchmark.parent
    (folder / "test.csv").write_text("path,class\nnew.png,0\n18.png,1\n")
    (folder / "val.csv").write_text("path,class\n16.png,0\n17.png,1\n")
    whats = [finding.what for finding in verify_benchmark(str(benchmark), root=str(folder)).findings]
    assert "division 1: 2 pictures not in the benchmark, or of another class there" in whats
    assert "division 1: 1 picture of the benchmark in no part of it" in whats
    (folder / "val.csv").unlink()
    whats = [finding.what for finding in verify_benchmark(str(benchmark), root=str(folder)).findings]
    assert any(what.startswith("division 1: ") and what.endswith("No such file or directory") for what in whats)


def test_a_folder_in_place_of_the_json_file_is_told_before_the_work(benchmark, tmp_path, capsys):
    assert cli.main(["benchmarks", "verify", str(benchmark), "--root", str(tmp_path), "--json", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "json: " in told.err
    assert "is a folder" in told.err


def test_a_benchmark_is_listed_by_the_name_that_it_is_known_by(benchmark, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "configs" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(benchmark.read_text())  # which says `name: made`
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmarks", "list"]) == 0
    assert "mine" in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_a_copy_without_a_single_picture_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("path,class\na.png,0\nb.png,1\n")
    file = tmp_path / "made.yaml"
    file.write_text("name: made\nimages: .\nlabels: t.csv\nclasses: {0: negative, 1: positive}\n")
    (finding,) = verify_benchmark(str(file), root=str(tmp_path)).findings
    assert (finding.kind, finding.what) == ("problem", "2 pictures missing")


def test_a_sound_copy_has_no_problems_and_uncertain_counts_are_noted(tmp_path):
    for number in range(4):
        content = made_pictures.encode(made_pictures.textured(200, 200, number), "PNG")
        (tmp_path / f"{number}.png").write_bytes(content)
    (tmp_path / "t.csv").write_text("path,score\n" + "".join(f"{number}.png,{number - 1.5}\n" for number in range(4)))
    file = tmp_path / "made.yaml"
    settings = f"name: made\nimages: {tmp_path}\nlabels: {tmp_path}/t.csv\n"
    file.write_text(settings + "expected: {pictures: 4, negative: 2}\n")
    assert verify_benchmark(str(file)).findings == []
    file.write_text(settings + "expected: {pictures: 5, certain: false}\n")
    verification = verify_benchmark(str(file))
    assert verification.is_sound
    assert verification.findings[0].what.startswith("4 pictures, 5 are expected, which is not certain")


def test_the_command_tells_what_it_found_and_lists_what_it_knows(benchmark, tmp_path, capsys):
    output = tmp_path / "found.json"
    assert cli.main(["benchmarks", "verify", str(benchmark), "--root", str(tmp_path), "--json", str(output)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "made: 21 pictures; 10 negative, 11 positive"
    assert "  problem  1 picture missing" in lines
    assert json.loads(output.read_text())[0]["benchmark"] == "made"
    assert cli.main(["benchmarks", "verify", "emoji"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  ok       nothing is missing or broken"
    assert cli.main(["benchmarks", "list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " here " in listed["emoji"]
    assert "about 603 pictures" in listed["twitter_testing_2"]
    assert "not here" in listed["5agree"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["look"], "look: no such action"), (["verify"], "no benchmark"), (["verify", "5agre"], "5agre: no such bench")],
)
def test_a_mistake_in_asking_for_benchmarks_is_told_in_two_lines(arguments, what, capsys):
    assert cli.main(["benchmarks", *arguments]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert what in first
    assert second.strip()
