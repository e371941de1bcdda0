"""A file is the old one or the new one."""

import pytest

from nav_common.atomic import replacing, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_takes_the_old_ones_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with replacing(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"w")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def broken_off(path, error):
    with replacing(path) as file:
        file.write(b"new")
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(type(error)):
        broken_off(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_that_is_missing_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a.json", "new")
