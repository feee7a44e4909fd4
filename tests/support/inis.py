"""INI files that many tests begin with: files become tasks of an embedded broker."""


def csv_tasks(sections: str) -> str:
    """Every CSV file becomes a task. Below which watches is for `sections` to say."""
    return f"""
[broker:b]
url = filesystem://broker
[task:csv]
pattern = *.csv
broker = b
task = tests.record
{sections}"""


#: One watch, without ProFTPD.
INI = csv_tasks("[watch:in]\npath = {tmp}/in\n")
