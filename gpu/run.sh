#!/usr/bin/env bash
# Measures everything on a machine with one GPU and no internet, in one call of at most 8 minutes.
# gpu/README.md describes its needs and its results. gpu/run.sh --rehearse runs all parts on a CPU.
set -u
cd "$(dirname "$0")/.."
REHEARSE=""
[ "${1:-}" = "--rehearse" ] && REHEARSE="--rehearse"
export OUT="${OUT:-$PWD/gpu-out}"
mkdir -p "$OUT"
PYTHON="${PYTHON:-python3}"
LIMIT="${LIMIT:-465}"
[ -n "$REHEARSE" ] && LIMIT="${LIMIT_REHEARSAL:-3600}"
SITE="${SITE:-$(mktemp -d)}"
START=$(date +%s)
LOG="$OUT/log.txt"
SUMMARY="$OUT/summary.txt"
FAILED=0

export PYTHONUNBUFFERED=1 PYTHONPATH="$SITE:$PWD:$PWD/kernels:$PWD/launcher" TOKENIZERS_PARALLELISM=false
export DS_BUILD_OPS=0 HF_HUB_OFFLINE=1 TRITON_CACHE_DIR="$SITE/triton-cache"
[ -n "$REHEARSE" ] && export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

left() { echo $((LIMIT - $(date +%s) + START)); }

# part NAME SECONDS COMMAND...: under its own limit, which is cut to the time that is left. Never ends the script.
part() {
    local name="$1" limit="$2" begin code rest
    shift 2
    rest=$(left)
    [ -n "$REHEARSE" ] && limit=$((limit * 10))
    [ "$rest" -lt "$limit" ] && limit="$rest"
    if [ "$limit" -lt 5 ]; then
        echo "$name: not begun, out of time" | tee -a "$SUMMARY"
        return
    fi
    echo "=== $name (at most $limit s)" >>"$LOG"
    begin=$(date +%s)
    for _ in 1 2 3; do
        # 75: the process cannot continue after a CUDA error, and has to be started again.
        rest=$((limit - $(date +%s) + begin))
        [ "$rest" -lt 5 ] && break
        LIMIT_S="$rest" timeout -k 5 "$rest" "$@" >>"$LOG" 2>&1
        code=$?
        [ "$code" = 75 ] || break
    done
    [ "$code" = 0 ] || FAILED=$((FAILED + 1))
    echo "$name: exit $code after $(($(date +%s) - begin)) s" | tee -a "$SUMMARY"
}

# script NAME SECONDS FILE: a script of this folder. It begins nothing after 80 % of its time.
script() {
    local name="$1" limit="$2" file="$3" within
    within=$(left)
    [ "$within" -gt "$limit" ] && within="$limit"
    [ -n "$REHEARSE" ] && within=$((limit * 9))
    part "$name" "$limit" ${INTERPRET:-} "$PYTHON" "gpu/$file" --seconds $((within * 8 / 10)) $REHEARSE
}

machine() {
    date -u
    nvidia-smi || true
    "$PYTHON" -c 'import sys, torch, triton; print(sys.version); print(torch.__version__, triton.__version__)'
    "$PYTHON" -m pip list --disable-pip-version-check 2>/dev/null || true
}

# WHEELS=none: this Python has all packages.
[ "${WHEELS:-}" = none ] || part "packages" 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
    --no-cache-dir --upgrade --disable-pip-version-check --target "$SITE" .gpu/wheels/*.whl
machine >"$OUT/machine.txt" 2>&1
part "cache" 30 "$PYTHON" gpu/use_cache.py
INTERPRET=""
script "ceilings" 40 ceilings.py
[ -n "$REHEARSE" ] && INTERPRET="env TRITON_INTERPRET=1"
script "kernel checks" 60 kernel_checks.py
INTERPRET=""
script "goldens" 45 goldens.py
script "training steps" 150 train_steps.py
script "repeats" 30 repeats.py
part "tests" 90 "$PYTHON" -m pytest tests/kernels tests/model -m gpu --continue-on-collection-errors -n "${JOBS:-8}" -q -p no:cacheprovider --maxfail=60
[ -n "$REHEARSE" ] && INTERPRET="env TRITON_INTERPRET=1"
script "bench" 80 bench.py
INTERPRET=""
script "peers" 45 peer_steps.py
script "choices" 20 choices.py
[ -n "$REHEARSE" ] && INTERPRET="env TRITON_INTERPRET=1"
script "tiles" 120 tile_sweep.py
INTERPRET=""
echo "kernels in the cache at the end: $(find "$TRITON_CACHE_DIR" -name '*.cubin' 2>/dev/null | wc -l)" >>"$SUMMARY"
echo "$FAILED parts failed, $(($(date +%s) - START)) s in all" | tee -a "$SUMMARY"
# Without --rehearse the exit code is 0: parts fail alone, and the results of the others are kept.
[ -n "$REHEARSE" ] && [ "$FAILED" -gt 0 ] && exit 1
exit 0
