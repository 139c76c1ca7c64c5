"""Tar archives of given contents."""

import io
import tarfile


def tarred(path, members, mode="w"):
    """Write a tar archive of members, whose contents are given by name; return its path."""
    path.write_bytes(tar_bytes(members, mode))
    return path


def tar_bytes(members, mode="w"):
    """The bytes of a tar archive of members, whose contents are given by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
