#!/usr/bin/env bash
# SGLang's own serving benchmark, dense and sparse, on prompts that share long prefixes.
#     MODEL=meta-llama/Llama-3.1-8B-Instruct examples/gpu_benchmark.sh       on a GPU host
# All below can be set from outside; tests/server/alone/test_examples_alone.py does it for a CPU.
set -euo pipefail
set -m # every server is a process group of its own
cd "$(dirname "$0")/.."

MODEL=${MODEL:-meta-llama/Llama-3.1-8B-Instruct} # folder or name
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu-benchmark}                  # results and logs; nothing there is overwritten
DENSE=${DENSE:-flashinfer fa3}                   # SGLang's own; fa3 wants Hopper
SPARSE_FLAGS=${SPARSE_FLAGS:---sparsekv-method quest --sparsekv-budget 2048}
SERVER_FLAGS=${SERVER_FLAGS:---mem-fraction-static 0.85}
PREFIXES=${PREFIXES:-4}                          # documents
PER_PREFIX=${PER_PREFIX:-16}                     # questions about each
PREFIX_LEN=${PREFIX_LEN:-32768}                  # tokens of a document
QUESTION_LEN=${QUESTION_LEN:-128}
OUTPUT_LEN=${OUTPUT_LEN:-256}
CONCURRENCY=${CONCURRENCY:-16}                   # questions in flight
GPU_SUITE=${GPU_SUITE:-make gpu}                 # kernels, graphs and whole steps; docs/gpu.md
PORT=${PORT:-30000}
URL=http://127.0.0.1:$PORT

server=
stop() { # ends the server and what it started
    [ -n "$server" ] || return 0
    kill -- "-$server" 2>/dev/null || true
    wait "$server" || true
    kill -KILL -- "-$server" 2>/dev/null || true # children that outlived it hold memory
    server=
}
trap stop EXIT

fetch() { # PATH of the server
    "$PYTHON" -c "import sys, urllib.request as u
print(u.urlopen(sys.argv[1], timeout=60).read().decode())" "$URL/$1"
}

ready() { # waits for the server, and ends if it ended
    until fetch health >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || { tail -n 20 "$1"; exit 1; }
        sleep 1
    done
}

measure() { # NAME FLAGS...: a server, a run that fills the radix cache, a run that counts
    local name=$1 result
    shift
    result=$OUT/$name.jsonl
    [ ! -e "$result" ] || { echo "$result is there already: name another OUT"; exit 1; }
    echo "== $name"
    "$PYTHON" -m sglang.launch_server --model-path "$MODEL" --host 127.0.0.1 --port "$PORT" \
        $SERVER_FLAGS "$@" >"$OUT/$name.log" 2>&1 &
    server=$!
    ready "$OUT/$name.log"
    for file in "$OUT/$name.warm-up" "$result"; do
        "$PYTHON" -m sglang.benchmark.serving --backend sglang --base-url "$URL" --model "$MODEL" \
            --dataset-name generated-shared-prefix --seed 1 --max-concurrency "$CONCURRENCY" \
            --gsp-num-groups "$PREFIXES" --gsp-prompts-per-group "$PER_PREFIX" \
            --gsp-system-prompt-len "$PREFIX_LEN" --gsp-question-len "$QUESTION_LEN" \
            --gsp-output-len "$OUTPUT_LEN" --gsp-range-ratio 1.0 --disable-tqdm \
            --output-file "$file" >>"$OUT/$name.bench.log" 2>&1 ||
            { tail -n 20 "$OUT/$name.bench.log"; exit 1; }
    done
    fetch server_info >"$OUT/$name.info"
    stop
}

mkdir -p "$OUT"
for backend in $DENSE; do
    measure "$backend" --attention-backend "$backend"
done
measure sparsekv --attention-backend sparsekv $SPARSE_FLAGS
"$PYTHON" examples/benchmark_table.py "$OUT"
$GPU_SUITE
