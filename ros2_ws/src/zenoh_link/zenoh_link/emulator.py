"""A TCP proxy that behaves like a bad internet, without root: delay, jitter, stalls as by lost packets, rate, outages.

It stands between the edge and the server on this machine. What it cannot show is TCP's own congestion control across
the loss (a lost packet is a stall of one round trip here); network namespaces can. All connections in one direction
share the rate, as on a home's uplink. During an outage nothing passes, and afterwards what was kept arrives at once:
that is what TCP does, and what makes commands seconds old.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import socket
import threading
import time
from dataclasses import dataclass, field

from nav_common.process import StopSignals
from zenoh_link import profile as profiles
from zenoh_link.errors import SettingsError
from zenoh_link.profile import Profile
from zenoh_link.settings import check_ports

PACKET = 1448
"""Bytes of payload in a TCP packet on Ethernet."""
BUFFER = 32 * 1024
"""Bytes that the bottleneck holds for a connection, beside what the kernel keeps; the sender feels the rest."""


@dataclass
class Line:
    """One direction of a way: its rate (0: unlimited), shared by all connections, and when it is free again."""

    bytes_s: float
    free_s: float = field(default=0.0)

    def occupy(self, size: int, now_s: float) -> float:
        """When `size` bytes that are sent now have left it."""
        if not self.bytes_s:
            return now_s
        self.free_s = max(self.free_s, now_s) + size / self.bytes_s
        return self.free_s


def lines(profile: Profile) -> tuple[Line, Line]:
    """Up (from the edge) and down."""
    return Line(profile.up_mbit_s * 125_000), Line(profile.down_mbit_s * 125_000)


def delay_s(profile: Profile, size: int, chance: random.Random) -> float:
    """From the line's end to the other side, of `size` bytes of a TCP connection: lost packets come late, not never."""
    one_way_s = profile.rtt_ms / 2000 + chance.uniform(0, profile.jitter_ms / 1000)
    packets = math.ceil(size / PACKET)
    if profile.loss and chance.random() < 1 - (1 - profile.loss) ** packets:
        # Among others a lost packet is noticed after one round trip, a lone one by the tail loss probe after two.
        one_way_s += (2 if packets == 1 else 1) * max(profile.rtt_ms / 1000, 0.01)
    return one_way_s


class Emulator:
    """A proxy in a thread of its own, from `start` until `close`."""

    def __init__(self, listen_port: int, target_port: int, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self._ports = listen_port, target_port
        self._random = random.Random(seed)
        self._up, self._down = lines(profile)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket
        self._thread = threading.Thread(target=self._run, name="emulator", daemon=True)

    def start(self) -> Emulator:
        """Raises SettingsError: nobody can listen on its port."""
        try:
            self._listener = socket.create_server(("127.0.0.1", self._ports[0]))
        except OSError as error:
            raise SettingsError(
                f"port {self._ports[0]} cannot be listened on ({error.strerror}): give another one"
            ) from error
        if self.profile.up_mbit_s:
            # Otherwise a small buffer would only make TCP wait for its own acknowledgements.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._thread.start()
        return self

    def cut(self, engaged: bool) -> None:
        """Begin or end an outage: nothing passes, in either direction."""
        self._loop.call_soon_threadsafe(self._passing.clear if engaged else self._passing.set)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(5.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=BUFFER)
        if self.profile.cut_s > 0:
            self._spawn(self._cut_now_and_then())
        await self._stopped.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # asyncio's own, too, which accept connections
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self.profile.cut_every_s - self.profile.cut_s)
            self._passing.clear()
            await asyncio.sleep(self.profile.cut_s)
            self._passing.set()

    def _spawn(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine: the task that asyncio makes of one complains when it is cancelled."""
        if self._stopped.is_set():
            writer.close()
        else:
            self._spawn(self._connect(reader, writer))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        try:
            there_reader, there_writer = await asyncio.open_connection(
                "127.0.0.1", self._ports[1], limit=BUFFER
            )
        except OSError:
            writer.close()
            return
        ways = [
            self._spawn(self._pump(reader, there_writer, self._up)),
            self._spawn(self._pump(there_reader, writer, self._down)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, there_writer):
            end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arrive = self._spawn(self._arrive(under_way, writer))
        due_s = 0.0
        try:
            while not arrive.done():
                chunk = await reader.read(PACKET if line.bytes_s else BUFFER)
                if not chunk:
                    break
                now = time.monotonic()
                left_s = line.occupy(len(chunk), now)
                if left_s > now:
                    await asyncio.sleep(max(left_s - now - 0.001, 0.0))
                # TCP keeps the order.
                due_s = max(due_s, left_s + delay_s(self.profile, len(chunk), self._random))
                under_way.put_nowait((due_s, chunk))
            await under_way.join()
        except OSError:
            pass
        finally:
            arrive.cancel()

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due_s, chunk = await under_way.get()
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            await self._passing.wait()
            try:
                writer.write(chunk)
                await writer.drain()
            except OSError:
                return
            finally:
                under_way.task_done()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", type=int, required=True, metavar="PORT", help="on this machine")
    parser.add_argument(
        "--to", type=int, required=True, metavar="PORT", help="of the server, on this machine"
    )
    parser.add_argument(
        "--profile", default="wan", help=f"{', '.join(profiles.PROFILES)}, or a file; default %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Until a signal. Raises SettingsError."""
    check_ports(listen=options.listen, to=options.to)
    profile = profiles.find(options.profile)
    stop = StopSignals()
    emulator = Emulator(options.listen, options.to, profile).start()
    stop.wait()
    emulator.close()
    return 0
