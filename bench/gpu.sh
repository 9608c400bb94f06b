#!/usr/bin/env bash
# The first day on a GPU: values, budgets, launches, kernels, memory, and times beside the floor; into bench/results/, named by the GPU.
#
#     bash bench/gpu.sh                          on the first GPU of this machine, within 10 minutes
#     bash bench/gpu.sh --pretend                tiny, on a device that is not there: what only a GPU gives is "not measured"
#     bash bench/gpu.sh --only floor --out DIR   one step (may be given again), written elsewhere
#
# PYTHON          the interpreter; python3
# ATTRIB_WHEELS   a folder of wheels from which what is missing is installed, without an index
#
# A step that fails, or runs out of its time, is named, and the others are done. Exits 1 where one was not right.
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"

# step and its seconds: 580 in all
ALL="parity:130 budgets:80 launches:50 replays:30 asking:20 kernels:110 memory:60 floor:100"
pretend="" out="" only=""
while [ $# -gt 0 ]; do
    case "$1" in
        --pretend) pretend="--pretend" ;;
        --only) only="$only ${2:?--only: a step is missing}"; shift ;;
        --out) out=${2:?--out: a folder is missing}; shift ;;
        *) echo "$1: expected --pretend, --only STEP or --out FOLDER" >&2; exit 2 ;;
    esac
    shift
done
for step in $only; do
    case " $ALL" in *" $step:"*) ;; *) echo "--only: $step is no step; there are $ALL" >&2; exit 2 ;; esac
done
if [ -z "$out" ]; then
    if [ -n "$pretend" ]; then out=$(mktemp -d); else out=bench/results; fi
fi
if [ -n "${ATTRIB_WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --find-links "$ATTRIB_WHEELS" -r bench/gpu/requirements.txt || exit 2
fi

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
statuses=()
for each in $ALL; do
    step=${each%%:*}
    if [ -n "$only" ]; then case " $only " in *" $step "*) ;; *) continue ;; esac; fi
    begun=$SECONDS
    limit=${each##*:}
    if [ -n "$pretend" ]; then limit=$((10 * limit)); fi # a busy machine is no fault of the steps
    timeout --kill-after=10 "$limit" "$PYTHON" -W ignore -m bench.gpu "$step" --out "$parts/$step.json" $pretend
    status=$?
    statuses+=("$step=$status")
    echo "$step: $((SECONDS - begun)) s, status $status" >&2
done
"$PYTHON" -m bench.gpu.collect "$parts" --out "$out" "${statuses[@]}"
