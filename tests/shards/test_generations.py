from hypothesis import given
from hypothesis import strategies as st

from shards.generations import generation_of, newest_generations, next_generation, older_generations

stems = st.from_regex(r"\d{1,6}(-retry[12])?(-scrubbed[1-3])?", fullmatch=True)


def test_each_generation_names_the_next() -> None:
    assert next_generation("000123") == "000123-scrubbed1"
    assert next_generation("000123-scrubbed9") == "000123-scrubbed10"
    assert next_generation("000123-retry1") == "000123-retry1-scrubbed1"


def test_a_name_that_only_looks_like_one_is_a_first_generation() -> None:
    for stem in ("scrubbed1", "a-scrubbed", "a-scrubbed0", "a-scrubbed1b"):
        assert generation_of(stem) == (stem, 0)


@given(first=stems, number=st.integers(0, 20))
def test_generations_are_counted(first: str, number: int) -> None:
    stem = generation_of(first)[0]
    for _ in range(number):
        stem = next_generation(stem)
    assert generation_of(stem) == (generation_of(first)[0], number)


@given(found=st.sets(stems), endings=st.permutations([".tar", ".parquet", ".failures.jsonl", ".index.parquet"]))
def test_each_shard_has_one_newest_generation_and_all_files_of_others_are_older(found, endings) -> None:
    newest = newest_generations(found)
    assert set(newest) == {generation_of(stem)[0] for stem in found}
    for stem in found:
        assert generation_of(stem)[1] <= generation_of(newest[generation_of(stem)[0]])[1]
    files = {f"{stem}{ending}" for stem in found for ending in endings} | {"dataset.json", "_info.json"}
    expected = {f"{stem}{ending}" for stem in found - set(newest.values()) for ending in endings}
    assert set(older_generations(files)) == expected


def test_what_a_deleted_tar_left_beside_itself_is_older_and_a_generation_without_tar_is_not_newer() -> None:
    assert older_generations(["1.parquet", "1-scrubbed1.tar", "2.tar", "2-scrubbed1.parquet"]) == ["1.parquet"]
