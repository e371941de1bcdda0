"""Standing watches over HTTP, with the pilot and the question that it was trained on."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

import httpx2

from vlm_perception import prompting

FREE = prompting.WAY_FREE_QUESTION


def append(client: httpx2.Client, jpeg: bytes) -> None:
    body = {"frame_b64": base64.b64encode(jpeg).decode(), "fps": 0.5}
    assert client.post("/append_frame", json=body).status_code == 200


def test_a_watch_that_turns_is_an_event_and_is_listed_as_true(client: httpx2.Client, jpeg: bytes) -> None:
    """Of a question and its contrary one comes true on the first frame, whatever it shows."""
    for question, hover in ((FREE, False), (f"no: {FREE}", True)):
        assert client.post("/watches", json={"question": question, "hover": hover}).status_code == 200
    with client.stream("GET", "/watches/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        assert next(lines) == ": ping"  # it listens
        sender = threading.Thread(target=append, args=(client, jpeg))
        sender.start()
        event: dict[str, Any] = next(json.loads(line[6:]) for line in lines if line.startswith("data: "))
        sender.join()
    assert event["holds"]
    assert 0.5 <= event["probability"] <= 1.0
    listed = client.get("/watches").json()
    assert [watch["id"] for watch in listed if watch["holds"]] == [event["id"]]
    assert listed[1]["hover"]


def test_a_watch_is_taken_away_by_its_number(client: httpx2.Client) -> None:
    number = client.post("/watches", json={"question": FREE}).json()["id"]
    assert client.delete(f"/watches/{number}").status_code == 200
    assert client.get("/watches").json() == []
    gone = client.delete(f"/watches/{number}")
    assert (gone.status_code, "GET /watches" in gone.json()["detail"]) == (404, True)


def test_what_cannot_be_watched_is_refused_and_the_others_stay(client: httpx2.Client) -> None:
    assert client.post("/watches", json={"question": "no: "}).status_code == 422
    for number in range(16):
        assert client.post("/watches", json={"question": f"number {number}?"}).status_code == 200
    many = client.post("/watches", json={"question": "one more?"})
    assert (many.status_code, "at most 16" in many.json()["detail"]) == (422, True)
    assert client.post("/watches", json={"question": "number 3?"}).status_code == 409
    assert len(client.get("/watches").json()) == 16
    assert client.get("/watches", headers={"X-Client-Id": "another"}).json() == []


def test_events_end_with_the_stream_and_too_many_listeners_are_refused(client: httpx2.Client) -> None:
    address = str(client.base_url)
    listeners = [httpx2.Client(base_url=address, timeout=60.0) for _ in range(5)]
    streams = [each.stream("GET", "/watches/events") for each in listeners]
    answers = [stream.__enter__() for stream in streams]
    try:
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
        assert client.post("/reset").status_code == 200
        assert client.post("/watches", json={"question": FREE}).status_code == 200  # another stream
        for answer in answers[:4]:
            assert answer.read().endswith(b": ping\n\n")  # it has ended
    finally:
        for stream, each in zip(streams, listeners, strict=True):
            stream.__exit__(None, None, None)
            each.close()
