"""Writes files over and over, as an FTP server does, and says what it wrote.

`python -m tests.support.writer DIRECTORY NAME SECONDS` prints a line for each write: inode and
content's number. What it writes is that number, many times, in pieces.
"""

import os
import random
import sys
import time


def content(number: str) -> bytes:
    return f"{number}\n".encode() * 2000


def main(directory: str, name: str, seconds: float) -> None:
    random.seed(name)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += 1
        path = f"{directory}/{name}-{random.randrange(3)}.csv"
        # ProFTPD's pr_fsio_open(): no O_EXCL, and the name is looked up anew for each upload.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        inode = os.fstat(fd).st_ino
        data = content(f"{name}.{count}")
        for start in range(0, len(data), 4096):
            os.write(fd, data[start : start + 4096])
        os.close(fd)
        os.write(1, f"{path} {inode} {name}.{count}\n".encode())
        if random.random() < 0.5:
            time.sleep(random.uniform(0, 0.05))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
