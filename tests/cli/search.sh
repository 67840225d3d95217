#!/usr/bin/env bash
# heddle plan search: finds list layers, writes a plan that the program takes, refused what makes no sense.
. "$(dirname "$0")/tap.sh"
model=${HEDDLE_TEST_MODELS:-}/SmolLM2-135M-Instruct.Q4_1.gguf
gemma=${HEDDLE_TEST_MODELS:-}/gemma-3-270m-q4_k_m.gguf
text=$(dirname "$0")/../golden/llama/jargon.txt
if [ ! -f "$model" ]; then
    echo "SKIP: HEDDLE_TEST_MODELS names no folder with the demo's models"
    exit 77
fi

heddle plan search -m "$gemma" -f "$text" -c 400 --rows 32 --lists 1 --fit-top-k 32 --score key_i4 --name found -o "$work/one.json"
[ "$code" = 0 ] && grep -q '"layers": \[5\]' "$work/one.json"
result "one list for three global layers is the first one's" $?
says "the plan that was written is taken" 'token_list, its own; makes a list by 4-bit keys' \
    explain -m "$gemma" --plan "$work/one.json"
heddle plan search -m "$model" -f "$text" -c 400 --rows 16 --lists 4 --fit-top-k 16 --by heads -o "$work/heads.json"
[ "$code" = 0 ] && grep -q '"head_map"' "$work/heads.json"
result "head maps are written" $?
says "and taken" 'heads mapped' explain -m "$model" --plan "$work/heads.json"
refused "no text" 'no text is given' plan search -m "$model"
refused "as many lists as layers" 'must be fewer' plan search -m "$gemma" -f "$text" -c 400 --rows 32 --lists 3
refused "an unknown score" 'must be attention_mass, key_i8 or key_i4' plan search -m "$model" -f "$text" --score best
refused "a text that is too short" 'at least twice --rows' plan search -m "$model" -f "$text" -c 400 --rows 256
finish
