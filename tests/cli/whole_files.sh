#!/usr/bin/env bash
# What a command writes is a whole file, or the one that was there; a file of another kind is not replaced.
. "$(dirname "$0")/tap.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
model=$top/models/warp-21m
text=$top/tests/golden/llama/jargon.txt
results=$top/bench/results/plan-quality.csv
page='<!doctype html><p>old'

# kept NAME FILE: beside what the last command said, FILE is as it was and nothing lies beside it.
kept() {
    [ "$code" != 0 ] && cmp -s "$work/old" "$2" && [ ! -e "$2.part" ]
    result "$1" $?
}
# replaced NAME FILE: another name of the old file still has the old bytes, and nothing lies beside the new one.
replaced() {
    [ "$code" = 0 ] && cmp -s "$work/old" "$work/link" && [ -s "$2" ] && ! cmp -s "$work/old" "$2" && [ ! -e "$2.part" ]
    result "$1" $?
}
# old_file FILE [FORMAT]: FILE and link are two names of one file, old is a copy.
old_file() {
    rm -f "$work/link" "$1"
    printf '%b' "${2:-$page}" | tee "$work/old" >"$1"
    ln "$1" "$work/link"
}
# What may write at most 1 KiB to a file: a disk that is full.
full_disk() {
    (
        trap '' XFSZ
        ulimit -f 1
        timeout 300 "$HEDDLE" "$@" >/dev/null 2>/dev/null </dev/null
    )
    code=$?
}

score=(perplexity -m "$model" -f "$text" -c 288 --chunks 1)
steps=(bench depth -m "$model" --depths 0,64 --tokens 1 --plans dense)
old_file "$work/page.html"
full_disk report "$results" -o "$work/page.html"
kept "a page for which there is no room" "$work/page.html"
heddle report "$results" -o "$work/page.html"
replaced "a page takes an old one's place" "$work/page.html"
heddle report "$results" -o -
cmp -s "$work/out" "$work/page.html"
result "the page on standard output is the same" $?

printf 'figures\nof a day\n' >"$work/old"
cp "$work/old" "$work/figures.csv"
refused "a page over something else" 'figures.csv: is there and is no page' report "$results" -o "$work/figures.csv"
kept "which stays" "$work/figures.csv"
refused "a page in no folder" 'cannot be written: No such file' report "$results" -o "$work/none/page.html"

old_file "$work/losses" '\0\0\0300\0177\0\0\0200\077' # NaN, 1.0
full_disk "${score[@]}" --nll "$work/losses"
kept "losses for which there is no room" "$work/losses"
heddle "${score[@]}" --nll "$work/losses" --from 600
kept "losses of rows that are not there" "$work/losses"
heddle "${score[@]}" --nll "$work/losses"
replaced "losses take the old ones' place" "$work/losses"
[ "$(stat -c %s "$work/losses")" = 1152 ]
result "288 rows of float32" $?
cp "$text" "$work/text"
refused "losses over the text" 'text: is the text that is read: name another' \
    perplexity -m "$model" -f "$work/text" -c 288 --chunks 1 --nll "$work/text"
for words in 'figures of a day' '10 20 30 40 50 ' "$page"; do
    printf '%s' "$words" | tee "$work/old" >"$work/words"
    refused "losses over '$words'" 'words: is there and is no file of losses' "${score[@]}" --nll "$work/words"
    kept "which stay" "$work/words"
done
refused "losses in no folder" 'cannot be written: No such file' "${score[@]}" --nll "$work/none/losses"

cp "$text" "$work/old" && cp "$text" "$work/words"
refused "figures over something else" 'words: is there and is no CSV of bench depth' "${steps[@]}" --csv "$work/words"
kept "which stays" "$work/words"
refused "prices over something else" 'words: is there and is no cost model' \
    bench calibrate -m "$model" --depth 512 --tokens 4 -o "$work/words"
kept "which stays" "$work/words"
refused "a plan over something else" 'words: is there and is no plan file' \
    plan search -m "$model" -f "$text" -c 256 --rows 32 --by mass -o "$work/words"
kept "which stays" "$work/words"
old_file "$work/steps.csv" '# heddle 0.1.0, model x, KV f16, 1 threads, avx2\n'
heddle "${steps[@]}" --csv "$work/steps.csv"
replaced "figures take the old ones' place" "$work/steps.csv"
finish
