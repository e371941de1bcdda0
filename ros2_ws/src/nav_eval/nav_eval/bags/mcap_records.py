"""The records of an MCAP file, as far as a cut-off one is looked at (https://mcap.dev/spec)."""

from __future__ import annotations

import struct
from pathlib import Path

MCAP_MAGIC = b"\x89MCAP0\r\n"
FOOTER, DATA_END = 0x02, 0x0F
END_OF_FILE = struct.pack("<BQI", DATA_END, 4, 0) + struct.pack("<BQQQI", FOOTER, 20, 0, 0, 0) + MCAP_MAGIC
"""What makes a file of whole records readable, without an index."""


def whole_length(path: Path) -> int:
    """Bytes of `path` up to the end of its last whole record of the data section."""
    size = path.stat().st_size
    end = len(MCAP_MAGIC)
    with path.open("rb") as file:
        while True:
            file.seek(end)
            head = file.read(9)
            if len(head) < 9 or head[0] == DATA_END:
                return end
            (length,) = struct.unpack("<Q", head[1:])
            if head[0] == 0 or head[0] > DATA_END or end + 9 + length > size:
                return end
            end += 9 + length
