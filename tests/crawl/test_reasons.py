import ast
from pathlib import Path

import xmodal
from xmodal.crawl.reasons import REASONS
from xmodal.posts.post import UNREADABLE

GIVERS = {"FailedTryError", "RefusedPictureError", "UnreadablePostError", "failure_record", "PostRecord"}


def reasons_in_the_code() -> set[str]:
    """What is given as a reason, first argument or by name, anywhere in the package."""
    found = set()
    for path in Path(xmodal.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in GIVERS:
                given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "reason")]
                constants = [one for expression in given for one in ast.walk(expression)]
                found |= {one.value for one in constants if isinstance(one, ast.Constant) and one.value}
    return found


def test_the_reasons_are_those_that_the_code_gives():
    assert reasons_in_the_code() - {"missing"} == REASONS.keys() | UNREADABLE.keys()


def test_every_reason_is_explained_in_a_line():
    assert all(line and "\n" not in line for line in REASONS.values())
