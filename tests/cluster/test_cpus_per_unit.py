"""Units that share a processor: while one waits for its host, another asks its own."""

import label_command
import pytest
from picture_server import requests_of, serving_pictures
from ray_head import Head, free_port, ray_head


@pytest.fixture(scope="module")
def head():
    with ray_head(num_cpus=1) as running:
        yield running


@pytest.mark.parametrize(("cpus_per_unit", "at_a_time"), [(1, 1), (0.5, 2)])
def test_as_many_units_are_at_work_as_the_processors_are_for(head: Head, tmp_path, cpus_per_unit, at_a_time):
    records = [{"id": str(number), "text": "fine", "media": [f"{number}.jpg"]} for number in range(4)]
    posts = label_command.write_posts(tmp_path / "posts.jsonl", records)
    with serving_pictures(tmp_path / "log", free_port(), delay=4.0) as url:
        command = [*label_command.LABEL, f"--posts={posts}", f"--dataset={tmp_path / 'dataset'}", f"--base_url={url}"]
        command += ["--posts_per_unit=1", f"--ray_address={head.address}", label_command.ALLOW_LOOPBACK]
        done = label_command.run([*command, f"--cpus_per_unit={cpus_per_unit}"], head.environment)
    assert done.returncode == 0, done.stderr
    assert max(request["under_way"] for request in requests_of(tmp_path / "log")) == at_a_time
