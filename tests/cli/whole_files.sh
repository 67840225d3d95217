#!/usr/bin/env bash
# report -o, perplexity --nll and bench depth --csv leave a whole file, or the one that was there.
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
# old_file FILE: FILE and link are two names of one file, old is a copy.
old_file() {
    rm -f "$work/link" "$1"
    printf '%s' "$page" | tee "$work/old" >"$1"
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

old_file "$work/losses"
full_disk "${score[@]}" --nll "$work/losses"
kept "losses for which there is no room" "$work/losses"
heddle "${score[@]}" --nll "$work/losses" --from 600
kept "losses of rows that are not there" "$work/losses"
heddle "${score[@]}" --nll "$work/losses"
replaced "losses take the old ones' place" "$work/losses"
[ "$(stat -c %s "$work/losses")" = 1152 ]
result "288 rows of float32" $?
refused "losses in no folder" 'cannot be written: No such file' "${score[@]}" --nll "$work/none/losses"

old_file "$work/steps.csv"
heddle "${steps[@]}" --csv "$work/steps.csv"
replaced "figures take the old ones' place" "$work/steps.csv"
finish
