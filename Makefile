# make demo    set up .venv, then the main job on real text, ending in runs/demo/report.html
# make test    set up .venv with the test extras, then the tests (CPU, minutes)
# make megablocks  MegaBlocks into .venv, for model.moe.backend=megablocks
# make test-triton  the kernels on the oldest Triton that setup.cfg promises, compiled and interpreted
# make test-triton-quick  some of them, as CI runs them
# make gpu-kit  .gpu/, what gpu/run.sh needs on a machine with one GPU and no internet
# make gpu-goldens  rebuild gpu/goldens.json, the CPU's results that a GPU is compared with
# make check   ruff, mypy and import-linter
# make docs    build the documentation into site/; warnings and broken links are errors
# make test-all  the long and many-rank tests too
# make test-seconds  measure the CPU seconds of each test file, by which make test orders them
# make test-versions  a short set with the oldest and the newest torch, DeepSpeed and Python (downloads gigabytes)
# make coverage  lines that make test runs, by file; make coverage-fast: those of rooms without torch
# make test-machines  the tests that train, as older and other processors compute (x86 only)
# make bench  compare reading, starting, tokenizing and steps with other tools, and rebuild docs/performance.md
# make bench-check  measure again; fails if a ratio is below the range in benchmarks/
# make golden  record what small runs compute in RECORD (runs/golden.json), and renew tests/golden/golden.json
# make golden-check  run them again and compare with RECORD, losses within TOLERANCE (0: bit for bit)
# make test-mutations  a random sample of small changes to the source, by cosmic-ray; writes the table in docs/reliability.md
# make format-vectors  the test vectors of docs/format.md
# make test-mutants  faults planted in the source, and what finds each; writes the table in docs/reliability.md
# make paper  a short form of the paper's main findings on text of Python's documentation (about half an hour on two cores)
# make paper-page  docs/paper.md from the tables in docs/data/paper
# make test-slurm  studies on a real two-node Slurm on this machine (root, and Debian's slurmctld slurmd slurm-client munge)
# make test-cluster  launches and reptrain doctor on two hosts with sshd and on Slurm, on this machine (root, Debian)
# make test-faults  kills, full disks, damage, lost links; writes the table in docs/reliability.md

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# The first Python that reptrain supports; PYTHON=... names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

# Processes that share the tests of `make test`, a file to each at a time. On few cores one more than cores: some tests
# wait for time limits and for the polls of launchers.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? n + 1 : 4 )))

.DEFAULT_GOAL := help
.PHONY: help demo demo-quick megablocks test test-all test-seconds test-machines test-versions golden golden-check \
	test-cluster test-faults test-mutants test-mutations format-vectors test-triton test-triton-quick coverage \
	bench bench-check coverage-fast gpu-kit gpu-goldens paper paper-page check docs format clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.run

# It pins an older torch, and its compiled parts want CUDA: so it is no extra.
megablocks: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		megablocks==0.10.0 stanford-stk==0.7.1
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
			grouped_gemm==0.3.0; \
	else echo "torch sees no GPU: without its compiled parts MegaBlocks runs in tests only"; fi

demo: $(VENV)/.run
	$(BIN)/reptrain demo

demo-quick: $(VENV)/.run
	$(BIN)/reptrain demo --quick

# The dense arms of the first study are also arms of the others.
PAPER := core loops moe regularizers late tokens

paper: $(VENV)/.run
	$(BIN)/reptrain demo --store-only
	@done=; for study in $(PAPER); do \
		$(BIN)/reptrain study run configs/studies/mini/$$study.yaml --scale short data.store=runs/demo/store \
			--out runs/paper/$$study $$done || exit $$?; \
		done="--done runs/paper/core/tables/runs.parquet"; \
	done
	$(BIN)/reptrain study report runs/paper

paper-page: $(VENV)/.run
	$(BIN)/python tools/paper_page.py

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variables hide notices about the future of MkDocs; constraints.txt pins the versions that work together.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

# Without bytecode each process compiles the modules of the project and of its tests that it imports.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest
# The longest files first: tests/file_seconds.json.
SHARED := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
# Temporary folders are in memory if 4 GB are free there and files may be executed: a short run calls fsync 46
# times. They are removed unless a test fails.
SHM := $(shell grep -q ' /dev/shm tmpfs' /proc/mounts 2>/dev/null && ! grep ' /dev/shm ' /proc/mounts | grep -q noexec \
	&& test "$$(df -k --output=avail /dev/shm | tail -1)" -gt 4000000 && echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
REMOVED := -o tmp_path_retention_policy=failed -o tmp_path_retention_count=1

test: $(VENV)/.test
	$(SHM) $(PYTEST) -m 'not slow' $(SHARED) $(REMOVED)

test-seconds: $(VENV)/.test
	OMP_NUM_THREADS=1 $(SHM) $(PYTEST) -m 'not slow' --record-seconds $(REMOVED)

coverage: $(VENV)/.test
	$(SHM) $(PYTEST) -m 'not slow' $(SHARED) $(REMOVED) --cov --cov-report=term:skip-covered

# The rooms without torch or training, whose tests take seconds.
FAST := tests/config tests/store tests/runs tests/study

coverage-fast: $(VENV)/.test
	$(BIN)/pytest -m 'not slow' $(FAST) $(SHARED) --cov --cov-report=term

test-all: $(VENV)/.test
	$(PYTEST)

# Instruction sets of torch, oneDNN and MKL, and threads: each combination rounds differently.
MACHINES := default:SSE41:COMPATIBLE:1 avx2:AVX2:AVX2:2 avx512:AVX512_CORE:AVX512:1
# The tests that train or compute with models, and those of the kernels in plain torch.
TRAINING := tests/training tests/checkpoint tests/distributed tests/evaluation tests/model tests/tasks tests/generation tests/hub tests/test_demo.py \
	tests/kernels/test_attention.py tests/kernels/test_gated.py tests/kernels/test_linear_cross_entropy.py tests/kernels/test_norm.py

test-machines: $(VENV)/.test
	@for machine in $(MACHINES); do \
		IFS=: read -r aten onednn mkl threads <<< "$$machine"; \
		echo "== torch $$aten, oneDNN $$onednn, MKL $$mkl, threads $$threads"; \
		ATEN_CPU_CAPABILITY=$$aten ONEDNN_MAX_CPU_ISA=$$onednn MKL_CBWR=$$mkl OMP_NUM_THREADS=$$threads \
			$(BIN)/pytest -m 'not slow' $(TRAINING) $(SHARED) || exit 1; \
	done

BENCHES ?= data start tokenize step proof
BENCH_OPTIONS ?= --repetitions 3

$(VENV)/.bench: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@# LitGPT pins older packages than reptrain's; its model runs with these.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps litgpt==0.5.13 lightning==2.6.6
	@# litdata brings a torchvision that a CPU build of torch may not load. It works without, transformers too.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || \
		$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch $@ $(VENV)/.run

bench: $(VENV)/.bench
	for bench in $(BENCHES); do $(BIN)/reptrain bench $$bench --out benchmarks $(BENCH_OPTIONS) || exit 1; done
	$(BIN)/reptrain bench page

bench-check: $(VENV)/.bench
	$(BIN)/reptrain bench check

RECORD ?= runs/golden.json
TOLERANCE ?= 0

golden: $(VENV)/.test
	$(BIN)/python -m tests.golden.record $(RECORD)

golden-check: $(VENV)/.test
	$(BIN)/python -m tests.golden.record $(RECORD) --check --loss-tolerance $(TOLERANCE)

test-slurm: $(VENV)/.test
	$(BIN)/pytest tests/cluster -m slurm

# Missing Debian packages are installed. Tests with missing programs are skipped, with the reason.
CLUSTER_PARTS := openssh-server pdsh iproute2 faketime openmpi-bin slurmctld slurmd slurm-client munge

test-cluster: $(VENV)/.test
	@dpkg -s $(CLUSTER_PARTS) >/dev/null 2>&1 || { apt-get update -qq && \
		apt-get install -qq --no-install-recommends $(CLUSTER_PARTS); }
	$(BIN)/pytest tests/cluster -m cluster --durations=0

test-faults: $(VENV)/.test
	$(BIN)/pytest tests/faults -m faults --write-fault-table

test-mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/try_mutants.py --write

test-mutations: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutations]'
	$(BIN)/python tests/mutants/sample_mutations.py --write

format-vectors: $(VENV)/.test
	$(BIN)/python tests/format/format_vectors.py

NEWEST_PYTHON ?= $(shell for p in python3.13 python3.12 python3.11; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)

test-versions: $(BIN)/python
	$(BIN)/python tools/try_versions.py oldest
	$(BIN)/python tools/try_versions.py newest --python $(NEWEST_PYTHON)

# Beside the pinned one, which .venv has: first on Python's path, all else is shared.
OLDEST_TRITON := $(shell sed -n 's/.*triton>=\([0-9.]*\).*/\1.0/p' setup.cfg)

.triton/$(OLDEST_TRITON)/.done: $(VENV)/.test
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) \
		triton==$(OLDEST_TRITON)
	@touch $@

test-triton: .triton/$(OLDEST_TRITON)/.done
	PYTHONPATH=$(CURDIR)/.triton/$(OLDEST_TRITON) $(BIN)/pytest tests/kernels -m 'not slow and not gpu' \
		-k 'interpret or in_triton or compiled_kernels or compiled_matrix' $(SHARED)

# Tables of compiled kernels, and one operation with products and one without under the interpreter.
test-triton-quick: .triton/$(OLDEST_TRITON)/.done
	PYTHONPATH=$(CURDIR)/.triton/$(OLDEST_TRITON) OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow and not gpu' \
		tests/kernels/test_compiled.py tests/kernels/test_linewise.py \
		-k 'interpret or in_triton or compiled_kernels or compiled_matrix'

gpu-kit: .triton/$(OLDEST_TRITON)/.done
	$(BIN)/python gpu/kit.py --triton .triton/$(OLDEST_TRITON)

gpu-goldens: $(VENV)/.test
	$(BIN)/python gpu/goldens.py --write

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .triton .versions .gpu gpu-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
