"""Figures for Prometheus: what they tell, that they outlive a kill, and what is made of them."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from tests.support.needs import need
from watchman.operate.metrics import totals
from watchman.operate.metrics.totals import OTHER, Totals

PROMTOOL = str(ROOT / "build/prometheus/usr/bin/promtool")
RULES = ROOT / "docs/share/prometheus/watchman.rules.yml"
DOCUMENT = ROOT / "docs/metrics.rst"
DASHBOARD = ROOT / "docs/share/grafana/watchman.json"

SPOOL = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
"""

#: Beside what is sent: a broker that is away, and a task that can never be sent.
TASKS = csv_tasks(f"""
[watch:in]
path = {{tmp}}/in
[broker:away]
url = redis://127.0.0.1:1/0
[task:nc]
pattern = *.nc
broker = away
task = tests.record
[task:bad]
pattern = *.bad
broker = b
task = tests.record
exchange = x
routing_key = {"k" * 300}
""")

INI = f"{SPOOL}metrics = {{tmp}}/text/watchman.prom\n{TASKS}"

Start = Callable[..., Daemon]

#: The samples of each metric, with their labels.
Figures = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
def textfile(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "text").mkdir()
    return tmp_path / "text/watchman.prom"


def figures(file: Path) -> Figures:
    """What a textfile has by the metric's name; nothing while there is no file."""
    found: Figures = {}
    if file.exists():
        for family in text_string_to_metric_families(file.read_text()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(file: Path, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; -1 if there is none."""
    samples = figures(file).get(f"watchman_{name}", [])
    values = [value for has, value in samples if labels.items() <= has.items()]
    return sum(values) if values else -1


def done(file: Path) -> float:
    return total(file, "uploads_total", outcome="done")


def write(tmp_path: Path, *names: str) -> None:
    for name in names:
        (tmp_path / "in" / name).write_text(name)


def promtool(*arguments: str, stdin: str = "") -> str:
    need(PROMTOOL)
    ended = subprocess.run(
        [PROMTOOL, *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_figures_are_those_of_what_was_done(
    tmp_path: Path, textfile: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(tmp_path, "a.csv", "b.csv", "c.nc", "d.bad", "e.txt")

    def told(name: str, **labels: str) -> float:
        return total(textfile, name, **labels)

    eventually(lambda: done(textfile) == 2 and told("broker_state", broker="away", state="down"))
    for task, accepted in (("csv", 2), ("nc", 1), ("bad", 1)):
        assert told("accepted_total", watch="in", task=task) == accepted
    assert told("accepted_total") == 4
    assert told("uploads_total", outcome="failed", task="bad", watch="in") == 1
    assert (told("failed_uploads", told="no"), told("failed_uploads", told="yes")) == (1, 0)
    assert (told("up"), told("healthy")) == (1, 0), "one has failed, and a broker is away"
    assert (told("waiting_uploads", place="broker:away"), told("waiting_uploads")) == (1, 1)
    waits = figures(textfile)["watchman_oldest_waiting_timestamp_seconds"]
    assert [labels["place"] for labels, since in waits if since > 1e9] == ["broker:away"]
    assert (told("broker_state"), told("broker_state", broker="b", state="up")) == (2, 1)
    assert told("closed_to_sent_seconds_count", broker="b") == 2
    assert told("closed_to_sent_seconds_bucket", broker="b", le="60.0") == 2
    assert told("closed_to_sent_seconds_count") == 2
    assert (told("overflows_total"), told("watched_directories", watch="in")) == (0, 1)
    assert told("scans_total", watch="in") >= 1
    assert told("last_scan_timestamp_seconds", watch="in") > 1e9
    assert told("notifications_total", source="inotify", kind="completed") >= 4
    assert eventually(lambda: told("unmatched_total", watch="in")) >= 1

    assert stat.S_IMODE(textfile.stat().st_mode) == 0o644
    assert [path.name for path in textfile.parent.iterdir()] == ["watchman.prom"]
    text = textfile.read_text()
    promtool("check", "metrics", stdin=text)
    known = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert set(re.findall(r"``(watchman_\w+)``", DOCUMENT.read_text())) == known
    assert unknown(known, expressions(RULES.read_text())) == set()
    assert unknown(known, list(queries(json.loads(DASHBOARD.read_text())))) == set()

    daemon.stop()
    assert (total(textfile, "up"), done(textfile)) == (0, 2)


def expressions(rules: str) -> list[str]:
    """The expressions of alerts, each of which stands on one line."""
    return re.findall(r"^ +expr: (.*)$", rules, re.M)


def queries(value: object) -> Iterator[str]:
    """All expressions of a dashboard, wherever they are."""
    if isinstance(value, dict):
        if isinstance(value.get("expr"), str):
            yield value["expr"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from queries(one)


def unknown(known: set[str], asked: list[str]) -> set[str]:
    """What is asked for and not exported."""
    assert len(asked) > 10
    names = set(re.findall(r"\bwatchman_\w+", " ".join(asked)))
    assert len(names) > 10
    return {name for name in names if name.removesuffix("_bucket") not in known}


def test_counters_go_on_after_a_kill_and_never_go_back(
    tmp_path: Path, textfile: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(tmp_path, "a.csv", "b.csv")
    eventually(lambda: done(textfile) == 2)
    scans = total(textfile, "scans_total")
    daemon.kill()
    assert total(textfile, "up") == 1, "only the file's age tells"
    stored = json.loads((tmp_path / "spool/metrics.json").read_text())
    assert sum(value for labels, value in stored["totals"]["uploads"]) == 2
    daemon.start()
    eventually(lambda: total(textfile, "scans_total") > scans)
    assert done(textfile) == 2
    write(tmp_path, "c.csv")
    eventually(lambda: done(textfile) == 3)
    assert total(textfile, "closed_to_sent_seconds_count", broker="b") == 3


def test_a_reload_has_them_written_elsewhere_or_not_at_all(
    tmp_path: Path, textfile: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(tmp_path, "a.csv")
    eventually(lambda: done(textfile) == 1)
    other = textfile.with_name("other.prom")
    daemon.configure(INI.replace("watchman.prom", "other.prom"))
    assert daemon.run("reload").stdout == "metrics changed\n"
    eventually(lambda: done(other) == 1)
    eventually(lambda: not textfile.exists())
    daemon.configure(SPOOL + TASKS)
    assert daemon.run("reload").stdout == "metrics changed\n"
    eventually(lambda: not other.exists())


def test_a_directory_that_is_not_there_is_said_and_waited_for(
    tmp_path: Path, textfile: Path, start_watchman: Start
) -> None:
    textfile.parent.rmdir()
    daemon = start_watchman(INI)
    [warning] = eventually(lambda: daemon.status()["warnings"])
    assert warning.startswith("metrics are not written: No such file or directory: ")
    assert daemon.status()["problems"] == []
    assert "is not a directory; name the one that node_exporter reads" in daemon.run("check").stdout
    textfile.parent.mkdir()
    eventually(lambda: figures(textfile))
    eventually(lambda: daemon.status()["warnings"] == [])
    assert f"OK     metrics         {textfile}" in daemon.run("check").stdout
    daemon.configure(INI.replace("watchman.prom", "watchman.txt"))
    assert "its name must end in .prom" in daemon.run("check").stdout


def test_without_the_option_the_library_is_not_imported() -> None:
    script = "import sys, watchman.daemon; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_a_total_follows_counts_that_begin_anew(tmp_path: Path) -> None:
    file = str(tmp_path / "metrics.json")
    first = Totals(file)
    for count in (3, 3, 5, 1, 2):
        first.follow("uploads", ("ftp",), count)
    assert first.sums("uploads") == {("ftp",): 7}, "5, and 2 of a part that was made anew"
    first.store()
    again = Totals(file)
    again.follow("uploads", ("ftp",), 1)
    assert again.sums("uploads") == {("ftp",): 8}


def test_what_has_too_many_labels_is_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MOST", 2)
    counted = Totals(str(tmp_path / "metrics.json"))
    for turn in (1, 2):
        for watch in ("a", "b", "c", "d"):
            counted.follow("uploads", (watch, "x"), turn)
    assert counted.sums("uploads") == {("a", "x"): 2, ("b", "x"): 2, (OTHER, OTHER): 4}


@pytest.mark.parametrize("damaged", ["", "[1]", '{"totals": {"uploads": [[3]]}}', "\xff"])
def test_totals_that_cannot_be_read_are_set_aside(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(damaged)
    assert Totals(str(file)).sums("uploads") == {}
    assert (tmp_path / "metrics.json.bad").exists()


#: What the figures are like minute by minute, and which alerts follow.
TEST = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - name: all is well
    interval: 1m
    input_series:
      - {{series: 'watchman_up{{instance="ftp"}}', values: '1x60'}}
      - {{series: 'watchman_healthy{{instance="ftp"}}', values: '1x60'}}
      - {{series: 'node_textfile_mtime_seconds{{instance="ftp",file="watchman.prom"}}', values: '0+60x60'}}
      - {{series: 'watchman_failed_uploads{{instance="ftp",told="no"}}', values: '0x60'}}
      - {{series: 'watchman_failed_uploads{{instance="ftp",told="yes"}}', values: '3x60'}}
      - {{series: 'watchman_broker_state{{instance="ftp",broker="b",state="up"}}', values: '1x60'}}
      - {{series: 'watchman_broker_state{{instance="ftp",broker="b",state="down"}}', values: '0x60'}}
      - {{series: 'watchman_log_unread_bytes{{instance="ftp",log="l"}}', values: '0 9000 0 500x2 0x60'}}
      - {{series: 'watchman_overflows_total{{instance="ftp"}}', values: '7x60'}}
    alert_rule_test: [{quiet}]
  - name: everything has gone wrong
    interval: 1m
    input_series:
      - {{series: 'watchman_up{{instance="ftp"}}', values: '1x60'}}
      - {{series: 'watchman_up{{instance="other"}}', values: '0x60'}}
      - {{series: 'watchman_healthy{{instance="ftp"}}', values: '0x60'}}
      - {{series: 'node_textfile_mtime_seconds{{instance="ftp",file="watchman.prom"}}', values: '0x60'}}
      - {{series: 'node_textfile_mtime_seconds{{instance="other",file="watchman.prom"}}', values: '0x60'}}
      - {{series: 'watchman_failed_uploads{{instance="ftp",told="no"}}', values: '2x60'}}
      - {{series: 'watchman_broker_state{{instance="ftp",broker="b",state="down"}}', values: '1x60'}}
      - {{series: 'watchman_broker_refused_routes{{instance="ftp",broker="b"}}', values: '1x60'}}
      - {{series: 'watchman_move_state{{instance="ftp",move="m",state="down"}}', values: '1x60'}}
      - {{series: 'watchman_oldest_waiting_timestamp_seconds{{instance="ftp",place="broker:b"}}', values: '0x60'}}
      - {{series: 'watchman_watch_up{{instance="ftp",watch="w"}}', values: '0x60'}}
      - {{series: 'watchman_overflows_total{{instance="ftp"}}', values: '0+1x60'}}
      - {{series: 'watchman_last_scan_timestamp_seconds{{instance="ftp",watch="w"}}', values: '-30000x60'}}
      - {{series: 'watchman_scanning{{instance="ftp",watch="w"}}', values: '0x60'}}
      - {{series: 'watchman_log_unread_bytes{{instance="ftp",log="l"}}', values: '5x60'}}
      - {{series: 'watchman_closed_to_sent_seconds_bucket{{instance="ftp",broker="b",le="60.0"}}', values: '0x60'}}
      - {{series: 'watchman_closed_to_sent_seconds_bucket{{instance="ftp",broker="b",le="300.0"}}', values: '0+5x60'}}
      - {{series: 'watchman_closed_to_sent_seconds_bucket{{instance="ftp",broker="b",le="+Inf"}}', values: '0+5x60'}}
    promql_expr_test:
      - expr: count by (alertname) (ALERTS{{alertstate="firing"}})
        eval_time: 50m
        exp_samples: [{firing}]
"""  # noqa: E501 - each series is one line


def test_the_alerts_come_when_they_should_and_only_then(tmp_path: Path) -> None:
    promtool("check", "rules", str(RULES))
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    quiet = [f"{{eval_time: 50m, alertname: {name}, exp_alerts: []}}" for name in alerts]
    firing = [f"""{{labels: '{{alertname="{name}"}}', value: 1}}""" for name in alerts]
    test = tmp_path / "test.yml"
    test.write_text(TEST.format(rules=RULES, quiet=", ".join(quiet), firing=", ".join(firing)))
    assert "SUCCESS" in promtool("test", "rules", str(test))


def test_grafanas_own_types_load_the_dashboard_and_know_all_that_it_says() -> None:
    written = json.loads(DASHBOARD.read_text())
    register_default_plugins()
    loaded = Dashboard.from_json(written)
    assert not lost(written, json.loads(JSONEncoder(sort_keys=True).encode(loaded)))


def lost(written: Any, loaded: Any, place: str = "") -> list[str]:
    """Return where a part of a JSON value was not loaded as it was written."""
    match written, loaded:
        case dict(), dict():
            parts = [(name, value, loaded.get(name)) for name, value in written.items()]
        case list(), list() if len(written) == len(loaded):
            parts = [(n, *pair) for n, pair in enumerate(zip(written, loaded, strict=True))]
        case _:
            return [] if written == loaded else [place]
    return [found for name, value, got in parts for found in lost(value, got, f"{place}/{name}")]


def test_the_dashboards_panels_have_places_and_sources_and_promtool_reads_each_query(
    tmp_path: Path,
) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] == "watchman"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another one"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "instance"]
    filled = [
        query.replace("$__rate_interval", "5m").replace("$instance", ".*")
        for query in queries(dashboard)
    ]
    assert not [query for query in filled if "$" in query]
    # As rules, for promtool has no other check of a query.
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(filled)]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))
