"""A benchmark's pictures, whatever their size: checked, with the hashes that duplicates are found by."""

from dataclasses import replace
from pathlib import Path

from xmodal.crawl.pictures import PILLOW_MAX_PIXELS, Picture, PictureConfig, RefusedPictureError, check_picture

_ANY_PICTURE = PictureConfig(min_side=1, max_side=0, max_pixels=PILLOW_MAX_PIXELS)
_AS_PNG = replace(_ANY_PICTURE, encode="png")


def read_picture(path: Path, *, lossless: bool = False) -> tuple[bytes, Picture] | str:
    """The bytes of a file, and the picture that they are; or why it cannot be read or decoded.

    Of a format that shards do not hold, it is encoded anew as a post's picture is, so that it can be compared with
    those; or, `lossless`, as a PNG.
    """
    try:
        content = path.read_bytes()
        picture = check_picture(content, _ANY_PICTURE)
        if lossless and picture.content != content:
            picture = check_picture(content, _AS_PNG)
        return content, picture
    except OSError as error:
        return error.strerror or str(error)
    except RefusedPictureError as error:
        return error.reason
