"""Packaging: the distribution `watchman-ftp`, the package `watchman`."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

version = re.search(r'^__version__ = "(.+)"$', (HERE / "watchman/__init__.py").read_text(), re.M)
assert version, "no __version__ in watchman/__init__.py"


def shared(*directories: str) -> list[tuple[str, list[str]]]:
    """What docs/share/ has there, for the same place in share/ below sys.prefix."""
    return [
        (
            f"share/{name}",
            sorted(f"docs/share/{name}/{file}" for file in os.listdir(HERE / "docs/share" / name)),
        )
        for name in directories
    ]


DOCS = ["sphinx >= 8.2"]

TEST = [
    *DOCS,
    "argparse-manpage == 4.8",
    "build >= 1.2",
    "docutils >= 0.21",
    # Grafana's own types of a dashboard, of its version 11.6.
    "grafana-foundation-sdk == 1769699379!11.6.0",
    "hypothesis >= 6.100",
    "mypy == 2.4.*",
    "paramiko >= 5",
    "pytest >= 9",
    "pytest-timeout >= 2.4",
    "pytest-xdist >= 3.8",
    "pyyaml >= 6",
    "ruff == 0.17.*",
    # What it writes is compared with share/.
    "shtab == 1.13.*",
    "supervisor >= 4.3",
]

PAGES = sorted(str(page.relative_to(HERE)) for page in (HERE / "docs").glob("*.rst"))

setup(
    name="watchman-ftp",
    version=version[1],
    description="Turns every finished upload of an FTP server into one Celery task",
    long_description=(HERE / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license="BSD-3-Clause",
    packages=find_packages(include=["watchman", "watchman.*"]),
    # Below sys.prefix. What an operator copies to its place from there, as README.rst says. And
    # README.rst with the pages that it links to.
    data_files=[
        (
            "share/watchman",
            [
                "watchman.ini.example",
                "supervisord.conf",
                "docs/share/supervisor/watchman.supervisor",
                "docs/share/systemd/watchman.service",
                "proftpd/watchman-hook",
                "proftpd/watchman.conf",
                "proftpd/watchman.logrotate",
                "proftpd/watchman.tmpfiles",
            ],
        ),
        ("share/watchman/prometheus", ["docs/share/prometheus/watchman.rules.yml"]),
        ("share/watchman/grafana", ["docs/share/grafana/watchman.json"]),
        *shared("man/man1", "bash-completion/completions"),
        *shared("zsh/site-functions", "fish/vendor_completions.d"),
        ("share/doc/watchman", ["README.rst", "CHANGES.rst", "CONTRIBUTING.rst", "LICENSE"]),
        ("share/doc/watchman/docs", ["docs/bench.svg", *PAGES]),
    ],
    python_requires=">=3.11",
    install_requires=[
        # The publisher uses Celery's and kombu's lower layers: a next major may change them.
        "celery[redis] >= 5.7, < 6",
        "prometheus_client >= 0.20",
        "pyinotify >= 0.9.6",
        # pyinotify imports asyncore, which Python 3.12 removed.
        "pyasyncore; python_version >= '3.12'",
        # Draws what commands show to people.
        "rich >= 13",
    ],
    extras_require={
        # Keeps the daemon running on a server; never imported, so Debian's does as well.
        "supervisor": ["supervisor >= 4.3"],
        "docs": DOCS,
        "test": TEST,
        # What is measured beside watchman, and the picture of it.
        "bench": [*TEST, "matplotlib >= 3.10", "watchdog >= 6", "watchfiles >= 1"],
    },
    entry_points={
        "console_scripts": [
            "watchman = watchman.commands.main:main",
            "watchman-send = watchman.commands.send:main",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Celery",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: File Transfer Protocol (FTP)",
    ],
)
