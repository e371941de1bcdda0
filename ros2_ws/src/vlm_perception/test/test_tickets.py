"""A ticket's result, callbacks and cancellation."""

import functools
import threading

import pytest

from vlm_perception.tickets import Ticket


def test_the_result_is_there_once_done() -> None:
    ticket: Ticket[int] = Ticket()
    with pytest.raises(RuntimeError, match="not done"):
        _ = ticket.result
    assert not ticket.wait(0.0)
    ticket.finish(7)
    assert ticket.wait(0.0)
    assert ticket.result == 7


def test_a_callback_is_called_once_whether_added_before_or_after() -> None:
    ticket: Ticket[int] = Ticket()
    called: list[str] = []
    ticket.add_done_callback(lambda: called.append("before"))
    assert called == []
    ticket.finish(1)
    ticket.add_done_callback(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_callbacks_added_while_another_thread_finishes_are_all_called() -> None:
    for _ in range(200):
        ticket: Ticket[int] = Ticket()
        called: list[int] = []
        thread = threading.Thread(target=ticket.finish, args=(1,))
        thread.start()
        for number in range(20):
            ticket.add_done_callback(functools.partial(called.append, number))
        thread.join()
        assert sorted(called) == list(range(20))


def test_cancelling_notifies_whoever_does_the_work() -> None:
    notified: list[bool] = []
    ticket: Ticket[int] = Ticket(notify=lambda: notified.append(True))
    assert not ticket.cancelled
    ticket.cancel()
    assert ticket.cancelled
    assert notified == [True]
    assert not ticket.done
