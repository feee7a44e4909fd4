"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from watchman import __version__

project = "watchman"
version = release = __version__
extensions = ["ini_reference"]
exclude_patterns = ["share"]
smartquotes = False

html_theme = "alabaster"
html_theme_options = {"page_width": "72em", "description": "FTP uploads become Celery tasks"}
html_show_copyright = False
html_copy_source = False

man_pages = [("ini", "watchman.ini", "which files become which tasks, sent where", [], 5)]
man_show_urls = True
