"""Near duplicates among 256-bit hashes, in seconds and MiB: ours against faiss and imagededup.

    python benchmarks/dedup.py --quick --json dedup.json

The hashes are random, but for a tenth that are copies, up to 40 bits away, of any others: groups and chains of known
near ones, and some just beyond the distance of 31. Each round is a fresh process that reads them from a file; making
them, starting Python and compiling are not counted. The largest size is for ours alone.

Before the rounds all contenders' groups of a small set are compared, and in each round our groups of some hashes are
held against a comparison of these with all. The peers compare all pairs, which takes hours at full size: faiss
(`IndexBinaryFlat.range_search`) is timed for a share of the queries against all hashes; imagededup for a small set and
extrapolated by the square, by its tree (`bktree`, what it has for 256 bits) and by its compiled comparison, which only
takes hashes of 64 bits and so gets the first quarter of each and a quarter of the distance.

The peers run in a virtual environment of their own, which is made the first time (`--contenders xmodal`: none is).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report_file
from peers_environment import FOLDER, environment_of_peers, versions_of_peers

from xmodal.curation.near_duplicates import MAX_DISTANCE

HERE = Path(__file__).resolve().parent
OURS = "xmodal"
FAISS, TREE, WORDS = "faiss IndexBinaryFlat", "imagededup bktree", "imagededup cython, 64 bits"
PINS = {"faiss-cpu": "1.15.1", "imagededup": "0.3.3.post2"}
COPIES = 0.1
"""Share of the hashes."""
MOST_FLIPPED = 40
NUM_THREADS = 2
NUM_CHECKED = 100
"""Hashes a round, half of them copies, whose groups are held against a comparison with all."""
NUM_COMPARED = 1000
"""Hashes of which all contenders' groups are compared first."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of hashes."""

    ours_alone: int
    common: int
    faiss_queries: int
    tree: int
    words: int


QUICK = Sizes(ours_alone=400_000, common=100_000, faiss_queries=2000, tree=400, words=2000)
FULL = Sizes(ours_alone=10_000_000, common=1_500_000, faiss_queries=5000, tree=400, words=3000)


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sets")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", default=".", help="where to write the hashes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--contenders", nargs="+", choices=(OURS, FAISS, TREE, WORDS), default=[OURS, FAISS, TREE, WORDS]
    )
    parser.add_argument("--peers-environment", default=str(FOLDER / "dedup"), help="folder of the peers' environment")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    peers = None
    if set(arguments.contenders) != {OURS}:
        peers = environment_of_peers(Path(arguments.peers_environment), PINS)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="dedup-", dir=arguments.folder) as folder:
        common, alone = Path(folder, "common.npy"), Path(folder, "alone.npy")
        np.save(common, planted_hashes(sizes.common, seed=0))
        np.save(alone, planted_hashes(sizes.ours_alone, seed=1))
        check_same_groups(arguments.contenders, planted_hashes(NUM_COMPARED, seed=2), Path(folder), peers)
        for number in range(arguments.rounds):
            first = number % len(arguments.contenders)
            for name in arguments.contenders[first:] + arguments.contenders[:first]:
                figures = run_contender(name, common, sizes, peers)
                if name == OURS:
                    check_sample(common, figures.pop("groups"), seed=number)
                    figures_alone = run_contender(name, alone, sizes, peers)
                    check_sample(alone, figures_alone.pop("groups"), seed=number)
                    figures |= {
                        f"seconds_{sizes.ours_alone}": figures_alone[f"seconds_{sizes.common}"],
                        f"peak_mib_{sizes.ours_alone}": figures_alone[f"peak_mib_{sizes.common}"],
                    }
                for figure, value in figures.items():
                    results.setdefault(name, {}).setdefault(figure, []).append(round(value, 3))
            latest = ", ".join(f"{name} {results[name][f'seconds_{sizes.common}'][-1]:.1f}" for name in results)
            print(f"round {number + 1} of {arguments.rounds}, seconds: {latest}", flush=True)
    work = (
        f"{sizes.common:,} hashes, and {sizes.ours_alone:,} for ours alone, of which {COPIES:.0%} are copies up to "
        f"{MOST_FLIPPED} bits away; distance {MAX_DISTANCE}; {NUM_THREADS} threads; extrapolated: faiss from "
        f"{sizes.faiss_queries:,} queries, imagededup by the square from {sizes.tree:,} (bktree) and {sizes.words:,} "
        "(64 bits) hashes"
    )
    document = report_file.report("dedup", work, ("numba", "numpy", "xmodal"), results, ratios(results, sizes))
    if peers:
        versions = versions_of_peers(peers, (*PINS, "numpy"))
        document["versions"] |= {f"peers: {name}": version for name, version in versions.items()}
    report_file.write(document, arguments.json)


def planted_hashes(num_hashes: int, seed: int) -> np.ndarray:
    """Random hashes, uint8 `(n, 32)`; a tenth of them, anywhere, are copies with up to 40 bits flipped."""
    generator = np.random.default_rng(seed)
    packed = generator.integers(0, 256, (num_hashes, 32), dtype=np.uint8)
    places = copy_places(num_hashes, seed)
    packed[places] = packed[generator.integers(num_hashes, size=len(places))]
    num_flipped = generator.integers(0, MOST_FLIPPED + 1, len(places))
    for number in range(MOST_FLIPPED):
        rows = places[num_flipped > number]
        bits = generator.integers(0, 256, len(rows))
        packed[rows, bits // 8] ^= (1 << (bits % 8)).astype(np.uint8)
    return packed


def copy_places(num_hashes: int, seed: int) -> np.ndarray:
    """Where the copies stand."""
    return np.random.default_rng([seed, 1]).choice(num_hashes, int(COPIES * num_hashes), replace=False)


def run_contender(name: str, file: Path, sizes: Sizes, peers: Path | None) -> dict[str, Any]:
    """The figures of a contender in a fresh process; its seconds are those of all hashes of `sizes.common`."""
    plan: dict[str, Any] = {"contender": name, "file": str(file), "threads": NUM_THREADS, "distance": MAX_DISTANCE}
    factor = 1.0
    if name == FAISS:
        plan["queries"] = sizes.faiss_queries
        factor = sizes.common / sizes.faiss_queries
    elif name in (TREE, WORDS):
        plan["hashes"] = sizes.tree if name == TREE else sizes.words
        factor = (sizes.common / plan["hashes"]) ** 2
    done = run_plan(plan, file.parent, peers)
    figures = {f"seconds_{sizes.common}": factor * done["seconds"]}
    if name == OURS:
        figures["groups"] = np.load(done["groups"])
    if name in (OURS, FAISS):  # the others' memory is that of a small set
        figures[f"peak_mib_{sizes.common}"] = done["peak_mib"]
    return figures


def run_plan(plan: dict[str, Any], folder: Path, peers: Path | None) -> dict[str, Any]:
    """What a contender's process prints. Raises SystemExit if it fails."""
    plan = plan | {"output": str(folder / "output.npy")}
    python, script = (sys.executable, "dedup_ours.py") if plan["contender"] == OURS else (peers, "dedup_peers.py")
    done = subprocess.run([str(python), str(HERE / script), json.dumps(plan)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{plan['contender']}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.rstrip().rpartition("\n")[2])


def check_same_groups(contenders: list[str], packed: np.ndarray, folder: Path, peers: Path | None) -> None:
    """All contenders find the pairs that a comparison of all finds. Raises SystemExit if not."""
    file = folder / "compared.npy"
    np.save(file, packed)
    near = distances(packed, packed) <= MAX_DISTANCE
    for name in contenders:
        if name == WORDS:
            continue  # other hashes
        plan = {"contender": name, "file": str(file), "threads": NUM_THREADS, "distance": MAX_DISTANCE}
        done = run_plan(plan, folder, peers)
        if name == OURS:
            same = np.load(done["groups"]).tolist() == groups_of(near).tolist()
        else:
            same = np.load(done["pairs"]).tolist() == np.argwhere(np.triu(near, 1)).tolist()
        if not same:
            raise SystemExit(f"{name}: other near duplicates than by comparing all")


def check_sample(file: Path, groups: np.ndarray, seed: int) -> None:
    """Some hashes share their group with all that are near to them, and groups hold together. Raises SystemExit."""
    packed = np.load(file, mmap_mode="r")
    generator = np.random.default_rng(seed)
    copies = np.flatnonzero(groups != np.arange(len(groups)))
    sample = np.concatenate(
        [generator.choice(len(packed), NUM_CHECKED // 2), generator.choice(copies, NUM_CHECKED // 2)]
    )
    for place in sample:
        near = np.flatnonzero(distances(packed[place : place + 1], packed)[0] <= MAX_DISTANCE)
        members = np.flatnonzero(groups == groups[place])
        linked = groups_of(distances(packed[members], packed[members]) <= MAX_DISTANCE)
        if not np.isin(near, members).all() or linked.any() or members[0] != groups[place]:
            raise SystemExit(f"hash {place}: another group than by comparing it with all")


def distances(packed: np.ndarray, others: np.ndarray) -> np.ndarray:
    """In how many bits each differs from each: uint16 `(n, m)`."""
    words, other_words = np.ascontiguousarray(packed).view(np.uint64), np.ascontiguousarray(others).view(np.uint64)
    return np.add.reduce(
        [np.bitwise_count(words[:, [column]] ^ other_words[:, column]) for column in range(4)], dtype=np.uint16
    )


def groups_of(near: np.ndarray) -> np.ndarray:
    """The smallest place that a chain of near ones leads to, for each place of a matrix bool `(n, n)`."""
    groups = np.arange(len(near))
    while True:
        smallest = np.where(near, groups, len(near)).min(axis=1)
        if (smallest == groups).all():
            return groups
        groups = smallest


def ratios(results: dict[str, dict[str, list[float]]], sizes: Sizes) -> dict[str, float]:
    """How many times as long the others take, and how ours grows: medians of the ratios within a round."""
    if OURS not in results:
        return {}
    ours = results[OURS]
    figures = {f"{name} / {OURS}": results[name][f"seconds_{sizes.common}"] for name in results if name != OURS}
    figures[f"{OURS}: {sizes.ours_alone:,} / {sizes.common:,}"] = ours[f"seconds_{sizes.ours_alone}"]
    return {
        f"{name}: seconds": round(
            statistics.median(a / b for a, b in zip(values, ours[f"seconds_{sizes.common}"], strict=True)), 2
        )
        for name, values in figures.items()
    }


if __name__ == "__main__":
    main()
