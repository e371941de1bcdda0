"""Connects, kills and outages in random order: the link always comes back, and nothing piles up.

SOAK_S=3600 python -m pytest test/test_soak.py runs for an hour (some thousand events); by default it runs for 20 s.
"""

import gc
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nav_common import topics
from nav_common.testing import free_port
from zenoh_link.emulator import Emulator
from zenoh_link.profile import Profile
from zenoh_link.settings import Side
from zenoh_link.testing.rig import End, command, odometry, until

SOAK_S = float(os.environ.get("SOAK_S", "20"))
BACK_S = 15.0
STRANGER = """
import sys, zenoh
from zenoh_link import session, settings
zenoh.open(session.client_config(settings.load(), settings.parse_address(sys.argv[1]), None))
print("open", flush=True)
sys.stdin.read()
"""


class Soak:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.port, self.proxy_port = free_port(), free_port()
        self.emulator = Emulator(self.proxy_port, self.port, Profile(rtt_ms=2)).start()
        self.server, self.edge = self._server(), self._edge()

    def _server(self) -> End:
        return End(Side.SERVER, [f"tcp/127.0.0.1:{self.port}"])

    def _edge(self) -> End:
        return End(Side.EDGE, [f"tcp/127.0.0.1:{self.proxy_port}"])

    def restart_edge(self) -> None:
        self.edge.link.close()
        self.edge = self._edge()

    def restart_server(self) -> None:
        self.server.link.close()
        self.server = self._server()

    def short_outage(self) -> None:
        self.emulator.cut(True)
        time.sleep(self.random.uniform(0.05, 0.8))
        self.emulator.cut(False)

    def long_outage(self) -> None:
        self.emulator.cut(True)
        time.sleep(self.random.uniform(2.5, 4.0))
        self.emulator.cut(False)

    def connections_reset(self) -> None:
        self.emulator.close()
        self.emulator = Emulator(self.proxy_port, self.port, Profile(rtt_ms=2)).start()

    def stranger_killed(self) -> None:
        """Another client that dies without a word."""
        words = [sys.executable, "-c", STRANGER, f"tcp/127.0.0.1:{self.port}"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.communicate()

    def check(self) -> None:
        """Both sides are up and messages cross both ways."""
        self.edge.wait_up(BACK_S)
        self.server.wait_up(BACK_S)
        stamp_s = time.time()
        sent, back = odometry(stamp_s), command(stamp_s, 1)

        def crosses(sender: End, topic, payload: bytes, receiver: End) -> bool:
            sender.link.send(topic, payload)
            while not receiver.inbox.empty():
                if receiver.inbox.get()[1] == payload:
                    return True
            return False

        assert until(lambda: crosses(self.edge, topics.ODOM, sent, self.server), BACK_S)
        assert until(lambda: crosses(self.server, topics.COMMAND, back, self.edge), BACK_S)

    def close(self) -> None:
        self.edge.link.close()
        self.server.link.close()
        self.emulator.close()


def resources() -> tuple[int, int]:
    gc.collect()
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc (Linux)")
@pytest.mark.timeout(SOAK_S + 120)
def test_the_link_always_comes_back_and_nothing_piles_up():
    seed = random.randrange(1000)
    print("seed", seed)
    soak = Soak(seed)
    events = [
        soak.restart_edge,
        soak.restart_server,
        soak.short_outage,
        soak.long_outage,
        soak.connections_reset,
        soak.stranger_killed,
    ]
    try:
        soak.check()
        for event in events:
            event()
            soak.check()
        before, count, end = resources(), 0, time.monotonic() + SOAK_S
        while time.monotonic() < end:
            soak.random.choice(events)()
            soak.check()
            count += 1
        after = resources()
    finally:
        soak.close()
    print(count, "events; threads and files", before, after)
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 12
