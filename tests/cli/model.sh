#!/usr/bin/env bash
# The program with a real model: what goes where, what is refused, what stops an answer.
. "$(dirname "$0")/tap.sh"
model=${HEDDLE_TEST_MODELS:-}/SmolLM2-135M-Instruct.Q4_1.gguf
gemma=${HEDDLE_TEST_MODELS:-}/gemma-3-270m-q4_k_m.gguf
if [ ! -f "$model" ]; then
    echo "SKIP: HEDDLE_TEST_MODELS names no folder with the demo's models"
    exit 77
fi

# passes NAME PATTERN ARGS...: exit code 0 and the whole of stdout, on one line, matches.
passes() {
    local name=$1 pattern=$2
    shift 2
    heddle "$@"
    [ "$code" = 0 ] && tr '\n' '~' <"$work/out" | grep -qE -- "$pattern"
    result "$name" $?
}
complains() { # NAME PATTERN: the last run's stderr
    grep -qE -- "$2" "$work/err"
    result "$1" $?
}

says "inspect: layers" '^layers +30$' inspect "$model"
says "inspect: every plan has a line" '^  anchor ' inspect "$model"
says "inspect: a model with windowed layers" '15 read only the last 512 tokens' inspect "$gemma"
passes "tokenize" '^ *19556  Hello~ *28  ,~' tokenize -m "$model" "Hello, loom"
passes "tokenize --ids" '^19556 28 39621~$' tokenize -m "$model" --ids "Hello, loom"
passes "tokenize --bos adds what the file says" '^2 9259~$' tokenize -m "$gemma" --ids --bos "Hello"
passes "special tokens are text unless asked" '^44 ' tokenize -m "$model" --ids "<|im_end|>"
passes "tokenize --special" '^2~$' tokenize -m "$model" --ids --special "<|im_end|>"
printf '\377\376' >"$work/broken"
heddle tokenize -m "$model" -f "$work/broken" --ids
[ "$code" = 0 ]
result "broken UTF-8 does not fail" $?
passes "an empty text has no tokens" '^~$' tokenize -m "$model" --ids ""

passes "the answer alone is on stdout" '^ Paris\.~$' run -m "$model" --raw -p "The capital of France is" -n 2
complains "an answer cut by -n says so" 'longer than -n'
complains "figures are on stderr: prefill and its route" '^prefill 5 tokens .*tokens/s \(.*dense'
complains "figures: decode" '^decode 1 tokens .*tokens/s \(decode route of plan dense: dense\)'
complains "figures: KV and peak memory" '^KV .*peak memory'
complains "figures: tokens read" 'read [0-9]+ of [0-9]+ tokens'
passes "a stop string ends the answer before itself" '^ Paris~$' run -m "$model" --raw -p "The capital of France is" \
    -n 8 --stop .
passes "two questions, one document" '^ Paris~ ?[A-Z][a-z]+~$' run -m "$model" --raw -n 8 --stop . --stop , \
    -p "The capital of France is" -p "The capital of Italy is"
passes "anchor on a short prompt equals dense" '^ Paris\.~$' run -m "$model" --raw -p "The capital of France is" -n 2 \
    --plan anchor
complains "the routes are named" '^prefill 5 .*prefill route of plan anchor: dense\)'
complains "the routes are named: decode" '^decode 1 .*decode route of plan anchor: dense in 5 of 30 layers, lists in 25\)'
passes "a prompt of one token is a prompt" '.' run -m "$model" --raw -p "Hello" -n 1 --plan anchor
complains "a prompt of one token takes the prefill route" '^prefill 1 tokens .*: dense\)'
! grep -q '^decode' "$work/err"
result "a prompt of one token is no decode step" $?
passes "the chat template is used" '.' run -m "$model" -p "Hello" -n 4
complains "chat: more tokens than the prompt alone" '^prefill (2|3)[0-9] tokens'
passes "bias forbids a token" '^ [^P]' run -m "$model" --raw -p "The capital of France is" -n 2 --bias 7042=-inf
heddle run -m "$model" --raw -p "The capital of France is" -n 6 --temp 1 --seed 3 && cp "$work/out" "$work/first"
heddle run -m "$model" --raw -p "The capital of France is" -n 6 --temp 1 --seed 3
cmp -s "$work/out" "$work/first"
result "one seed, one answer" $?
heddle run -m "$model" --raw -p "The capital of France is" -c 8
[ "$code" = 0 ] && grep -q 'the context is full' "$work/err"
result "a full context stops with a sentence" $?
"$HEDDLE" run -m "$model" --chat -n 4 >"$work/out" 2>"$work/err" <<<$'Hello\nHow are you?'
code=$?
[ $code = 0 ] && [ "$(grep -c '^prefill' "$work/err")" = 2 ]
result "--chat reads turns from standard input" $?
echo "The capital of France is" | "$HEDDLE" run -m "$model" --raw -f - -n 2 >"$work/out" 2>"$work/err"
code=$?
grep -q . "$work/out"
result "-f - reads standard input" $?

refused "a prompt longer than the context" 'has 5 tokens, the context \(-c\) holds 4' run -m "$model" --raw \
    -p "The capital of France is" -c 4
refused "a context larger than memory names the largest" 'largest context that fits is [0-9]+' run -m "$model" --raw \
    -p "Hello" -c 256M --kv f32
for context in 999999999 1T; do
    refused "-c $context names the largest" 'at most 268435456 .*largest context that fits .* is [1-9][0-9]+ tokens' \
        run -m "$model" --raw -p "Hello" -c $context
done
refused "two prompts: the longer one's count" 'has 5 tokens, the context \(-c\) holds 4' run -m "$model" --raw \
    -p "The capital of France is" -p "Hello" -c 4
refused "unknown KV type" 'kv_type|KV type|--kv|"q3"|q3' run -m "$model" -p hello --kv q3
refused "a bias on a token that is not there" '0\.\.49151' run -m "$model" -p hello --bias 50000=1
cat >"$work/layer.json" <<'JSON'
{"heddle_plan": 1, "name": "p", "variants": [{"decode": [
  {"layers": [40], "operator": "dense", "router": {"score": "attention_mass", "top_k": 8, "window": 4}},
  {"layers": "rest", "operator": "token_list", "share": "previous"}]}]}
JSON
refused "a plan that names a missing layer" 'layers.*40' run -m "$model" -p hello --plan "$work/layer.json"
head -c 20000000 "$model" >"$work/cut.gguf"
refused "a truncated model" 'cut.gguf' run -m "$work/cut.gguf" -p hello

yes "The warp is wound on the beam before the weaver sits down." | head -n 40 >"$work/text"
passes "perplexity: the last line" '^perplexity: [0-9]+\.[0-9]{4,}~$' perplexity -m "$model" -f "$work/text" -c 128 --chunks 2
complains "perplexity: the plan's share is said" 'decode route of plan dense, which reads 100'
passes "perplexity after a prompt" '^perplexity: [0-9.]+~$' perplexity -m "$model" -f "$work/text" -c 128 --chunks 1 --prompt 100
complains "perplexity after a prompt: both routes are said" 'rows before 100 took the prefill route of plan dense'
passes "perplexity of a prompt" '^perplexity: [0-9.]+~$' perplexity -m "$model" -f "$work/text" -c 128 --chunks 1 --prompt 128
complains "perplexity of a prompt: its route is said" 'every row took the prefill route of plan dense'
refused "a prompt of no tokens" '--prompt 0: must be 1 or more' perplexity -m "$model" -f "$work/text" -c 128 --prompt 0
refused "a prompt longer than its chunk" '--prompt 129: must be at most the 128 tokens of a chunk' \
    perplexity -m "$model" -f "$work/text" -c 128 --prompt 129
passes "perplexity under a plan" '^perplexity: [0-9.]+~$' perplexity -m "$model" -f "$work/text" -c 128 --chunks 1 \
    --plan anchor:top_k=16,window=8
refused "a text shorter than one chunk" 'one chunk needs' perplexity -m "$model" -f "$work/text" -c 8K
refused "--from beyond the chunk" 'must be below' perplexity -m "$model" -f "$work/text" -c 128 --from 127
says "explain: the schedule" 'layer 29  token_list' explain -m "$model" --plan anchor

# interrupts FILE PATTERN ARGS...: runs it, sends Ctrl-C once FILE (out or err) matches; $code, out, err.
interrupts() {
    local file=$work/$1 pattern=$2 pid
    shift 2
    : >"$work/out"
    : >"$work/err"
    "$HEDDLE" "$@" >"$work/out" 2>"$work/err" <"$work/in" &
    pid=$!
    for _ in $(seq 600); do
        grep -qE -- "$pattern" "$file" && break
        sleep 0.05
    done
    kill -INT $pid
    wait $pid
    code=$?
}
: >"$work/in"
interrupts out . run -m "$model" --raw -p "Once upon a time" -n 4000
[ $code = 0 ] && grep -q 'stopped by Ctrl-C' "$work/err" && grep -q '^decode' "$work/err"
result "Ctrl-C stops the answer; the figures still come" $?
interrupts out . run -m "$model" --raw -p "Once upon a time" -p "The capital of France is" -n 1500
[ $code = 0 ] && [ "$(grep -c 'stopped by Ctrl-C$' "$work/err")" = 1 ] && grep -q '^question 2 of 2' "$work/err" &&
    [ "$(grep -c '^decode' "$work/err")" = 2 ]
result "Ctrl-C stops one of two answers, not the other" $?
yes "The warp is wound on the beam before the weaver sits down." | head -n 600 >"$work/long"
interrupts err '^reading' run -m "$model" --raw -f "$work/long" -p "And then" -n 4
[ $code = 1 ] && grep -q 'stopped by Ctrl-C while reading: there is no answer' "$work/err" && [ ! -s "$work/out" ]
result "Ctrl-C while reading: no answer, exit code 1" $?
printf 'Hello\n' >"$work/in"
interrupts err '^reading' run -m "$model" --chat -f "$work/long" -p "And then" -n 4
[ $code = 0 ] && grep -q 'while reading: this turn, with its documents, is not part' "$work/err" && [ -s "$work/out" ]
result "Ctrl-C while reading in a chat: the next turn is answered" $?
"$HEDDLE" run -m "$model" --raw -p Hello -n 2 >/dev/full 2>"$work/err" </dev/null
code=$?
[ $code = 1 ] && grep -q 'cannot be written' "$work/err"
result "a full disk: exit code 1" $?
# scratch: one f32 score row of 9 heads, an eighth on top at most, and what threads keep for themselves
work_of() {
    heddle explain -m "$model" --plan keys4 -c "$1" -t "$2"
    awk '$1 == "work" { print $2 }' "$work/out"
}
long=$(work_of 1M 16)
[ "${long:-0}" -gt 0 ] && [ "$long" -le $((36 * 1048576 * 9 / 8)) ] && [ "$long" = "$(work_of 1M 1)" ] &&
    [ "$(work_of 8K 16)" -le $((16 * (36 * 8192 * 2))) ]
result "the scratch of 1M tokens is one score row, with 1 thread as with 16" $?
finish
