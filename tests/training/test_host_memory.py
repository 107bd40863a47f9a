import os
from pathlib import Path

import pytest

from xmodal.training.host_memory import memory_limit

BUILT_IN = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
V1_UNLIMITED = 9223372036854771712
"""What version 1 says where there is no limit."""


def machine(root: Path, groups: str, limits: dict[str, int | str]) -> Path:
    """What a machine shows of its control groups, below `root`."""
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": f"{limits[name]}\n" for name in limits}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/job_7/step_0\n", {"job_7/memory.max": 5000, "job_7/step_0/memory.max": "max"}, 5000),
        ("0::/\n", {"memory.max": 6000}, 6000),
        ("0::/job_7\n", {"job_7/memory.max": "max"}, BUILT_IN),
        (
            "9:name=systemd:/\n4:cpu,memory:/job_7/step_0\n0::/\n",
            {
                "memory/memory.limit_in_bytes": V1_UNLIMITED,
                "memory/job_7/memory.limit_in_bytes": 9000,
                "memory/job_7/step_0/memory.limit_in_bytes": 7000,
            },
            7000,
        ),
        ("4:memory:/docker/1f\n", {"memory/memory.limit_in_bytes": 8000}, 8000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": V1_UNLIMITED}, BUILT_IN),
        ("0::/a:b\n", {"a:b/memory.max": 4000}, 4000),
    ],
    ids=["v2", "v2-container", "v2-unlimited", "v1", "v1-container", "v1-unlimited", "colon"],
)
def test_the_least_limit_of_all_groups_around_it_counts(tmp_path, groups, limits, expected):
    assert memory_limit(machine(tmp_path, groups, limits)) == expected


def test_without_control_groups_it_is_what_is_built_in(tmp_path):
    assert memory_limit(tmp_path) == BUILT_IN


def test_of_this_machine_it_is_no_more_than_that():
    assert 0 < memory_limit() <= BUILT_IN
