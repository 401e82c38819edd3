"""Addresses of lanes as text, and the folder of Unix sockets."""

import pathlib
import socket
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor import errors
from torpor.actors import lane_address


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder for sockets, not made yet."""
    return tmp_path / "torpor" / "lanes"


@pytest.mark.parametrize("text", ["10.0.0.5:4567", "::1:80", "10.0.0.5:4567,/run/dir/x.sock"])
def test_text_and_back(text: str) -> None:
    """What is written is what was read."""
    address = lane_address.LaneAddress.parse(text)
    assert str(address) == text
    assert lane_address.LaneAddress.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:0", "host:65536", "h:\u0661"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """A port between 1 and 65535, and a host."""
    with pytest.raises(errors.InvalidField):
        lane_address.LaneAddress.parse(text)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Nothing but the named error is raised."""
    try:
        address = lane_address.LaneAddress.parse(text)
    except errors.InvalidField:
        return
    assert 0 < address.port < 1 << 16


def test_sockets_lie_in_a_folder_of_ones_own(folder: pathlib.Path) -> None:
    """It is made for this user alone, and one that is open to others is closed."""
    assert lane_address.socket_path(folder, "a").parent == folder
    folder.chmod(0o777)
    lane_address.socket_path(folder, "a")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_is_no_folder(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Somebody who was there first cannot lead the sockets elsewhere."""
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        lane_address.socket_path(folder, "a")


def test_leftovers_of_the_dead_are_removed() -> None:
    """Only of the dead: neither of a living process, nor what still accepts connections."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
        look_at_leftovers(pathlib.Path(short, "lanes"))


def look_at_leftovers(folder: pathlib.Path) -> None:
    """Clean a folder that holds all kinds of sockets, and look at what is left."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = lane_address.socket_path(folder, "mine")
    left, heard = folder / f"{ended.pid}.left", folder / f"{ended.pid}.heard"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(heard))
        listening.listen()
        for path in (mine, left):
            with socket.socket(socket.AF_UNIX) as closed:
                closed.bind(str(path))
        lane_address.clean_leftovers(folder)
        assert {path.name for path in folder.iterdir()} == {mine.name, heard.name}
