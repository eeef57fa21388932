"""Mutates a sample of the source at random with cosmic-ray, and counts what the tests find.

    python tests/mutants/sample_mutations.py [--each 40] [--seed 0] [--results FILE] [--again] [--write]
        [ROOM ...]

Takes mutations in turn from each room. A mutation is tried on the tests that execute its line. Mutations of
annotations, which are not evaluated, are left out. Prints each survivor; `--write` puts the table into
docs/reliability.md. Exit code 1 if the tests of a room find less than 90 %.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from cosmic_ray import plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import WorkDB, use_db
from covering_tests import TestServer
from equivalent import why_equivalent
from mutant_runs import make_tree, passes, preload
from page import replace_part

BEGIN, END = "<!-- mutations: made by `make test-mutations` -->", "<!-- end of mutations -->"
SHARE = 0.9

# Files and tests of each room. Tests that start processes are left out: these are not in the coverage.
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "plan": (
        ["reptrain/plan/*.py"],
        ["tests/plan", "tests/study/test_prefixes.py", "tests/training/test_text_amounts.py"],
    ),
    "batch": (
        ["reptrain/batch/*.py", "reptrain/batch/objectives/*.py"],
        ["tests/batch", "tests/format/test_vectors.py"],
    ),
    "auditing": (
        ["reptrain/auditing/*.py"],
        ["tests/auditing", "tests/training/test_input_proof.py", "tests/training/test_text_amounts.py"],
    ),
    "training": (
        ["reptrain/training/*.py"],
        [
            "tests/format/test_independent_trainer.py", "tests/checkpoint/test_checkpoints.py",
            "tests/training/test_branch.py", "tests/training/test_console.py",
            "tests/training/test_distill.py", "tests/training/test_load_balance.py",
            "tests/training/test_init_from.py", "tests/training/test_input_proof.py",
            "tests/training/test_masked_inputs.py", "tests/training/test_optimizers.py",
            "tests/training/test_parameter_table.py", "tests/training/test_regularize.py",
            "tests/training/test_step_costs.py", "tests/training/test_train.py",
            "tests/training/test_train_mixture.py",
        ],
    ),
}  # fmt: skip


class Mutation(NamedTuple):
    """One change of one file."""

    file: str
    operator: str
    occurrence: int
    line: int


class Result(NamedTuple):
    """The result of a mutation.

    Attributes:
        room: Its room.
        found: Whether a test fails with it.
        file: The file and line.
        old: The line in the source.
        new: The changed line.
    """

    room: str
    found: bool
    file: str
    line: int
    old: str
    new: str

    @property
    def why_equivalent(self) -> str | None:
        """Why the mutation has no effect; None if it may have one."""
        return why_equivalent(self.file, self.old, self.new)

    def text(self) -> str:
        """One line of text."""
        return f"{self.file}:{self.line}: {self.old}  ->  {self.new}"


def mutations(tree: Path, paths: list[Path]) -> list[Mutation]:
    """All mutations of some files, but for annotations."""
    annotated = {path: set(annotation_places(path)) for path in paths}
    found = []
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(paths, database, {})
        for item in database.work_items:
            (spec,) = item.mutations
            place = tuple(spec.start_pos)
            path = Path(spec.module_path)
            if not any(begin <= place < end for begin, end in annotated[path]):
                name = str(path.relative_to(tree))
                found.append(Mutation(name, spec.operator_name, spec.occurrence, place[0]))
    return sorted(found)


def annotation_places(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of each annotation of a file: line and column."""
    for node in ast.walk(ast.parse(path.read_text())):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for note in notes:
            if isinstance(note, ast.expr) and note.end_lineno is not None and note.end_col_offset is not None:
                yield (note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)


class Room:
    """The mutations of a room in random order.

    Args:
        name: Its name.
        tree: The tree to mutate.
        seed: Seed of the order.
    """

    def __init__(self, name: str, tree: Path, seed: int) -> None:
        patterns, tests = ROOMS[name]
        paths = sorted(path for pattern in patterns for path in tree.glob(pattern))
        self.name, self.tree, self._log = name, tree, tree.with_name(f"{name}.log")
        self.server = TestServer(tree, tests, paths, self._log)
        self.waiting = mutations(tree, paths)
        self.total = len(self.waiting)
        random.Random(f"{seed} {name}").shuffle(self.waiting)
        self._all = [*self.waiting]

    def try_next(self) -> Result | None:
        """Try one mutation; None if it changes nothing."""
        return self._try(self.waiting.pop())

    def try_again(self, result: Result) -> Result:
        """Try a mutation again with the current tests; the same result if the mutation no longer exists."""
        for mutation in self._all:
            if mutation.file == result.file:
                _, _, old, new = self._changed(mutation)
                if (old, new) == (result.old, result.new):
                    return self._try(mutation) or result
        return result

    def _changed(self, mutation: Mutation) -> tuple[str, str | None, str, str]:
        """A file's text without and with a mutation, and the line that differs."""
        sound = (self.tree / mutation.file).read_text()
        changed = mutate_code(sound, plugins.get_operator(mutation.operator)(), mutation.occurrence)
        pairs = zip(sound.splitlines(), (changed or sound).splitlines(), strict=False)
        old, new = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
        return sound, changed, old.strip(), new.strip()

    def _try(self, mutation: Mutation) -> Result | None:
        path, (sound, changed, old, new) = self.tree / mutation.file, self._changed(mutation)
        if changed is None or not _is_python(changed):
            return None
        place = (mutation.file, mutation.line, old, new)
        if why_equivalent(mutation.file, old, new):
            return Result(self.name, False, *place)
        found = self.server.fails(path, mutation.line, changed)
        if found is None:
            found = self._fails_in_new_process(path, mutation.line, changed, sound)
        return Result(self.name, found, *place)

    def _fails_in_new_process(self, path: Path, line: int, changed: str, sound: str) -> bool:
        """Whether a test fails in a separate process."""
        path.write_text(changed)
        # Python takes a file of the same size and second for the one that it has compiled.
        for cache in path.parent.glob("__pycache__"):
            for compiled in cache.iterdir():
                compiled.unlink()
        try:
            return not passes(self.tree, self.server.of_line(path, line), self._log.with_suffix(".own.log"))
        finally:
            path.write_text(sound)


def _is_python(text: str) -> bool:
    """Whether a file compiles: a `*` in a signature is mutated like an operator."""
    try:
        compile(text, "mutated", "exec")
    except SyntaxError:
        return False
    return True


def text(results: list[Result], totals: dict[str, int]) -> str:
    """The results in Markdown."""
    lines = ["| package | possible | tried | equivalent | found | share |", "|---|---|---|---|---|---|"]
    for room, total in totals.items():
        own = [result for result in results if result.room == room]
        equal = sum(result.why_equivalent is not None for result in own)
        found, counted = sum(result.found for result in own), len(own) - equal
        lines.append(
            f"| `reptrain/{room}` | {total:,} | {len(own)} | {equal} | {found} | {share(results, room):.0%} |"
        )
        assert counted >= found
    survivors = [result for result in results if not result.found and result.why_equivalent is None]
    if survivors:
        lines += ["", "Not found:", "", *(f"- `{result.text()}`" for result in survivors)]
    equal_ones = [result for result in results if result.why_equivalent is not None]
    if equal_ones:
        lines += ["", "Equivalent, and not counted:", ""]
        lines += [f"- `{result.text()}`: {result.why_equivalent}" for result in equal_ones]
    return "\n".join(lines)


def share(results: list[Result], room: str) -> float:
    """Share of a room's mutations that the tests find, without equivalent ones."""
    counted = [result.found for result in results if result.room == room and result.why_equivalent is None]
    return sum(counted) / len(counted) if counted else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--each", type=int, default=40, help="mutations of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON file that an interrupted call resumes from")
    parser.add_argument("--again", action="store_true", help="try the survivors of --results again")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    preload()
    kept = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    results, totals = [Result(*one) for one in kept.get("results", [])], dict(kept.get("totals", {}))
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = make_tree(Path(folder) / "tree")
        for name in options.rooms or ROOMS:
            tried = [result for result in results if result.room == name]
            again = [one for one in tried if options.again and not (one.found or one.why_equivalent)]
            if len(tried) >= options.each and not again:
                continue
            room = Room(name, tree, options.seed)
            for result in again:
                results[results.index(result)] = new = room.try_again(result)
                print(f"again, {'found' if new.found else 'SURVIVED'}: {new.text()}", flush=True)
            totals[name] = room.total
            del room.waiting[max(0, room.total - kept.get("drawn", {}).get(name, 0)) :]
            while room.waiting and len(tried) < options.each:
                began, result = time.monotonic(), room.try_next()
                if result is not None:
                    tried.append(result)
                    results.append(result)
                    how = "equivalent" if result.why_equivalent else "found" if result.found else "SURVIVED"
                    print(f"{time.monotonic() - began:5.1f} s {how}: {result.text()}", flush=True)
                if options.results:
                    kept.setdefault("drawn", {})[name] = room.total - len(room.waiting)
                    kept |= {"results": results, "totals": totals}
                    options.results.write_text(json.dumps(kept))
            room.server.close()
    if options.results:
        options.results.write_text(json.dumps(kept | {"results": results, "totals": totals}))
    table = text(results, totals)
    print(f"\n{table}")
    if options.write:
        replace_part(BEGIN, END, table)
    return int(any(share(results, room) < SHARE for room in totals))


if __name__ == "__main__":
    sys.exit(main())
