"""A command under the restrictions that systemd would put on it, as far as this host lets us.

    python tests/sandbox.py '{"parts": ["private users", …], "syscalls": […], "families": […]}' COMMAND…

Each part is what a setting of systemd.exec(5) does, and makes sure that it is in force. One that is not permitted here
ends it all with NOT_HERE. What the command may write to is the folder in which it is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_HERE = 77
"""Exit status where this host does not permit a part."""

NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 24, 38, 65, 1
MAX_CAPABILITY = 63
SCMP_ACT_ALLOW, SCMP_ACT_EPERM, SCMP_CMP_EQ = 0x7FFF0000, 0x00050001, 4

libc = ctypes.CDLL(None, use_errno=True)


class NotHereError(Exception):
    """This host does not permit it."""


class MountAttributes(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 2))


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp_rule_add(3)."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def call(function: str, *arguments: Any) -> None:
    """Call a function of libc's that returns 0 where it has done what it should."""
    if getattr(libc, function)(*arguments):
        raise NotHereError(f"{function}: {os.strerror(ctypes.get_errno())}")


def refused(what: Callable[[], object]) -> None:
    """Make sure that something is refused."""
    with contextlib.suppress(OSError):
        what()
        raise AssertionError("a restriction is not in force")


def read_only(_: dict[str, Any]) -> None:
    """ProtectSystem=strict: all files are read-only, but for those in the folder."""
    folder = os.getcwdb()
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", folder, folder, None, MS_BIND, None)
    for path, flags, attributes in (
        (b"/", AT_RECURSIVE, MountAttributes(MOUNT_ATTR_RDONLY, 0)),
        (folder, 0, MountAttributes(0, MOUNT_ATTR_RDONLY)),
    ):
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, ctypes.byref(attributes), size)
    os.chdir(folder)
    refused((Path(__file__).parent / "written").touch)


def own_processes(_: dict[str, Any]) -> None:
    """ProcSubset=pid and ProtectProc=invisible: /proc has nothing but processes, and of those its own."""
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"proc", b"/proc", b"proc", 0, b"hidepid=invisible,subset=pid")
    refused(Path("/proc/sys/kernel/random/boot_id").read_text)


def no_network(_: dict[str, Any]) -> None:
    """PrivateNetwork=yes: an empty network of its own, without even a way to itself."""
    call("unshare", CLONE_NEWNET)
    refused(lambda: socket.create_connection(("127.0.0.1", 1)))


def private_users(_: dict[str, Any]) -> None:
    """PrivateUsers=yes: nobody but root and itself has a user id, and root's means nothing."""
    reading, writing = os.pipe()
    process = os.getpid()
    if not (helper := os.fork()):
        os.read(reading, 1)
        status = 0
        for kind in ("uid", "gid"):
            try:
                Path(f"/proc/{process}/{kind}_map").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            except OSError:
                status = NOT_HERE
        os._exit(status)
    try:
        call("unshare", CLONE_NEWUSER)
    finally:
        os.write(writing, b".")
        status = os.waitpid(helper, 0)[1]
    if status:
        raise NotHereError("the user ids cannot be mapped")
    os.close(reading)
    os.close(writing)


def no_capabilities(_: dict[str, Any]) -> None:
    """CapabilityBoundingSet= and User=: nobody in particular, for good."""
    if os.geteuid() != 0:
        raise NotHereError("only root can become nobody")
    for capability in range(MAX_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    refused(lambda: os.setuid(0))


def no_new_privileges(_: dict[str, Any]) -> None:
    """NoNewPrivileges=yes."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def no_written_code(_: dict[str, Any]) -> None:
    """MemoryDenyWriteExecute=yes: no memory is executed that was ever written."""
    call("prctl", PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    refused(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))


def system_calls(given: dict[str, Any]) -> None:
    """SystemCallFilter= and RestrictAddressFamilies=: what is not named is refused with EPERM."""
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise NotHereError(str(error)) from error
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ACT_EPERM))
    for name in given["syscalls"]:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0 and name != "socket":
            seccomp.seccomp_rule_add(rules, SCMP_ACT_ALLOW, number, 0)
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in given["families"]:
        same = Comparison(arg=0, op=SCMP_CMP_EQ, a=getattr(socket, family))
        seccomp.seccomp_rule_add_array(rules, SCMP_ACT_ALLOW, number, 1, ctypes.byref(same))
    if wrong := seccomp.seccomp_load(rules):
        raise NotHereError(f"seccomp_load: {os.strerror(-wrong)}")
    refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    refused(lambda: os.chroot("/"))


PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "own processes": own_processes,
    "private users": private_users,
    "read-only files": read_only,
    "no network": no_network,
    "no capabilities": no_capabilities,
    "no new privileges": no_new_privileges,
    "no written code": no_written_code,
    "system calls": system_calls,
}
"""What can be restricted, in an order in which none hinders the next."""


def give_to_nobody(folder: Path) -> None:
    """StateDirectory= and RuntimeDirectory=: what the command may write to belongs to it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def let_nobody_in() -> None:
    """Make a way to Python and to policyd that nobody in particular can go, too: root's may lie in root's home."""
    closed: dict[Path, set[Path]] = {}
    for path in map(Path, (os.path.realpath(sys.executable), sys.prefix, sys.base_prefix, __file__)):
        for folder, inside in itertools.pairwise([*reversed(path.resolve().parents), path.resolve()]):
            if not folder.stat().st_mode & stat.S_IXOTH:
                closed.setdefault(folder, set()).add(inside)
                break
    if closed:
        call("unshare", CLONE_NEWNS)
        call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    for folder, insides in closed.items():
        opened = {inside: os.open(inside, os.O_PATH) for inside in insides}
        call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, b"mode=755")
        for inside, descriptor in opened.items():
            inside.mkdir()
            call("mount", f"/proc/self/fd/{descriptor}".encode(), bytes(inside), None, MS_BIND | MS_REC, None)
            os.close(descriptor)


def main(given: dict[str, Any], command: list[str]) -> None:
    """Restrict this process, and become the command."""
    os.umask(0o077)
    try:
        if "no capabilities" in given["parts"] and os.geteuid() == 0:
            let_nobody_in()
            give_to_nobody(Path.cwd())
        for name, part in PARTS.items():
            if name in given["parts"]:
                part(given)
    except (NotHereError, PermissionError) as error:
        print(f"not permitted here: {error}", file=sys.stderr)
        sys.exit(NOT_HERE)
    os.execv(command[0], command)  # noqa: S606 -- that is what it is for


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
