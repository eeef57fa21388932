"""Plants each mutant, and shows what finds it.

    python tests/mutants/try_mutants.py [--only NAME ...] [--results FILE] [--write]

Exit code 1 if a mutant is not found by what must find it. `--write` puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutant_runs import judge, make_store, make_tree, passes, preload, train
from mutants import JUDGES, MUTANTS, NOTHING, STOPS, Mutant
from page import replace_part
from tiny_runs import RUNS

BEGIN, END = "<!-- mutants: made by `make test-mutants` -->", "<!-- end of mutants -->"


class Trials:
    """Tries mutants; what is sound must first pass as sound.

    Args:
        folder: Where trees and runs are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sound = make_tree(folder / "sound")
        self.store = make_store(self.sound, folder)
        self._sound: set[str] = set()

    def found_by(self, mutant: Mutant, number: int) -> list[str]:
        """The judges and tests that find a mutant."""
        tests = mutant.tests
        for name in tests or [mutant.run]:
            self._check_sound(name)
        folder = self.folder / f"mutant-{number}"
        tree = make_tree(folder / "tree", mutant)
        found = [test for test in tests if not passes(tree, [test], folder / "test.log")]
        if not tests:
            run = train(tree, RUNS[mutant.run], self.store, folder / "trained")
            if run is not None:
                found = [name for name, said in judge(self.sound, run).items() if said]
            elif STOPS in mutant.caught_by:
                found = [STOPS]
            else:
                log = folder / "trained" / "train-0.log"
                print(f"the run of {mutant.name!r} failed:\n{log.read_text()[-2000:]}")
        shutil.rmtree(folder)
        return found

    def _check_sound(self, name: str) -> None:
        """Refuse a run or a test that fails without a mutant."""
        if name in self._sound:
            return
        folder = self.folder / f"sound-{len(self._sound)}"
        if name in RUNS:
            run = train(self.sound, RUNS[name], self.store, folder)
            if run is None:
                raise RuntimeError(f"the run {name} failed:\n{(folder / 'train-0.log').read_text()[-3000:]}")
            wrong = {judge: said for judge, said in judge(self.sound, run).items() if said}
            if wrong:
                raise RuntimeError(f"the run {name} is not found sound: {wrong}")
        else:
            folder.mkdir()
            if not passes(self.sound, [name], folder / "test.log"):
                raise RuntimeError(f"{name} fails:\n{(folder / 'test.log').read_text()[-3000:]}")
        self._sound.add(name)


def table(found: dict[str, list[str]]) -> str:
    """The results in Markdown."""
    lines = ["| fault planted | kind | where | found by |", "|---|---|---|---|"]
    for mutant in MUTANTS:
        if mutant.name in found:
            names = ", ".join(f"`{name}`" if "/" in name else name for name in found[mutant.name])
            by = names or f"**nothing**: {mutant.why}"
            lines.append(f"| {mutant.name} | {mutant.kind} | `{mutant.file}` | {by} |")
    alone = sum(any(name in JUDGES for name in names) for names in found.values())
    nothing = sum(not names for names in found.values())
    others = len(found) - alone - nothing
    lines += ["", f"{len(found)} faults: {alone} found from the run folder alone,"]
    lines[-1] += f" {others} by tests or the run itself, {nothing} by nothing."
    return "\n".join(lines)


def not_finding(mutant: Mutant, names: Sequence[str]) -> list[str]:
    """What must find a mutant, and does not."""
    return sorted(set(mutant.caught_by) - {NOTHING} - set(names))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="a mutant to try; repeatable")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--results", type=Path, help="JSON file that an interrupted call resumes from")
    options = parser.parse_args()
    preload()
    found: dict[str, list[str]] = {}
    if options.results is not None and options.results.exists():
        found = json.loads(options.results.read_text())
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    chosen = [mutant for mutant in chosen if mutant.name not in found]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trials = Trials(Path(folder))
        for number, mutant in enumerate(chosen):
            began = time.monotonic()
            names = found[mutant.name] = trials.found_by(mutant, number)
            missing = ", ".join(not_finding(mutant, names))
            print(
                f"{f'MISSED by {missing}' if missing else 'ok'}: {mutant.name}: {', '.join(names)}", end="  "
            )
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
            if options.results is not None:
                options.results.write_text(json.dumps(found, indent=1))
    print("\n" + table(found))
    missed = any(not_finding(mutant, found.get(mutant.name, mutant.caught_by)) for mutant in MUTANTS)
    if options.write and not options.only:
        if missed:
            print("not all were found: docs/reliability.md stays as it is")
        else:
            replace_part(BEGIN, END, table(found))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
