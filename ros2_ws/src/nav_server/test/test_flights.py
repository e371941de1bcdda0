"""The four-action client flies the embedded simulator, over HTTP."""

from __future__ import annotations

import httpx2
from conftest import TOKEN, Serve

from nav_server.testing.flights import fly

MISSION = "fly to the red beacon"


def test_the_four_action_client_flies_to_the_beacon(serve: Serve) -> None:
    address = serve(tokens=(TOKEN,))
    with httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        flown = fly(http, 2, MISSION)
    assert flown.said_reached
    assert flown.distance_m < 2.0
    assert flown.success
    assert flown.flight.errors == 0
    assert {"action", "reasoning", "ttft", "cache_len", "chunks_encoded"} < set(flown.flight.decisions[0])


def test_without_a_server_the_four_action_client_hovers() -> None:
    starting = httpx2.MockTransport(lambda request: httpx2.Response(503))  # as while the model starts again
    with httpx2.Client(base_url="http://127.0.0.1:9", transport=starting) as http:
        flown = fly(http, 2, MISSION)
    assert flown.flight.decisions == []
    assert flown.flight.errors > 0
    assert flown.distance_m > 5.0
    assert not flown.success
