"""The command line."""

import pytest

from nav_common.process import CONFIGURATION_ERROR
from nav_server.__main__ import main


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert ended.value.code == CONFIGURATION_ERROR
    assert "no-such-command" in capsys.readouterr().err
