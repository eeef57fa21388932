"""Audit a run folder without reptrain: NumPy and pyarrow only, written from docs/format.md.

    python tools/independent_audit.py RUN [--level windows|inputs] [--store [NAME=]FOLDER] [--json]

Exit codes: 0 exact; 1 not exact; 2 wrong input; 4 cannot say, as evidence is damaged or missing, or the
level `inputs` does not cover the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from independent_evidence import check_evidence
from independent_inputs import Inputs
from independent_windows import Audit, CannotSayError, Run, WrongInputError

DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--level", choices=("windows", "inputs"), default="windows")
    parser.add_argument("--store", action="append", default=[], help="FOLDER, in a mixture NAME=FOLDER")
    parser.add_argument("--trust-store", action="store_true", help="do not hash the store again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    moved = {name: Path(path) for name, _, path in (text.rpartition("=") for text in options.store)}
    try:
        audit = Audit(Run(options.run, moved, trusted=options.trust_store))
        settings = check_evidence(audit, with_states=options.level == "inputs")
        if options.level == "inputs":
            audit.more.append(Inputs(audit, settings).check)
        report = {"level": options.level, **audit.report()}
    except WrongInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CannotSayError, *DAMAGE) as error:
        print(f"cannot say: evidence is damaged or missing: {error!r}", file=sys.stderr)
        return 4
    head = "exact" if report["exact"] else "as planned, not exact" if report["as_planned"] else "not exact"
    code = 4 if audit.damage else 1 if not report["exact"] else 4 if audit.unproved else 0
    head = head if code < 4 else "cannot say" if audit.damage else "cannot say; exact at level windows"
    lines = [f"{head} (level {options.level}{'' if report['complete'] else ', not complete'})"]
    unchecked = (f"not independently checked: {name}" for name in audit.unchecked)
    lines += [*report["cannot_say"], *report["problems"], *unchecked]
    print(json.dumps(report, indent=2) if options.json else "\n  ".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
