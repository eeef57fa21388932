"""The commands: parse, call, print, exit code. Each imports what it needs when it runs."""

# Importing a module registers its commands; the help shows them in that order.
from reptrain.cli import studies, data, runs, scores, tasks, models, trained, benches  # noqa: F401, I001
from reptrain.cli.common import app, main

__all__ = ["app", "main"]
