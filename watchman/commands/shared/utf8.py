"""Paths are UTF-8 with surrogate escapes, whatever the locale says."""

import os
import sys


def insist() -> None:
    """Begin anew in UTF-8 mode where Python would decode names by another encoding.

    A path is bytes, and its text goes to workers elsewhere: by a locale's encoding it would name
    another file there. Python settles the encoding when it starts, see PEP 540 and `-X utf8`. The
    process stays the same, as does every byte of its arguments.
    """
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions:
        return
    # Encoded as they were decoded, so that they keep their bytes.
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execv(sys.executable, list(map(os.fsencode, arguments)))
