"""The HTTP API over the shipped pilot: the documented fields, streams of one's own, and every bad input refused."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from conftest import TOKEN, Serve
from prometheus_client.parser import text_string_to_metric_families

from nav_agent import toolset

MISSION = "fly to the red beacon"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def append(
    client: httpx2.Client, jpeg: bytes, headers: dict[str, str] | None = None, **fields: Any
) -> httpx2.Response:
    return client.post("/append_frame", json={"frame_b64": b64(jpeg), **fields}, headers=headers)


# -- what is documented ------------------------------------------------------------------------------------------------


def test_every_path_answers_with_the_documented_fields(client: httpx2.Client, jpeg: bytes) -> None:
    taken = append(client, jpeg, fps=2.0, chunk_frames=1).json()
    assert set(taken) == {"status", "message", "cache_len", "chunks"}
    assert (taken["status"], taken["chunks"]) == ("ok", 1)
    chunk = client.post("/append_chunk", json={"frame_b64": "|||".join([b64(jpeg)] * 8)}).json()
    assert set(chunk) == set(taken)
    assert chunk["chunks"] == 3  # eight frames at 2 fps, of which this pilot takes one each 2 s
    decided = client.post(
        "/decide", json={"question": MISSION, "max_new_tokens": 128, "temperature": 0.3}
    ).json()
    assert {"action", "reasoning", "ttft", "cache_len", "chunks_encoded", "tool", "arguments"} == set(decided)
    assert decided["action"] in {"move_forward", "turn_left", "turn_right", "hover"}
    assert toolset.clamp(decided["tool"], decided["arguments"]) == (decided["arguments"], [])
    assert decided["reasoning"] == ""  # this pilot has no words
    assert 0 < decided["ttft"] < 60
    status = client.get("/status").json()
    assert set(status) == {"engine", "vram"}
    assert set(status["vram"]) == {"allocated_gb", "reserved_gb"}
    assert status["engine"]["chunks_appended"] == decided["chunks_encoded"]
    health = client.get("/health").json()
    assert health["status"] in {"healthy", "degraded"}
    assert health["model_loaded"] is True
    assert health["latency_ms"] > 0
    assert client.post("/reset").json()["status"] == "ok"


def test_a_decision_needs_no_field_but_has_the_documented_defaults(
    client: httpx2.Client, jpeg: bytes
) -> None:
    append(client, jpeg)
    assert client.post("/decide").status_code == 200
    document = client.get("/openapi.json").json()["paths"]
    schema = document["/decide"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {name: schema[name]["default"] for name in ("max_new_tokens", "temperature")} == {
        "max_new_tokens": 128,
        "temperature": 0.3,
    }
    assert schema["question"]["default"].startswith("Observe the current UAV camera view.")


def test_pictures_come_as_a_form_too(client: httpx2.Client, jpeg: bytes) -> None:
    one = client.post("/append_frame", files={"frame": jpeg}, data={"fps": "2"})
    many = client.post("/append_chunk", files=[("frame", jpeg)] * 4, data={"fps": "0.5"})
    assert (one.status_code, many.status_code) == (200, 200)
    assert many.json()["chunks"] == 5


def test_a_decision_calls_only_what_the_request_allows(client: httpx2.Client, jpeg: bytes) -> None:
    append(client, jpeg)
    for tool in toolset.BY_NAME:
        body = {"question": MISSION, "tools": [tool], "temperature": 5.0}
        assert client.post("/decide", json=body).json()["tool"] == tool


def test_a_decision_leaves_the_memory_as_it_was(client: httpx2.Client, jpeg: bytes) -> None:
    before = append(client, jpeg).json()
    answers = [client.post("/decide", json={"question": MISSION, "temperature": 0}).json() for _ in range(3)]
    assert {(answer["cache_len"], answer["chunks_encoded"]) for answer in answers} == {
        (before["cache_len"], before["chunks"])
    }
    assert len({json.dumps([answer["tool"], answer["arguments"]]) for answer in answers}) == 1


def test_the_page_describes_every_path(client: httpx2.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/append_frame", "/append_chunk", "/decide", "/status", "/reset", "/health", "/metrics"),
        *("/watches", "/watches/{number}"),
    }
    assert client.get("/docs").status_code == 200


def test_what_was_counted_comes_under_the_documented_names(client: httpx2.Client, jpeg: bytes) -> None:
    append(client, jpeg)
    for _ in range(3):
        client.post("/decide", json={"question": MISSION})
    counters = client.get("/metrics").json()
    names = {"total_requests", "avg_latency", "min_latency", "max_latency", "errors", "by_tokens"}
    assert names <= set(counters)
    assert (counters["total_requests"], counters["errors"]) == (3, 0)
    assert 0 < counters["min_latency"] <= counters["avg_latency"] <= counters["max_latency"]
    assert {"count": 3, "avg": counters["avg_latency"]} in counters["by_tokens"].values()
    text = client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4,*/*;q=0.1"}).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (count,) = (
        s.value for s in families["streampilot_model_request_seconds"].samples if s.name.endswith("count")
    )
    assert count == 3
    decided = [
        sample.value
        for sample in families["streampilot_http_request_seconds"].samples
        if sample.name.endswith("_count") and sample.labels == {"path": "/decide", "status": "200"}
    ]
    assert decided == [3]


# -- streams of one's own ----------------------------------------------------------------------------------------------


def test_each_client_has_a_stream_of_its_own(client: httpx2.Client, jpeg: bytes) -> None:
    chunks = []
    for name, frames in (("a", 1), ("b", 3)):
        for _ in range(frames):
            answer = append(client, jpeg, fps=0.5, headers={"X-Client-Id": name})
        chunks.append(answer.json()["chunks"])
    assert chunks == [1, 3]
    assert client.post("/decide", headers={"X-Client-Id": "c"}).status_code == 409  # no frame in its memory
    client.post("/reset", headers={"X-Client-Id": "b"})
    assert append(client, jpeg, headers={"X-Client-Id": "a"}).json()["chunks"] == 1
    assert append(client, jpeg, headers={"X-Client-Id": "b"}).json()["chunks"] == 1


def test_beyond_the_cap_of_clients_the_others_are_served(serve: Serve, jpeg: bytes) -> None:
    with httpx2.Client(base_url=serve(max_clients=2), timeout=60.0) as client:
        statuses = [append(client, jpeg, headers={"X-Client-Id": name}).status_code for name in "abc"]
        assert statuses == [200, 200, 503]
        assert append(client, jpeg, headers={"X-Client-Id": "a"}).status_code == 200
        client.post("/reset", headers={"X-Client-Id": "a"})
        assert append(client, jpeg, headers={"X-Client-Id": "c"}).status_code == 200


# -- who may call ------------------------------------------------------------------------------------------------------


def test_without_its_token_nobody_gets_anything(serve: Serve, jpeg: bytes) -> None:
    other = TOKEN[::-1]
    with httpx2.Client(base_url=serve(tokens=(TOKEN, other)), timeout=60.0) as client:
        for path in ("/status", "/health", "/metrics", "/docs", "/openapi.json", "/nothing"):
            assert client.get(path).status_code == 401
        for wrong in ("Bearer wrong", f"Bearer {TOKEN}x", "Bearer", f"Basic {TOKEN}", "Bearer \xff"):
            answer = client.get("/status", headers=[(b"authorization", wrong.encode("latin-1"))])
            assert answer.status_code == 401
            assert "token" in answer.json()["detail"]
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert append(client, jpeg, headers=right).json()["chunks"] == 1
        assert client.get("/status", auth=("anybody", TOKEN)).status_code == 200
        # Another token is another client.
        assert client.post("/decide", headers={"Authorization": f"Bearer {other}"}).status_code == 409


def test_who_sends_too_much_is_told_to_wait_and_the_others_are_served(serve: Serve) -> None:
    with httpx2.Client(base_url=serve(requests_per_s=2.0), timeout=60.0) as client:
        answers = [client.get("/status", headers={"X-Client-Id": "eager"}) for _ in range(8)]
        assert [answer.status_code for answer in answers][:4] == [200] * 4
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert client.get("/status").status_code == 200


# -- bad input ---------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"frame_b64": b64(b"not a picture")}, "no JPEG or PNG"),
        ({"frame_b64": b64(png_header(50_000, 50_000))}, "pixel"),
        ({"frame_b64": b64(png_header(9_000, 9_000))}, "9000x9000"),
        ({"frame_b64": "%%%"}, "base64"),
        ({"frame_b64": ""}, "frame_b64"),
        ({}, "frame_b64"),
        ({"frame_b64": 7}, "frame_b64"),
        ({"frame_b64": "aGk=", "unknown": 1}, "unknown"),
        ({"frame_b64": "aGk=", "fps": 0}, "fps"),
        ({"frame_b64": "aGk=", "fps": "often"}, "fps"),
        ({"frame_b64": "aGk=", "chunk_frames": -1}, "chunk_frames"),
        ([1], "body"),
    ],
)
def test_frames_that_cannot_be_are_refused_with_the_reason(
    client: httpx2.Client, jpeg: bytes, fields: Any, reason: str
) -> None:
    append(client, jpeg)
    answer = client.post("/append_frame", json=fields)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert len(answer.content) < 1000
    assert client.get("/status").json()["engine"]["chunks_appended"] == 1


def test_a_picture_cut_short_is_refused_and_nothing_changes(client: httpx2.Client, jpeg: bytes) -> None:
    before = append(client, jpeg).json()
    answer = append(client, jpeg[: len(jpeg) // 2], fps=0.5)
    assert answer.status_code == 422
    assert "no end" in answer.json()["detail"]
    assert append(client, jpeg, fps=0.5).json()["chunks"] == before["chunks"] + 1


def test_chunks_that_the_model_was_not_trained_on_are_refused(client: httpx2.Client, jpeg: bytes) -> None:
    answer = append(client, jpeg, chunk_frames=4)
    assert answer.status_code == 422
    assert "trained on 1" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_new_tokens": -5}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"question": " \t"}, "question"),
        ({"question": "where? " * 1000}, "tokens"),
        ({"question": "x" * 9000}, "question"),
        ({"tools": ["fly_to_the_moon"]}, "move_forward"),
        ({"tools": []}, "tools"),
        ({"surplus": True}, "surplus"),
    ],
)
def test_questions_that_cannot_be_are_refused_with_the_reason(
    client: httpx2.Client, jpeg: bytes, fields: dict[str, Any], reason: str
) -> None:
    append(client, jpeg)
    answer = client.post("/decide", json=fields)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"question": "\\ud800"}', b'"text"'])
def test_what_is_no_json_is_refused(client: httpx2.Client, body: bytes) -> None:
    assert client.post("/decide", content=body).status_code == 422


def test_forms_that_cannot_be_are_refused(client: httpx2.Client, jpeg: bytes) -> None:
    answers = [
        client.post("/append_frame", files={"other": jpeg}),
        client.post("/append_frame", data={"frame": "text"}, files={"frame": jpeg}),
        client.post("/append_frame", files=[("frame", jpeg)] * 2),
        client.post("/append_frame", content=b"x", headers={"content-type": "multipart/form-data"}),
        client.post(
            "/append_frame", content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}
        ),
    ]
    assert [answer.status_code for answer in answers] == [422] * 5


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("announced", [True, False])
def test_a_hundred_megabytes_are_refused_while_they_come(client: httpx2.Client, announced: bool) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        block = b"A" * 2**16
        yield b'{"frame_b64": "'
        for _ in range(1600):
            sent += len(block)
            yield block

    client.get("/status")
    before = rss_bytes()
    headers = {"content-length": str(15 + 1600 * 2**16)} if announced else None
    try:
        answer = client.post("/append_frame", content=body(), headers=headers)
    except (httpx2.WriteError, httpx2.ReadError):
        answer = None  # closed on us while we were still sending
    if answer is not None:
        assert answer.status_code == 413
    assert sent < 40 * 2**20  # what the sockets' buffers hold beyond the 8 MiB
    assert rss_bytes() - before < 64 * 2**20
    assert client.get("/status").status_code == 200


def test_connections_that_send_nothing_make_room_for_others(serve: Serve) -> None:
    address = serve(max_connections=16, connection_idle_s=60.0)
    host, port = address.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(64)]
    try:
        silent[-1].sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ")  # a head that is never finished
        for _ in range(5):
            with httpx2.Client(base_url=address, timeout=10.0) as client:
                assert client.get("/status").status_code == 200
        silent[0].settimeout(10.0)
        assert silent[0].recv(1) == b""  # the first was closed to make room
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize("start", [b"", b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_that_asks_for_nothing_is_closed_in_time(serve: Serve, start: bytes) -> None:
    host, port = serve(connection_idle_s=0.5).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20.0) as slow:
        slow.sendall(start)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):  # as what it had sent was not read to its end
            assert slow.recv(1) == b""
        assert time.monotonic() - began >= 0.3


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    host, port = serve(body_s=0.5).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20.0) as slow:
        slow.sendall(b"POST /append_frame HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
