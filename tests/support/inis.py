"""INI files that many tests begin with: files become tasks of an embedded broker."""


def csv_tasks(sections: str, url: str = "filesystem://broker") -> str:
    """Every CSV file becomes a task. Below which watches is for `sections` to say."""
    return f"""
[broker:b]
url = {url}
[task:csv]
pattern = *.csv
broker = b
task = tests.record
{sections}"""


#: One watch, without ProFTPD.
WATCH = "[watch:in]\npath = {tmp}/in\n"
INI = csv_tasks(WATCH)

#: The same, and nobody takes its tasks.
AWAY = csv_tasks(WATCH, url="redis://127.0.0.1:1/0")
