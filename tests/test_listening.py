"""Sockets with their final mode from the start, and never another's; folders that are ours alone."""

from __future__ import annotations

import gc
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from policyd.listening import (
    CannotListenError,
    endpoint_problem,
    hold_alone,
    listen,
    listen_unix,
    make_folder,
)
from tests.daemon import free_port

real: Any = reactor

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
"""Twisted leaves a socket that cannot be bound to the garbage collector."""


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """Have the usual umask while a test runs, and find it unchanged afterwards."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Callable[..., IListeningPort]]:
    """Return what listens on an endpoint string until the test is over."""
    ports: list[Any] = []

    def listen_at(description: str) -> IListeningPort:
        results: list[Any] = []
        Deferred.fromCoroutine(listen(real, description, Factory())).addBoth(results.append)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        ports.append(result)
        return ports[-1]  # type: ignore[no-any-return]

    yield listen_at
    for port in ports:
        port.stopListening()
    real.iterate()


@pytest.fixture
def collected() -> Iterator[None]:
    """Have the sockets collected that could not be bound, while it is this test that is warned of them."""
    yield
    gc.collect()


class BareReactor:
    """Binds as a reactor does, and notes the mode that the socket has before anybody can change it."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.mode = -1

    def listenUNIX(self, path: str, *_: object, mode: int, **__: object) -> IListeningPort | None:  # noqa: N802
        """Bind, and close."""
        if self.failing:
            raise RuntimeError
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
        self.mode = stat.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, mode)
        return None


def mode_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def stale(path: Path) -> None:
    """Leave a socket behind, as a killed daemon does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_a_socket_never_has_another_mode_than_its_own(tmp_path: Path, mode: int) -> None:
    """There is no moment between bind and chmod at which others could connect."""
    bare: Any = BareReactor()
    listen_unix(bare, str(tmp_path / "s"), Factory(), mode)
    assert bare.mode == mode_of(tmp_path / "s") == mode


def test_the_umask_is_as_before_when_listening_fails(tmp_path: Path) -> None:
    """The files that the daemon makes later have their usual modes."""
    bare: Any = BareReactor(failing=True)
    with pytest.raises(RuntimeError):
        listen_unix(bare, str(tmp_path / "s"), Factory())
    assert os.umask(0o022) == 0o022


@pytest.mark.parametrize(("options", "mode"), [("", 0o660), (":mode=600", 0o600), (":backlog=5:mode=666", 0o666)])
def test_a_unix_socket_is_for_owner_and_group_unless_the_config_says_otherwise(
    at: Callable[[str], object], tmp_path: Path, options: str, mode: int
) -> None:
    """Twisted's own default would be for everybody."""
    at(f"unix:{tmp_path}/s{options}")
    assert mode_of(tmp_path / "s") == mode
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("unix:{}/a\\:b", "a:b"),
        ("unix:{}/a\\=b:mode=600", "a=b"),
        ("unix:{}/a\\\\b", "a\\b"),
        ("unix:address={}/a", "a"),
    ],
)
def test_a_path_is_written_as_in_any_endpoint_string(
    at: Callable[[str], object], tmp_path: Path, description: str, name: str
) -> None:
    """A backslash takes the meaning from a colon, an equals sign and a backslash; the path may be named."""
    at(description.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_stale_socket_is_replaced(at: Callable[[str], object], tmp_path: Path) -> None:
    """What a killed daemon left behind does not keep the next one from starting."""
    stale(tmp_path / "s")
    at(f"unix:{tmp_path}/s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


def test_a_live_socket_is_not_taken(at: Callable[[str], object], tmp_path: Path) -> None:
    """A socket that somebody answers at stays theirs, and stays usable."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen(1)
        with pytest.raises(CannotListenError, match=f"cannot listen on {tmp_path}/s: another process already does"):
            at(f"unix:{tmp_path}/s")
        other.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))


def test_a_live_socket_with_a_full_queue_is_not_taken(at: Callable[[str], object], tmp_path: Path) -> None:
    """A daemon that is too busy to accept is there all the same."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(tmp_path / "s"))
        other.listen(0)
        client.connect(str(tmp_path / "s"))
        with pytest.raises(CannotListenError, match="another process already does"):
            at(f"unix:{tmp_path}/s")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_not_removed(at: Callable[[str], object], tmp_path: Path, kind: str) -> None:
    """A path given by mistake costs nobody a file, nor a socket elsewhere that it links to."""
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        stale(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    before = path.lstat()
    with pytest.raises(CannotListenError, match=f"^cannot listen on {path}: it is there and is no socket$"):
        at(f"unix:{path}")
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(
    ("path", "why"), [("missing/s", "No such file or directory"), ("x" * 120, "AF_UNIX path too long")]
)
def test_a_path_where_no_socket_can_be_is_named_with_the_cause(
    at: Callable[[str], object], tmp_path: Path, path: str, why: str
) -> None:
    """The error says which socket and why, in one line."""
    with pytest.raises(CannotListenError, match=f"^cannot listen on (unix:)?{tmp_path}/{path}: {why}$"):
        at(f"unix:{tmp_path}/{path}")


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(
    ("path", "why"), [("missing/s", "No such file or directory"), ("x" * 120, "AF_UNIX path too long")]
)
def test_the_control_socket_fails_as_any_other(tmp_path: Path, path: str, why: str) -> None:
    """Whoever calls listen_unix has one kind of error to mind."""
    with pytest.raises(CannotListenError, match=f"{path}.*{why}"):
        listen_unix(real, str(tmp_path / path), Factory())


@pytest.mark.usefixtures("collected")
def test_a_tcp_port_that_is_taken_is_named_with_the_cause(at: Callable[[str], object]) -> None:
    """The error says which port and why, in one line."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        wanted = f"cannot listen on tcp:{port}:interface=127.0.0.1"
        with pytest.raises(CannotListenError, match=f"^{wanted}.*: Address already in use$"):
            at(f"tcp:{port}:interface=127.0.0.1")


@pytest.mark.parametrize("description", ["tcp:{}:interface=127.0.0.1", "tcp:port={}:interface=127.0.0.1:backlog=5"])
def test_a_tcp_port_is_listened_on(at: Callable[[str], object], description: str) -> None:
    """An endpoint string of Twisted's is taken as it is."""
    port = free_port()
    at(description.format(port))
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


@pytest.mark.parametrize(
    "description",
    [
        "tcp:10045",
        "tcp:10045:interface=127.0.0.1",
        "tcp6:10045",
        r"tcp:10045:interface=\:\:1:backlog=50",
        "unix:/run/x",
        "unix:/run/x:mode=660",
        "unix:/run/x:mode=0660:backlog=10:lockfile=0",
        "haproxy:tcp:10045",
    ],
)
def test_a_good_endpoint_has_no_problem(description: str) -> None:
    """What can be listened on, as far as can be told without trying, is not complained about."""
    assert endpoint_problem(description) is None


@pytest.mark.parametrize(
    ("description", "problem"),
    [
        ("", "ValueError: Unknown endpoint type: ''"),
        ("foo:1", "ValueError: Unknown endpoint type: 'foo'"),
        ("tcp", "TypeError: .*missing 1 required positional argument: 'port'"),
        ("tcp:notaport", "ValueError: invalid literal for int.*'notaport'"),
        ("tcp:1:backlog=x", "ValueError: invalid literal for int.*'x'"),
        ("tcp:1:speed=2", "TypeError: .*unexpected keyword argument 'speed'"),
        ("tcp:1:interface=::1", "TypeError: .*multiple values for argument 'interface'"),
        ("unix:/a:660", "ValueError: want only mode= and backlog= after the path"),
        ("unix:/a:speed=2", "ValueError: want only mode= and backlog= after the path"),
        ("unix:/a:mode=9", "ValueError: invalid literal for int.*'9'"),
        ("unix:/a:mode=rw", "ValueError: invalid literal for int.*'rw'"),
        ("unix:/a:mode=7777", "ValueError: want a mode of three octal digits"),
        ("unix:/a:mode=-1", "ValueError: want a mode of three octal digits"),
        ("unix:/a:backlog=x", "ValueError: invalid literal for int.*'x'"),
    ],
)
def test_a_bad_endpoint_is_told_when_the_config_is_read(description: str, problem: str) -> None:
    """Nobody learns only at the start that an endpoint cannot be listened on."""
    assert re.fullmatch(problem, endpoint_problem(description) or "")


def test_one_daemon_holds_a_control_socket(tmp_path: Path) -> None:
    """The second is told the pid of the first, and can go ahead when the first is gone."""
    path = tmp_path / "control.sock"
    first = hold_alone(path)
    with pytest.raises(CannotListenError, match=rf"^another policyd \(pid {os.getpid()}\) already runs with {path}$"):
        hold_alone(path)
    os.close(first)
    os.close(hold_alone(path))
    assert (tmp_path / "control.sock.lock").read_text() == f"{os.getpid()}\n"
    assert mode_of(tmp_path / "control.sock.lock") == 0o600


def test_the_lock_of_a_dead_daemon_does_not_count(tmp_path: Path) -> None:
    """A lock file that is left behind, with a longer pid, is taken over."""
    (tmp_path / "control.sock.lock").write_text("12345678901\n")
    os.close(hold_alone(tmp_path / "control.sock"))
    assert (tmp_path / "control.sock.lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_made_is_named_with_the_cause(tmp_path: Path) -> None:
    """A missing folder, and a link that would have another file overwritten, are told apart."""
    with pytest.raises(CannotListenError, match=r"^cannot make .*/missing/c.lock: No such file or directory$"):
        hold_alone(tmp_path / "missing" / "c")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "c.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CannotListenError, match=r"^cannot make .*/c.lock: Too many levels of symbolic links$"):
        hold_alone(tmp_path / "c")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o700), (False, 0o755)])
def test_a_missing_folder_is_made(tmp_path: Path, private: bool, mode: int) -> None:
    """With the folders above it; one that is there already is left as it is."""
    folder = tmp_path / "a" / "policyd"
    make_folder(folder, private=private)
    make_folder(folder, private=private)
    assert mode_of(folder) == mode


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_private_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can write to it could put a socket of their own there."""
    folder = tmp_path / "policyd"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CannotListenError, match=f"^the folder {folder} is not this user's alone$"):
        make_folder(folder, private=True)
    make_folder(folder, private=False)


def test_a_private_folder_of_another_is_refused(tmp_path: Path) -> None:
    """A folder in /tmp that somebody made before us is theirs."""
    folder = Path("/")
    if os.geteuid() == 0:
        folder = tmp_path / "policyd"
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
    with pytest.raises(CannotListenError, match="is not this user's alone"):
        make_folder(folder, private=True)


def test_a_private_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A link can be bent to another place."""
    (tmp_path / "policyd").symlink_to(tmp_path)
    with pytest.raises(CannotListenError, match="is not this user's alone"):
        make_folder(tmp_path / "policyd", private=True)


@pytest.mark.parametrize(("path", "why"), [("file", "File exists"), ("file/policyd", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_named_with_the_cause(tmp_path: Path, path: str, why: str) -> None:
    """The error says which folder and why, in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotListenError, match=f"^cannot make the folder {tmp_path / path}: {why}$"):
        make_folder(tmp_path / path, private=True)


def test_a_port_that_stops_removes_its_socket(tmp_path: Path) -> None:
    """Nothing is left behind by a daemon that ends as it should."""
    with closing(socket.socket(socket.AF_UNIX)):
        port: Any = listen_unix(real, str(tmp_path / "s"), Factory())
        port.stopListening()
        real.iterate()
    assert not (tmp_path / "s").exists()
