"""A benchmark's pictures, whatever their size: checked, with the hashes that duplicates are found by."""

from dataclasses import replace
from pathlib import Path

from xmodal.crawl.pictures import PILLOW_MAX_PIXELS, Picture, PictureConfig, RefusedPictureError, check_picture

_ANY_PICTURE = PictureConfig(min_side=1, max_side=0, max_pixels=PILLOW_MAX_PIXELS)
_AS_PNG = replace(_ANY_PICTURE, encode="png")


def read_picture(path: Path) -> tuple[bytes, Picture] | str:
    """The bytes of a file, and the picture that they are; or why it cannot be read or decoded.

    Of a format that shards do not hold, it is made a PNG, which loses nothing.
    """
    try:
        content = path.read_bytes()
        picture = check_picture(content, _ANY_PICTURE)
        return content, picture if picture.content == content else check_picture(content, _AS_PNG)
    except OSError as error:
        return error.strerror or str(error)
    except RefusedPictureError as error:
        return error.reason
