"""The frame of a ``.bin`` file of weights, a zip archive with a pickle in it, checked against bounds.

Nothing is unpacked, and the pickle is not looked into. torch.save stores its members as they are, so that
they can be mapped: together they fit into the file. An archive that says otherwise, or has packed members,
would become far larger in memory than it is on the disk.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

from ggq.checkpoint.files import cut_short, damaged, refuse_pointer
from ggq.errors import CheckpointProblem
from ggq.system import untrusted
from ggq.system.untrusted import shown

_MAGIC = b"PK\x03\x04"
_END, _END_BYTES, _COMMENT_BYTES = b"PK\x05\x06", 22, 65_535
_END_64, _LOCATOR_64 = b"PK\x06\x06", b"PK\x06\x07"
# A member per tensor, of some 80 bytes each; and the pickle has some 200 for it.
_DIRECTORY_BYTES = 64 << 20
_PICKLE_BYTES = 64 << 20
_MEMBERS = 400_000


def check(file: Path) -> None:
    """Raises CheckpointProblem, OSError. A file that is no zip archive is left to the converter's words."""
    with untrusted.open_regular(file) as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        start = stream.read(64)
        refuse_pointer(file, start)
        if not start:
            damaged(file, "It is empty.")
        if not start.startswith(_MAGIC):
            return
        stream.seek(max(0, file_bytes - _END_BYTES - _COMMENT_BYTES))
        tail = stream.read()
        if _directory_bytes(tail) > min(_DIRECTORY_BYTES, file_bytes):
            damaged(file, f"Its table of contents would be larger than {_DIRECTORY_BYTES:,} bytes.")
        if _END not in tail:
            cut_short(file, file_bytes + 1, file_bytes)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, ValueError, struct.error, OSError, NotImplementedError) as error:
            damaged(file, f"It is not a whole zip archive: {str(error)[:100]}.", error)
    _check_members(file, members, file_bytes)


def _check_members(file: Path, members: list[zipfile.ZipInfo], file_bytes: int) -> None:
    if len(members) > _MEMBERS:
        damaged(file, f"It has {len(members):,} members; up to {_MEMBERS:,} are read.")
    total = 0
    for member in members:
        total += member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise CheckpointProblem(
                f"{file} is not as torch writes it.",
                f"Its member {shown(member.filename)} is packed ({member.compress_size:,} bytes become "
                f"{member.file_size:,}); torch stores them as they are.",
                "Get the model in safetensors, or load it with torch and save it again.",
            )
        if member.filename.endswith(".pkl") and member.file_size > _PICKLE_BYTES:
            damaged(
                file,
                f"Its {shown(member.filename)} has {member.file_size:,} bytes; "
                f"up to {_PICKLE_BYTES:,} are read.",
            )
    if total > file_bytes:
        damaged(file, f"Its members announce {total:,} bytes; the file has {file_bytes:,}.")


def _directory_bytes(tail: bytes) -> int:
    """The size of the table of contents, as the file's end tells it; 0 where it tells none."""
    found = tail.rfind(_END)
    if found < 0 or found + _END_BYTES > len(tail):
        return 0
    (size,) = struct.unpack_from("<I", tail, found + 12)
    at = tail.rfind(_END_64, 0, found)
    if (size == 0xFFFFFFFF or _LOCATOR_64 in tail[:found]) and 0 <= at <= len(tail) - 48:
        (size,) = struct.unpack_from("<Q", tail, at + 40)
    return int(size)
