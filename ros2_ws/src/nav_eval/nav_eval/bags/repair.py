"""Saves what is whole of an MCAP recording that was cut off."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from nav_common.bag_writer import BagError, BagWriter
from nav_eval.bags.mcap_records import END_OF_FILE, MCAP_MAGIC, whole_length


def repair(path: Path | str, output: Path | str) -> int:
    """Copy every whole message of a cut-off MCAP recording into the new recording `output`; returns how many.

    Raises:
        BagError: it is no MCAP file, or nothing of it is whole.
    """
    source = Path(path)
    storage = next(iter(sorted(source.glob("*.mcap"))), None) if source.is_dir() else source
    if storage is None or not storage.is_file():
        raise BagError(f"{source} holds no .mcap file")
    with storage.open("rb") as file:
        if file.read(8) != MCAP_MAGIC:
            raise BagError(f"{storage} does not begin as an MCAP file: nothing can be saved")
    with tempfile.NamedTemporaryFile(suffix=".mcap", dir=Path(output).parent) as whole:
        with storage.open("rb") as file:
            whole.write(file.read(whole_length(storage)))
        whole.write(END_OF_FILE)
        whole.flush()
        reader = McapReader(Path(whole.name))
        try:
            reader.open()
        except (ReaderError, struct.error, TypeError) as error:
            raise BagError(f"{storage}: nothing can be saved: {error}") from error
        count = 0
        with BagWriter(output) as writer:
            copies = {}
            for connection in reader.connections:
                text = connection.msgdef.data
                types = get_types_from_msg(text, connection.msgtype)
                store = get_typestore(Stores.EMPTY)
                store.register(types)
                copies[connection.id] = writer.add_connection(
                    connection.topic,
                    connection.msgtype,
                    typestore=store,
                    offered_qos_profiles=connection.ext.offered_qos_profiles,  # type: ignore[union-attr]
                )
            for connection, time_ns, data in reader.messages_scan(reader.connections):
                writer.write(copies[connection.id], time_ns, data)
                count += 1
        reader.close()
    if not count:
        raise BagError(f"{storage}: no whole message is in it")
    return count
