"""Run one command in a root directory of layers, as a container engine would, with what the kernel has: an overlay, a
mount namespace, a process namespace, chroot. For Linux and root; it prints nothing of its own.

    unshare --mount --pid --fork --kill-child -- python box.py '{"layers": [...], ...}'

The JSON: `layers` (lower directories, the topmost first), `upper`, `work`, `mount` (an empty directory), `hide` (paths
that are empty inside), `binds` (outside, inside, ro or rw), `read_only`, `tmpfs` (paths inside), `own_network`, `user`
(id or null), `groups`, `cwd`, `env`, `argv`.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    root = Path(wanted["mount"])
    layers = ":".join(wanted["layers"])
    mount(
        *("-t", "overlay", "overlay"),
        *("-o", f"lowerdir={layers},upperdir={wanted['upper']},workdir={wanted['work']}", str(root)),
    )

    def inside(path: str) -> Path:
        return root / path.lstrip("/")

    for path in wanted["hide"]:
        if inside(path).is_dir():
            mount("-t", "tmpfs", "-o", "mode=0755,size=1m", "tmpfs", str(inside(path)))
    for path in ("/proc", "/dev", "/tmp", *wanted["tmpfs"]):
        inside(path).mkdir(parents=True, exist_ok=True)
    for outside, path, _ in wanted["binds"]:
        if Path(outside).is_dir():
            inside(path).mkdir(parents=True, exist_ok=True)
        else:
            inside(path).parent.mkdir(parents=True, exist_ok=True)
            inside(path).touch()
    mount("-t", "proc", "proc", str(inside("/proc")))
    mount("--rbind", "/dev", str(inside("/dev")))
    for outside, path, mode in wanted["binds"]:
        mount("--bind", outside, str(inside(path)))
        if mode == "ro":
            mount("-o", "remount,bind,ro", str(inside(path)))
    if wanted["read_only"]:
        mount("-o", "remount,ro", str(root))
    for path in {"/tmp", *wanted["tmpfs"]}:
        mount("-t", "tmpfs", "-o", "mode=1777,size=256m,nosuid,nodev", "tmpfs", str(inside(path)))
    if wanted["own_network"]:
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
    os.chroot(root)
    os.chdir(wanted["cwd"])
    user = wanted["user"]
    if user is not None:
        os.setgroups(wanted["groups"])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execvpe(wanted["argv"][0], wanted["argv"], wanted["env"])


main()
