"""The sandbox as a machine: what its end means, and where its sockets may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.outcome import Exit, Outcome
from orchestrator.settings import private_folder


def test_sigbus_is_explained_and_other_ends_are_not() -> None:
    """Only exit code 135 stands for mapped memory without room."""
    assert "shm_mb" in Exit(Outcome.KERNEL_DIED, 135).describe()
    assert Exit(Outcome.KERNEL_DIED, 139).describe() == "ended (exit code 139)"


def test_a_state_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Below /tmp, a folder that another user made, a link and an open folder are refused; an own one is kept."""
    own = private_folder(tmp_path / "own")
    assert private_folder(own) == own
    assert own.stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "file").touch(mode=0o700)
    refused = ["open", "link", "file"]
    if os.geteuid() == 0:
        (tmp_path / "foreign").mkdir(mode=0o700)
        os.chown(tmp_path / "foreign", 12345, 12345)
        refused.append("foreign")
    for name in refused:
        with pytest.raises(SettingsError, match="mode 0700"):
            private_folder(tmp_path / name)
