"""Two network namespaces with a bad internet between them (Linux, root): every packet delayed, lost or held to a rate.

Each namespace has a TUN device; a thread here carries packets from one to the other. So TCP meets real loss, which the
proxy of `zenoh_link.emulator` can only imitate. All traffic stays within the two namespaces, which `close` removes.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from zenoh_link.profile import Profile

SERVER_ADDRESS, EDGE_ADDRESS = "10.231.0.1", "10.231.0.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
QUEUE_S = 0.1
"""What a rate's queue holds at most; more is dropped, as by a home's router with a reasonable buffer."""


def missing() -> str:
    """Why namespaces cannot be made here; "" if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (Debian: iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened"
    made = subprocess.run(["ip", "netns", "add", f"sp-try-{os.getpid()}"], capture_output=True, check=False)
    if made.returncode != 0:
        return f"`ip netns add` fails: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", f"sp-try-{os.getpid()}"], check=False)
    return ""


class Namespaces:
    """Made by the constructor; `command` runs a program in one of them."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        """Raises OSError or subprocess.CalledProcessError where `missing` would have said why."""
        self.profile = profile
        self.server, self.edge = (f"sp-{side}-{os.getpid()}" for side in ("server", "edge"))
        self._random = random.Random(seed)
        self._cut = threading.Event()
        self._closing = threading.Event()
        self.lost = 0
        for name in (self.server, self.edge):
            _ip("netns", "add", name)
        try:
            self._tuns = [_tun(self.server), _tun(self.edge)]
            for name, address in ((self.server, SERVER_ADDRESS), (self.edge, EDGE_ADDRESS)):
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "addr", "add", f"{address}/30", "dev", "sp0")
                _ip("-n", name, "link", "set", "sp0", "mtu", str(MTU), "up")
        except BaseException:
            self._delete()
            raise
        self._thread = threading.Thread(target=self._carry, name="packets", daemon=True)
        self._thread.start()

    def command(self, name: str, words: list[str]) -> list[str]:
        """`words` as a command in the namespace."""
        return ["ip", "netns", "exec", name, *words]

    def cut(self, engaged: bool) -> None:
        """Begin or end an outage: packets are lost, in both directions."""
        (self._cut.set if engaged else self._cut.clear)()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(2.0)
        for tun in self._tuns:
            os.close(tun)
        self._delete()

    def _delete(self) -> None:
        for name in (self.server, self.edge):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _carry(self) -> None:
        server, edge = self._tuns
        ways = {edge: (server, self.profile.up_mbit_s), server: (edge, self.profile.down_mbit_s)}
        free_s = dict.fromkeys(ways, 0.0)
        under_way: list[tuple[float, int, int, bytes]] = []
        number = itertools.count()
        while not self._closing.is_set():
            now = time.monotonic()
            wait_s = min(max(under_way[0][0] - now, 0.0), 0.1) if under_way else 0.1
            for tun in select.select(list(ways), [], [], wait_s)[0]:
                packet = os.read(tun, MTU + 100)
                now = time.monotonic()
                to, mbit_s = ways[tun]
                if mbit_s:
                    if free_s[tun] - now > QUEUE_S:
                        self.lost += 1
                        continue
                    free_s[tun] = max(free_s[tun], now) + len(packet) / (mbit_s * 125_000)
                if self._random.random() < self.profile.loss:
                    self.lost += 1
                    continue
                delay_s = self.profile.rtt_ms / 2000 + self._random.uniform(0, self.profile.jitter_ms / 1000)
                heapq.heappush(under_way, (max(free_s[tun], now) + delay_s, next(number), to, packet))
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _, _, to, packet = heapq.heappop(under_way)
                if not self._cut.is_set():
                    os.write(to, packet)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _tun(name: str) -> int:
    """A TUN device sp0 in the namespace, opened from outside it."""
    opened: list[int | OSError] = []

    def make() -> None:  # on a thread of its own: the namespace is the thread's
        try:
            _enter(Path("/run/netns") / name)
            tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"sp0", _IFF_TUN | _IFF_NO_PI))
            opened.append(tun)
        except OSError as error:
            opened.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(opened[0], OSError):
        raise opened[0]
    return opened[0]


def _enter(namespace: Path) -> None:
    with namespace.open() as file:  # os.setns exists from Python 3.12
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"namespace {namespace} cannot be entered")
