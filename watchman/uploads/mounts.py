"""Whether a directory is a mount point."""

import os


def is_mount(fd: int) -> bool:
    """Whether an open directory is the root of a mount, a bind mount included.

    While the descriptor is open, the filesystem cannot be unmounted. So the answer stays true.
    os.path.ismount compares device numbers, which are equal if a directory is bound into its own
    filesystem.
    """
    above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        if _mount_id(above) != _mount_id(fd):
            return True
        # The root directory is its own parent.
        return os.path.samestat(os.fstat(above), os.fstat(fd))
    finally:
        os.close(above)


def is_mounted(path: str) -> bool:
    """Whether a path leads to a directory that is the root of a mount; False if to none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_mount(fd)
    finally:
        os.close(fd)


def _mount_id(fd: int) -> int:
    """Return the id of the mount through which a descriptor was opened, see fdinfo in proc(5)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return int(value)
    raise AssertionError("since Linux 3.15 every descriptor has one")
