"""Tars as any tool may have made them, whole and damaged."""

import io
import tarfile


def make_tar(*members: tuple[str, bytes]) -> bytes:
    """A tar of these files, in this order, whatever their names are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def claiming_ten_gigabytes(name: str, content: bytes) -> bytes:
    """A tar of one whole file and of one that claims ten gigabytes and has two thousand bytes."""
    return _claiming(10 << 30, name, content)


def claiming_less_than_nothing(name: str, content: bytes, size: int) -> bytes:
    """A tar of one whole file and of one of a negative size, which the format can say: -512 leads back to itself."""
    return _claiming(size, name, content)


def _claiming(size: int, name: str, content: bytes) -> bytes:
    end = 512 + -(-len(content) // 512) * 512
    member = tarfile.TarInfo("huge.jpg" if size > 0 else "negative.jpg")
    member.size = size
    return make_tar((name, content))[:end] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2000)


def with_header_of_a_size(size: int) -> bytes:
    """A tar whose first member is an extended header that claims `size` bytes of itself."""
    header = tarfile.TarInfo("header")
    header.size, header.type = size, tarfile.XHDTYPE
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(2000)


def with_headers_of_headers(count: int) -> bytes:
    """A tar of one file behind so many global headers, each of which tarfile reads within the one before."""
    header = tarfile.TarInfo("header")
    header.type = tarfile.XGLTYPE
    return header.tobuf(tarfile.GNU_FORMAT) * count + make_tar(("a.jpg", b"picture"))


def named_in_latin_1(content: bytes) -> bytes:
    """A tar of one file, `é.jpg`, whose name is not UTF-8."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        member = tarfile.TarInfo("é.jpg")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()
