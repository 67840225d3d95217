#!/usr/bin/env bash
# The tests of train/ that this machine's Python can run: what a file needs is looked for first.
. "$(dirname "$0")/tap.sh"
root=$(cd "$(dirname "$0")/../.." && pwd)

# run FILE MODULES: one result, or a skip where a module of the list (Python's words) is missing.
run() {
    local name=train/tests/$1
    if ! python3 -c "import $2" 2>"$work/err"; then
        skip "$name" "needs Python with $2"
        return
    fi
    timeout 900 python3 "$root/$name" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    result "$name" $code
}

run test_data.py numpy
for file in "$root"/train/tests/test_*.py; do
    [ "${file##*/}" = test_data.py ] || run "${file##*/}" 'numpy, torch.nn.attention.flex_attention, safetensors'
done

timeout 60 python3 "$root/bench/same_size_transformer.py" >"$work/out" 2>"$work/err" </dev/null
code=$?
[ "$code" = 2 ] && grep -q '^usage:.*MODEL OUT' "$work/err" && ! grep -q Traceback "$work/err"
result "same_size_transformer.py without words" $?
finish
