# The two commands: `make run` shows watchman at work, `make test` checks all of it.

PYTHON = python3
VENV = .venv
# Given to pytest, as in: make test PYTEST="-k journal"
PYTEST =
# How many tests run side by side; they wait more than they work.
JOBS = 4
# Minutes for which `make soak` kills the daemon
SOAK = 20
# Inputs for each part that `make fuzz` tries
FUZZ = 5000
# Which measurements, as in: make bench BENCH=burst; how often each side is measured
BENCH =
ROUNDS = 5

# The real servers and clients that the tests start.
DEBIAN = redis-server rabbitmq-server proftpd-core proftpd-mod-crypto lftp curl rclone ncftp wput \
    openssh-client openssh-server openssl samba smbclient rsync logrotate strace debootstrap \
    acl iproute2 systemd proftpd-mod-vroot bindfs fuse3 btrfs-progs faketime locales zsh fish mandoc

# Of those that conflict with one of these: they are unpacked, and not installed.
UNPACKED = pure-ftpd pure-ftpd-common

# For promtool, which checks alerts and metrics. Installed, it would start a server.
PROMETHEUS = prometheus

# What `make soak` builds images with.
BUILDERS = buildah

# What `make bench` measures beside watchman.
MEASURED = inotify-tools

.ONESHELL:
.SHELLFLAGS = -euc
.PHONY: help run test test-all generated soak fuzz bench docs clean

help:
	@echo "make run       start watchman on watchman.ini.example, with a worker, and try it"
	echo "make test      install what the tests need and run them all"
	echo "make test-all  the same with every Python that is supported and here"
	echo "make generated write completions and manual pages again, after a change of options"
	echo "make soak      run the long tests, and kill the daemon for $(SOAK) minutes (SOAK=minutes)"
	echo "make fuzz      bring FUZZ=number of odd inputs to all that strangers and disks can reach"
	echo "make bench     measure what watchman costs, each time beside what else there is"
	echo "make docs      build the documentation, as HTML and as man pages, in build/docs"
	echo "make clean     remove what these made, but not var/"

run:
	@mkdir -p var
	.ci/make-environment "$(PYTHON)" "$(VENV)"
	exec setpriv --pdeathsig TERM "$(VENV)/bin/python" -m watchman.demo

# Without root or sudo, what is missing is said, and the tests that need it fail.
test:
	@.ci/install-debian $(DEBIAN) || [ "$$(id -u)" != 0 ]
	.ci/unpack-debian build/debian $(UNPACKED) || [ "$$(id -u)" != 0 ]
	.ci/unpack-debian build/prometheus $(PROMETHEUS) || [ "$$(id -u)" != 0 ]
	mkdir -p var
	.ci/make-environment "$(PYTHON)" "$(VENV)" test
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/mypy"
	CI=1 exec "$(VENV)/bin/python" -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

test-all:
	@for python in python3.11 python3.12 python3.13; do
	    if $$python -V 2>/dev/null; then
	        $(MAKE) --no-print-directory test PYTHON=$$python VENV=build/venv-$$python
	    else
	        echo "There is no $$python here: left out."
	    fi
	done

# Below docs/share/, from the parsers.
generated:
	@.ci/make-environment "$(PYTHON)" "$(VENV)" test
	exec "$(VENV)/bin/python" -m tests.support.generated

# The table comes last, whatever the tests before it say.
soak:
	@.ci/install-debian $(DEBIAN) $(BUILDERS) || [ "$$(id -u)" != 0 ]
	.ci/make-environment "$(PYTHON)" "$(VENV)" test
	status=0
	CI=1 "$(VENV)/bin/python" -m pytest -m soak $(PYTEST) || status=1
	"$(VENV)/bin/python" -m tests.soak "$(SOAK)" || status=1
	exit $$status

# In one process, which says in the end how many inputs there were.
fuzz:
	@.ci/make-environment "$(PYTHON)" "$(VENV)" test
	CI=1 FUZZ="$(FUZZ)" exec "$(VENV)/bin/python" -m pytest --timeout 7200 tests/whole/test_fuzz.py

# Figures are this machine's; ratios travel.
bench:
	@.ci/install-debian $(DEBIAN) $(MEASURED) || [ "$$(id -u)" != 0 ]
	.ci/make-environment "$(PYTHON)" "$(VENV)" bench
	ROUNDS="$(ROUNDS)" exec "$(VENV)/bin/python" -m tests.bench $(BENCH)

docs:
	@.ci/make-environment "$(PYTHON)" "$(VENV)" docs
	for builder in html man; do
	    "$(VENV)/bin/python" -m sphinx -q -W --keep-going -n -b $$builder docs build/docs/$$builder
	    echo "Built: build/docs/$$builder"
	done

clean:
	rm -rf "$(VENV)" build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
