"""Names resolve within the vehicle's namespace; every type named exists."""

import pytest

from nav_common import topics
from nav_common.topics import Topic

ALL = [value for value in vars(topics).values() if isinstance(value, Topic)]


@pytest.mark.parametrize(
    ("name", "namespace", "expected"),
    [
        ("odom", "/drone", "/drone/odom"),
        ("odom", "drone2/", "/drone2/odom"),
        ("odom", "", "/odom"),
        ("/diagnostics", "/drone", "/diagnostics"),
    ],
)
def test_resolve(name, namespace, expected):
    assert topics.resolve(name, namespace) == expected


def test_no_topic_is_named_twice():
    names = [t.resolve() for t in ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("topic", ALL, ids=lambda t: t.name)
def test_types_exist(ros, topic):
    assert ros.message_type(topic.type)
