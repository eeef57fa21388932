"""The commands: parse, call, print, exit code. A command imports its modules when it runs."""

# Importing a module registers its commands, in the order of the help.
from reptrain.cli import studies, study_claims, study_proxy, study_sweep, data, runs  # noqa: F401, I001
from reptrain.cli import launches, doctor, audits, run_list, scores, routers, tasks, trained  # noqa: F401
from reptrain.cli import models, fits, costs, track, benches, benches_cpu  # noqa: F401
from reptrain.cli.common import app, main

__all__ = ["app", "main"]
