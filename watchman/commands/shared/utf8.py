"""Makes paths UTF-8 with surrogate escapes, whatever the locale says."""

import os
import sys


def insist() -> None:
    """Start Python again in UTF-8 mode if it decodes names by another encoding.

    A path is bytes, and its text goes to workers on other hosts. If the text depended on our
    locale, it would name another file there. Python settles the encoding when it starts, see PEP
    540 and `-X utf8`. The new Python has the same process id and the same bytes as arguments.
    """
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions:
        return
    # Encoded as Python decoded them, so that they keep their bytes.
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execv(sys.executable, list(map(os.fsencode, arguments)))
