#!/usr/bin/env bash
# --session: what was read is kept in a file; a later run reads only the rest, and a file that is not
# whole or belongs to another model, plan or KV type is refused and stays as it is.
. "$(dirname "$0")/tap.sh"
model=${HEDDLE_TEST_MODELS:-}/SmolLM2-135M-Instruct.Q4_1.gguf
gemma=${HEDDLE_TEST_MODELS:-}/gemma-3-270m-q4_k_m.gguf
if [ ! -f "$model" ]; then
    echo "SKIP: HEDDLE_TEST_MODELS names no folder with the demo's models"
    exit 77
fi
yes "The warp is wound on the beam before the weaver sits down." | head -n 40 >"$work/text"
session=$work/session

# prefilled N: the last run read N tokens.
prefilled() { grep -qE "^prefill $1 tokens" "$work/err"; }

run=(run -m "$model" -f "$work/text" -n 12 --invariant)
heddle "${run[@]}" -p "What is wound on the beam?" && cp "$work/out" "$work/first"
heddle "${run[@]}" -p "What is wound on the beam?" --session "$session"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/first" && [ -s "$session" ] && [ ! -e "$session.part" ]
result "a new session file; the answer is the same as without" $?
heddle "${run[@]}" -p "Who sits down?" && cp "$work/out" "$work/second"
heddle "${run[@]}" -p "Who sits down?" --session "$session"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/second" && prefilled '1?[0-9]'
result "another question: the document is not read again, the answer is the same" $?
heddle "${run[@]}" -p "Who sits down?" --session "$session"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/second" && prefilled 1
result "the same question: one token is read" $?
says "inspect: a session file" '^plan +dense' inspect "$session"
"$HEDDLE" run -m "$model" --chat -n 4 --session "$work/chat" >"$work/out" 2>"$work/err" <<<$'Hello\nHow are you?'
code=$?
[ $code = 0 ] && [ -s "$work/chat" ]
result "--chat keeps its turns" $?

sum=$(cksum <"$session")
unchanged() { [ "$(cksum <"$session")" = "$sum" ] && [ ! -e "$session.part" ]; }
refused "another plan" 'written under plan "dense"' "${run[@]}" -p hello --session "$session" --plan anchor
refused "another KV type" 'has KV type f16' "${run[@]}" -p hello --session "$session" --kv i8
refused "another model" 'another model' run -m "$gemma" --invariant -f "$work/text" -p hello --session "$session"
refused "outside the invariant mode" 'invariant mode' run -m "$model" -f "$work/text" -p hello --session "$session"
refused "a context that is too small" 'the context' run -m "$model" --invariant -p hello -c 64 --session "$session"
unchanged
result "a refused file is unchanged" $?
head -c 100000 "$session" >"$work/cut"
refused "a session file cut short" 'is cut' "${run[@]}" -p hello --session "$work/cut"
refused "inspect: a session file cut short" 'is cut' inspect "$work/cut"
cp "$session" "$work/flipped"
printf '\001' | dd of="$work/flipped" bs=1 seek=4000000 conv=notrunc 2>/dev/null
refused "a flipped byte" 'checksum' "${run[@]}" -p hello --session "$work/flipped"
refused "a text as a session" 'not a heddle session' "${run[@]}" -p hello --session "$work/text"
refused "a folder as a session" 'not a regular file' "${run[@]}" -p hello --session "$work"
grep -q "The warp" "$work/text"
result "a text given as a session is not written over" $?
# unsaved NAME PATTERN: the last run says once why the file is not written, answers, ends with 1; the old file stays.
unsaved() {
    [ "$code" = 1 ] && cmp -s "$work/out" "$work/third" && [ "$(grep -cE "^heddle: .*$2" "$work/err")" = 1 ] && unchanged
    result "$1" $?
}
heddle "${run[@]}" -p "Where is the warp wound, and when?" && cp "$work/out" "$work/third"
run+=(-p "Where is the warp wound, and when?" --session "$session")
(trap '' XFSZ && ulimit -f 1024 && heddle "${run[@]}" && exit "$code") # a disk that is full
code=$?
unsaved "a disk that is full" 'session.part: cannot be written: File too large'
flock "$session.part" "$HEDDLE" "${run[@]}" >"$work/out" 2>"$work/err" </dev/null
code=$?
rm "$session.part"
unsaved "a session that another run is writing" 'session: is being written by another process'
for plan in snapkv:keep=64 h2o:keep=64,window=32; do
    evicting=(run -m "$model" -f "$work/text" -n 2 --plan "$plan" --session "$work/evicting")
    rm -f "$work/evicting"
    heddle "${evicting[@]}" -p "What is wound on the beam?"
    ! grep -q "read again" "$work/err"
    result "$plan: a first run reads nothing again" $?
    heddle "${evicting[@]}" -p "Who sits down?"
    [ "$code" = 0 ] && grep -qE "^heddle: .*[0-9]+ tokens are read again: .* its plan evicts rows" "$work/err" && prefilled '[0-9]{3}'
    result "$plan: another question reads the document again, and says why" $?
done

run=(run -m "$gemma" --raw -f "$work/text" -n 40)
heddle "${run[@]}" -p "What is wound on the beam?" --session "$work/gemma"
heddle "${run[@]}" -p "Who sits down?" --session "$work/gemma"
[ "$code" = 0 ] && prefilled '1?[0-9]'
result "windowed layers go back behind an answer" $?
heddle run -m "$gemma" --raw -f "$work/text" -p "Who sits?" -p "Who winds?" -n 4 --session "$work/gemma"
[ "$code" = 0 ] && prefilled '1?[0-9]'
result "several questions begin from the file" $?
finish
