from launchers import settings, start


def test_without_a_compiler_a_run_that_asks_for_one_says_so_in_two_lines(small_view, tmp_path):
    with start("python", settings(small_view, tmp_path, "--compile=true"), CXX="/no/such/compiler") as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "compile: torch needs a C++ compiler for it, and found none that works" in output
    assert "Traceback" not in output
