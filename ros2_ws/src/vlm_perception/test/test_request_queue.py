"""The queue between those who ask and the thread that answers."""

from __future__ import annotations

import threading

from vlm_perception.request_queue import SHUT_DOWN, RequestQueue


def test_requests_stay_in_order_until_they_are_taken_out() -> None:
    queue: RequestQueue[str] = RequestQueue("questions", "ask later", most=3)
    assert queue.first() is None
    assert [queue.put(request) for request in "abc"] == [""] * 3
    assert (queue.first(), queue.waiting()) == ("a", ["a", "b", "c"])
    assert queue.put("d") == "3 questions are waiting already: ask later"
    queue.remove("b")
    assert queue.put("d") == ""
    assert queue.take_all() == ["a", "c", "d"]
    assert queue.waiting() == []


def test_once_it_is_closed_all_that_was_put_in_is_seen_by_who_takes_it_out() -> None:
    """Whoever is told that a request waits can rely on it: none comes in behind the last look."""
    queue: RequestQueue[int] = RequestQueue(most=10**9)
    accepted: list[int] = []
    under_way = threading.Event()

    def put(first: int) -> None:
        number = first
        while not (problem := queue.put(number)):
            accepted.append(number)
            number += 4
            if number > 100:
                under_way.set()
        assert problem == SHUT_DOWN

    threads = [threading.Thread(target=put, args=(first,), daemon=True) for first in range(4)]
    for thread in threads:
        thread.start()
    assert under_way.wait(10.0)
    queue.close()
    taken = queue.take_all()
    for thread in threads:
        thread.join(10.0)
    assert sorted(taken) == sorted(accepted)
    assert queue.waiting() == []
