"""Runs of any size that were never trained, and what their audit costs.

    python tests/auditing/large_runs.py --unique 100000000 --epochs 10 --cut shifted

prints wall-clock time, CPU time and the peak of memory of `reptrain audit` in a process of its own: the
whole resident set, and of it what is not a page of a mapped file, which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reptrain.auditing.cuts import Cuts
from reptrain.auditing.rehash import window_digests
from reptrain.bench.made_store import replace_training_text
from reptrain.config import RunConfig
from reptrain.plan import open_stream
from reptrain.runs import LedgerRecord, RunFolder, RunPlan
from reptrain.store import Store, open_store
from reptrain.text.tokenizer import TokenArray
from reptrain.tokenization import tokenize

_CHUNK_STEPS = 1 << 14


def make_store(folder: Path, tokens: int, document_tokens: int = 600) -> Store:
    """A sealed store of random tokens in documents of random lengths.

    Args:
        folder: Where to make it.
        tokens: Of the training split, at least.
        document_tokens: Mean length of a document.
    """
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} squared is {n * n}."}) + "\n" for n in range(400)))
    tokenize([text], folder / "store", vocab_size=96, num_sentinels=4)
    manifest = open_store(folder / "store").manifest
    draw = np.random.default_rng(0)

    def documents() -> Iterator[TokenArray]:
        while True:
            length = 2 + int(draw.exponential(document_tokens))
            ids = draw.integers(4, manifest.vocab_size, length, dtype=manifest.dtype)
            ids[-1] = manifest.eos_id
            yield ids

    return replace_training_text(folder / "store", documents(), tokens)


def make_run(
    path: Path,
    store: Store,
    *,
    unique_tokens: int,
    epochs: int,
    cut: str = "fixed",
    order: str = "reshuffle",
    window_tokens: int = 512,
    step_tokens: int = 1 << 18,
) -> RunFolder:
    """The folder of a run that is done, as a faultless engine would have left it."""
    data = {
        "store": str(store.path),
        "unique_tokens": unique_tokens,
        "window_tokens": window_tokens,
        "cut": cut,
        "order": order,
    }
    train = {"total_tokens": f"{epochs}epochs", "batch_windows": max(1, step_tokens // window_tokens)}
    config = RunConfig.model_validate({"data": data, "train": train})
    stream = open_stream(config, {"data": store})
    plan = RunPlan.of(config, stores={"data": store}, stream=stream)
    folder = RunFolder.create_or_open(path, config, plan, {})
    mixture, steps = plan.mixture_plan(), plan.step_plan()
    chunk = max(1, _CHUNK_STEPS * 64 // plan.batch_windows)
    with folder.ledger.path.open("w") as file:
        for first_step in range(0, steps.num_steps, chunk):
            first = first_step * plan.batch_windows
            end = min(first + chunk * plan.batch_windows, plan.total_windows)
            found = mixture.locate(np.arange(first, end))
            digests = window_digests(stream, Cuts.of(found.start, found.length))
            offset = np.arange(0, end - first, plan.batch_windows)
            sums, tokens = np.add.reduceat(digests, offset), np.add.reduceat(found.length, offset)
            for place, begin in enumerate(offset.tolist()):
                record = LedgerRecord(
                    step=first_step + place,
                    first_index=first + begin,
                    windows=min(plan.batch_windows, end - first - begin),
                    tokens=int(tokens[place]),
                    epoch=(first + begin) // plan.sources[0].windows_per_epoch,
                    applied=True,
                    digest=f"{int(sums[place]):016x}",
                )
                file.write(record.model_dump_json(exclude_none=True) + "\n")
    folder.set_status("done")
    return folder


_MEASURED = """
import json, resource, sys, threading, time
from pathlib import Path

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])

peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
started, before = time.perf_counter(), time.process_time()
from reptrain.auditing.audit import audit
options = json.loads(sys.argv[2])
report = audit(Path(sys.argv[1]), exposures=options["exposures"] and Path(options["exposures"]),
               verify_store=options["verify_store"])
usage = resource.getrusage(resource.RUSAGE_SELF)
spent = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - before}
done.set()
watcher.join()
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({**spent, "children_s": children.ru_utime + children.ru_stime,
    "peak_mib": usage.ru_maxrss / 1024, "anonymous_mib": peak[0] / 1024,
    "exact": report.exact, "tokens": report.tokens_consumed, "exposures": report.exposures}))
"""


def measure_audit(run: Path, *, exposures: Path | None = None, verify_store: bool = True) -> dict:
    """What the audit of a run took, in a process of its own."""
    options = {"exposures": exposures and str(exposures), "verify_store": verify_store}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(run), json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Make a run and measure its audit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unique", type=float, default=2**20)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--cut", choices=["fixed", "shifted", "repacked"], default="fixed")
    parser.add_argument("--order", choices=["reshuffle", "same", "mixed"], default="reshuffle")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--step-tokens", type=int, default=1 << 18)
    parser.add_argument("--document-tokens", type=int, default=600)
    parser.add_argument("--exposures", action="store_true", help="also write the count of every token")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the store in this folder, and reuse it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        sealed = (folder / "store" / "manifest.json").exists()
        store = (
            open_store(folder / "store")
            if sealed
            else make_store(folder, int(given.unique), given.document_tokens)
        )
        started = time.perf_counter()
        run = make_run(
            Path(temporary) / "run",
            store,
            unique_tokens=int(given.unique),
            epochs=given.epochs,
            cut=given.cut,
            order=given.order,
            window_tokens=given.window,
            step_tokens=given.step_tokens,
        )
        print(f"made in {time.perf_counter() - started:.1f} s: {run.plan.step_plan().num_steps} steps")
        target = Path(temporary) / "exposures.arrow" if given.exposures else None
        for _ in range(given.repeat):
            print(json.dumps(measure_audit(run.path, exposures=target)))


if __name__ == "__main__":
    main()
