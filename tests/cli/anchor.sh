#!/usr/bin/env bash
# Dense against anchor on one 4K document a model: every row of it under the plan, within 1 % of dense.
. "$(dirname "$0")/tap.sh"
models=${HEDDLE_TEST_MODELS:-}
text=$(dirname "$0")/../golden/llama/jargon.txt
if [ ! -f "$models/SmolLM2-135M-Instruct.Q4_1.gguf" ]; then
    echo "SKIP: HEDDLE_TEST_MODELS names no folder with the demo's models"
    exit 77
fi
for model in SmolLM2-135M-Instruct.Q4_1.gguf gemma-3-270m-q4_k_m.gguf; do
    for plan in dense anchor; do
        heddle perplexity -m "$models/$model" -f "$text" -c 4096 --chunks 1 --from 2048 --plan $plan
        [ "$code" = 0 ]
        result "$model: perplexity under $plan" $?
        declare "$plan=$(sed -n 's/^perplexity: //p' "$work/out")"
        declare "read_$plan=$(sed -n 's/.* reads \([0-9.]*\) %.*/\1/p' "$work/err")"
    done
    # shellcheck disable=SC2154
    echo "# $model: dense $dense, anchor $anchor, reading $read_anchor % of K and V"
    # shellcheck disable=SC2154
    awk -v d="$dense" -v a="$anchor" 'BEGIN { exit !(d > 1 && a != d && a < 1.01 * d) }'
    result "$model: anchor within 1 % of dense, and not the same" $?
    # shellcheck disable=SC2154
    awk -v r="$read_anchor" -v d="$read_dense" 'BEGIN { exit !(d == 100 && r > 10 && r < 80) }'
    result "$model: anchor reads less" $?
done
finish
