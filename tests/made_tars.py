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
    end = 512 + -(-len(content) // 512) * 512
    member = tarfile.TarInfo("huge.jpg")
    member.size = 10 << 30
    return make_tar((name, content))[:end] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2000)
