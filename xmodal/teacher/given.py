"""The teacher `given`: what the posts' own labels say, read by nobody anew."""

from collections.abc import Sequence

from xmodal.labels import SoftLabel
from xmodal.posts.post import Post

GIVEN = {"name": "given", "revision": "with the posts"}
"""Its name and revision, as samples have it. Whose labels they are, the posts' fingerprint in the recipe tells."""


def given_labels(posts: Sequence[Post]) -> list[SoftLabel]:
    """The label that each post came with; those without one are not to be asked for."""
    labels = [post.label for post in posts if post.label is not None]
    assert len(labels) == len(posts)
    return labels
