"""A benchmark's pictures, whatever their size: checked, with the hashes that duplicates are found by."""

from pathlib import Path

from xmodal.crawl.pictures import PILLOW_MAX_PIXELS, Picture, PictureConfig, RefusedPictureError, check_picture

_ANY_PICTURE = PictureConfig(min_side=1, max_side=0, max_pixels=PILLOW_MAX_PIXELS)


def read_picture(path: Path) -> tuple[bytes, Picture] | str:
    """The bytes of a file, and the picture that they are; or why it cannot be read or decoded."""
    try:
        content = path.read_bytes()
        return content, check_picture(content, _ANY_PICTURE)
    except OSError as error:
        return error.strerror or str(error)
    except RefusedPictureError as error:
        return error.reason
