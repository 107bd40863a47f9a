"""Ranks that were given other things than the others, and what they are told."""

import shutil

from launchers import ROOT, free_port, settings, start, wait_for_ranks
from training_view import make_view

from xmodal.training.agreement import versions


def test_a_rank_with_another_view_and_other_code_is_told_so_before_the_first_step(small_view, tmp_path):
    for package in ("launch", "shards", "xmodal"):
        shutil.copytree(ROOT / package, tmp_path / "other" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / "xmodal" / "__init__.py").open("a") as file:
        file.write("# newer\n")
    other_view = make_view(tmp_path, num_samples=180, samples_per_shard=20)
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    output = tmp_path / "run"
    ranks = [
        start("python", settings(small_view, output), RANK="0", LOCAL_RANK="0", **job),
        start(
            "python",
            settings(other_view, output),
            str(tmp_path / "other" / "launch" / "train.py"),
            **{"RANK": "1", "LOCAL_RANK": "1", **job},
        ),
    ]
    codes, outputs = wait_for_ranks(ranks)
    assert codes == [2, 2], outputs
    for said in outputs:
        assert f"the ranks do not agree: code is '{versions()['code']}' on rank 0 and '" in said
        assert "; the view's fingerprint is '" in said
        assert "Traceback" not in said
    assert not (output / "metrics.jsonl").exists()


def test_what_makes_pixels_and_weights_is_compared_too():
    assert {"python", "torch", "deepspeed", "timm", "numpy", "pillow", "libjpeg-turbo"} <= versions().keys()
