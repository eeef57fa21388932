"""Mutates a sample of the source at random with cosmic-ray, and counts what the tests find.

    python tests/mutants/sample_mutations.py [--each 20] [--minutes 30] [--seed 0] [ROOM ...]

Takes mutations in turn from each room until there are so many of each, or the time is over. Mutations of
annotations are left out: nothing evaluates them. Prints the share that the tests of the room find, and each
survivor.
"""

from __future__ import annotations

import argparse
import ast
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
from mutant_runs import make_tree, passes, preload

# Files of each room, and the tests that must find a mutation, the quickest first.
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "plan": (["reptrain/plan/*.py"], ["tests/plan", "tests/auditing/test_independent_audit.py"]),
    "batch": (["reptrain/batch/*.py", "reptrain/batch/objectives/*.py"], ["tests/batch", "tests/format"]),
    "auditing": (["reptrain/auditing/*.py"], ["tests/auditing"]),
    "training": (
        [f"reptrain/training/{name}.py" for name in ("step", "batches", "loop", "targets", "optimizers")],
        ["tests/format/test_independent_trainer.py", "tests/training/test_optimizers.py",
         "tests/training/test_train.py", "tests/training/test_regularize.py"],
    ),
}  # fmt: skip


class Mutation(NamedTuple):
    """One change of one file."""

    path: Path
    operator: str
    occurrence: int
    line: int


def mutations(tree: Path, patterns: list[str]) -> list[Mutation]:
    """All mutations of some files, but for annotations."""
    paths = sorted(path for pattern in patterns for path in tree.glob(pattern))
    annotated = {path: set(annotation_places(path)) for path in paths}
    found = []
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(paths, database, {})
        for item in database.work_items:
            (spec,) = item.mutations
            place = tuple(spec.start_pos)
            path = Path(spec.module_path)
            if not any(begin <= place < end for begin, end in annotated[path]):
                found.append(Mutation(path, spec.operator_name, spec.occurrence, place[0]))
    return found


def annotation_places(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of each annotation of a file: line and column."""
    for node in ast.walk(ast.parse(path.read_text())):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for note in notes:
            if isinstance(note, ast.expr) and note.end_lineno is not None and note.end_col_offset is not None:
                yield (note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)


class Room:
    """The mutations of a room, in random order, and what became of those tried."""

    def __init__(self, name: str, tree: Path, draw: random.Random) -> None:
        patterns, self.tests = ROOMS[name]
        self.name, self.tree = name, tree
        self._waiting = mutations(tree, patterns)
        self.total = len(self._waiting)
        draw.shuffle(self._waiting)
        self.tried, self.survivors = 0, list[str]()

    def try_next(self) -> None:
        """Try one mutation."""
        mutation = self._waiting.pop()
        sound = mutation.path.read_text()
        changed = mutate_code(sound, plugins.get_operator(mutation.operator)(), mutation.occurrence)
        if changed is None:
            return
        mutation.path.write_text(changed)
        # Python takes a file of the same size and second for the one that it has compiled.
        for cache in mutation.path.parent.glob("__pycache__"):
            for compiled in cache.iterdir():
                compiled.unlink()
        try:
            found = not passes(
                self.tree, self._tests_of(mutation), self.tree.with_name("test.log"), limit_s=900
            )
        finally:
            mutation.path.write_text(sound)
        self.tried += 1
        if not found:
            pairs = zip(sound.splitlines(), changed.splitlines(), strict=False)
            old, new = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
            name = mutation.path.relative_to(self.tree)
            self.survivors.append(f"{name}:{mutation.line}: {old.strip()}  ->  {new.strip()}")

    def _tests_of(self, mutation: Mutation) -> list[str]:
        """The tests, those of the file first."""
        named = self.tree.glob(f"tests/**/test_*{mutation.path.stem}*.py")
        own = [str(path.relative_to(self.tree)) for path in sorted(named)]
        return [*(path for path in own if path.startswith(tuple(self.tests))), *self.tests]

    def text(self) -> str:
        """The result in a line, and the survivors."""
        killed = self.tried - len(self.survivors)
        head = f"{self.name}: {killed} of {self.tried} found, of {self.total} mutations"
        return "\n".join([head, *(f"  survived: {line}" for line in self.survivors)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--each", type=int, default=20, help="mutations of each room")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    preload()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = make_tree(Path(folder) / "tree")
        rooms = [Room(name, tree, draw) for name in options.rooms or ROOMS]
        for room in rooms:
            if not passes(tree, room.tests, Path(folder) / "test.log"):
                print(f"the tests of {room.name} fail:\n{(Path(folder) / 'test.log').read_text()[-3000:]}")
                return 1
        ends = time.monotonic() + 60 * options.minutes
        for _ in range(options.each):
            for room in rooms:
                if time.monotonic() < ends:
                    room.try_next()
                    print(f"{room.name}: {room.tried - len(room.survivors)} of {room.tried}", flush=True)
    print("\n".join(["", *(room.text() for room in rooms)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
