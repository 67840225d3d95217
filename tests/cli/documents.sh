#!/usr/bin/env bash
# encode, verify, run --mount, --record and --replay, with the model that ships with the repository.
. "$(dirname "$0")/tap.sh"
model=$(cd "$(dirname "$0")/../.." && pwd)/models/warp-21m
fact="The access code of the amber falcon is 48213."
question=$'Question: What is the access code of the amber falcon?\nAnswer: The access code of the amber falcon is'
{
    head -n 60 "$model/README.md"
    echo "$fact"
    head -n 40 "$model/samples.md"
} >"$work/a.txt"
head -n 80 "$model/samples.md" >"$work/b.txt"

for name in a b; do
    heddle encode -m "$model" "$work/$name.txt" -o "$work/$name.kv"
    [ "$code" = 0 ] && [ -s "$work/$name.kv" ] && [ ! -s "$work/out" ]
    result "encode $name" $?
done
says "verify" 'every checksum holds' verify "$work/a.kv" "$work/b.kv"

ask=(run -m "$model" -p "$question" -n 12 --stop $'\n')
says "a fact of a mounted document" '48213' "${ask[@]}" --mount "$work/b.kv" --mount "$work/a.kv"
says "in the other order, read densely" '48213' "${ask[@]}" --mount "$work/a.kv" --mount "$work/b.kv" --plan dense
heddle "${ask[@]}" --mount "$work/b.kv"
[ "$code" = 0 ] && ! grep -q 48213 "$work/out"
result "not without its document" $?
heddle "${ask[@]}" -p "$question" --mount "$work/a.kv"
[ "$code" = 0 ] && [ "$(grep -c 48213 "$work/out")" = 2 ]
result "two questions over one mount" $?

heddle "${ask[@]}" --mount "$work/b.kv" --mount "$work/a.kv" --never "$work/a.kv"
[ "$code" = 0 ] && ! grep -q 48213 "$work/out" && cp "$work/out" "$work/never"
result "--never: not from its document" $?
heddle verify "$work/a.kv"
n_a=$(sed -n 's/.*: \([0-9]*\) tokens,.*/\1/p' "$work/out")
heddle "${ask[@]}" --mount "$work/b.kv" --mount "$work/a.kv" --never "$work/a.kv:0-$((n_a - 1))"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/never"
result "--never: all its tokens as a range" $?
says "--never: another document's tokens" '48213' "${ask[@]}" --mount "$work/b.kv" --mount "$work/a.kv" \
    --never "$work/b.kv:10-99" --never 0-9
refused "--never: behind the document's end" "token $n_a: must be below $n_a" "${ask[@]}" \
    --mount "$work/a.kv" --never "$work/a.kv:5-$n_a"
refused "--never: a file that is not mounted" 'a file that --mount names' "${ask[@]}" --mount "$work/a.kv" \
    --never "$work/b.kv"
refused "--never: a range from its end" 'token 9 stands behind 5' "${ask[@]}" --mount "$work/a.kv" \
    --never "$work/a.kv:9-5"
refused "--never: a range that is none" 'a file that --mount names' "${ask[@]}" --mount "$work/a.kv" \
    --never "$work/a.kv:9-"
refused "--never without a mount" 'there is none' "${ask[@]}" --never 0-9

HEDDLE_IMPL=generic heddle encode -m "$model" "$work/a.txt" -o "$work/copy.kv"
[ "$code" = 0 ] && ! cmp -s "$work/a.kv" "$work/copy.kv"
result "other kernels give other rows" $?
refused "a document twice, its rows by other kernels" 'holds the document that' run -m "$model" -p x --mount "$work/a.kv" \
    --mount "$work/copy.kv"
cp "$work/a.kv" "$work/copy.kv"
refused "a document twice" 'holds the document that' "${ask[@]}" --mount "$work/a.kv" --mount "$work/copy.kv"
heddle "${ask[@]}" --mount "$work/b.kv" --mount "$work/a.kv" --never "$work/./a.kv"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/never"
result "--never: the file by another name of it" $?

heddle "${ask[@]}" --mount "$work/a.kv" --record "$work/lists" && cp "$work/out" "$work/first"
[ "$code" = 0 ] && grep -qE 'lists$' "$work/err" && [ -s "$work/lists" ]
result "lists are recorded" $?
heddle "${ask[@]}" --mount "$work/a.kv" --replay "$work/lists"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/first"
result "the answer is reproduced from them" $?
again=("${ask[@]}" --replay "$work/lists")
refused "replay: another prompt" 'recorded of another prompt' run -m "$model" -p "What else?" -n 12 \
    --mount "$work/a.kv" --replay "$work/lists"
refused "replay: another plan" 'under another wording of plan' "${again[@]}" --mount "$work/a.kv" --plan clsa:top_k=64
refused "replay: under dense" 'plan dense makes no list' "${again[@]}" --mount "$work/a.kv" --plan dense
refused "replay: no mount" 'over 1 mounted documents: the session has 0' "${again[@]}"
refused "replay: another mount" 'number 1 of 1' "${again[@]}" --mount "$work/b.kv"
refused "replay: tokens are forbidden" 'other tokens forbidden' "${again[@]}" --mount "$work/a.kv" --never 3-5
heddle "${again[@]}" --mount "$work/a.kv" --temp 50 --seed 3
[ "$code" = 0 ] && grep -q 'from here lists are made anew' "$work/err"
result "replay: another answer makes its own lists" $?
refused "record: under dense" 'plan dense makes no list' "${ask[@]}" --plan dense --record "$work/none"
refused "a document's file as lists" 'does not hold lists' "${ask[@]}" --replay "$work/a.kv"
refused "two questions and one record" 'go with one -p' "${ask[@]}" -p x --record "$work/lists"

refused "--record: a text in its place" 'is there and is no record of lists' "${ask[@]}" --record "$work/b.txt"
refused "encode: over its own text" 'no file of the kind that would replace it' encode -m "$model" "$work/b.txt" -o "$work/b.txt"
cmp -s "$work/b.txt" <(head -n 80 "$model/samples.md")
result "the text is what it was" $?
: >"$work/empty.txt"
refused "encode: an empty text" 'is empty' encode -m "$model" "$work/empty.txt" -o "$work/empty.kv"
refused "no output" '-o FILE.kv is missing' encode -m "$model" "$work/a.txt"
refused "no document" 'one document at a time' encode -m "$model" -o "$work/x.kv"
refused "a text as a document's file" 'does not hold' "${ask[@]}" --mount "$work/a.txt"
refused "another KV type" 'holds f16 rows; the session has i8 rows' "${ask[@]}" --mount "$work/a.kv" --kv i8
both=(--mount "$work/b.kv" --mount "$work/a.kv" --session "$work/s")
says "a session over mounts is written" '48213' "${ask[@]}" "${both[@]}"
[ "$(stat -c %s "$work/s")" -lt "$(stat -c %s "$work/a.kv")" ]
result "the documents' rows are not in it" $?
heddle "${ask[@]}" "${both[@]}"
[ "$code" = 0 ] && grep -q 48213 "$work/out" && grep -qE '^prefill 1 tokens' "$work/err"
result "the same question: one token is read" $?
heddle run -m "$model" -p "What else?" -n 12 --mount "$work/b.kv" --mount "$work/a.kv" && cp "$work/out" "$work/else"
heddle run -m "$model" -p "What else?" -n 12 "${both[@]}"
[ "$code" = 0 ] && cmp -s "$work/out" "$work/else" && grep -qE '^prefill [0-9]? tokens' "$work/err"
result "another question: the answer is that of a new session" $?
says "inspect: what must be mounted" '^mounted +2 documents' inspect "$work/s"
cp "$work/s" "$work/kept"
refused "a session over mounts: without them" 'over 2 mounted documents: the session has 0' "${ask[@]}" --session "$work/s"
refused "a session over mounts: in another order" 'number 1 of 2' "${ask[@]}" --session "$work/s" \
    --mount "$work/a.kv" --mount "$work/b.kv"
refused "a session over mounts: with others forbidden" 'other tokens forbidden' "${ask[@]}" "${both[@]}" --never 0-3
cmp -s "$work/s" "$work/kept"
result "a refused file is unchanged" $?
cp "$work/a.kv" "$work/flipped.kv"
heddle verify "$work/a.kv"
n_pages=$(sed -n 's/.*tokens, \([0-9]*\) pages.*/\1/p' "$work/out")
# half a page on: K and V of the first page, which every plan reads; the file's middle may be index keys, which dense does not
printf '\001' | dd of="$work/flipped.kv" bs=1 seek=$(($(stat -c %s "$work/a.kv") / n_pages / 2)) conv=notrunc 2>/dev/null
refused "verify: a flipped byte" 'checksum' verify "$work/flipped.kv"
heddle verify "$work/flipped.kv" "$work/b.kv"
[ "$code" = 2 ] && grep -q "^$work/b.kv: .* every checksum holds" "$work/out"
result "verify: the file behind a bad one is looked at too" $?
says "inspect: a document's file" '^kind +a document' inspect "$work/a.kv"
refused "inspect: lists" 'report --record' inspect "$work/lists"
refused "inspect: a flipped document" 'checksum' inspect "$work/flipped.kv"
heddle "${ask[@]}" --mount "$work/flipped.kv" --plan dense
[ "$code" = 2 ] && grep -q 'do not have their checksum' "$work/err"
result "reading a flipped page" $?
head -c 100000 "$work/a.kv" >"$work/cut.kv"
refused "a file cut short" 'its header says' verify "$work/cut.kv"
says "explain: an index of one query a token has no mean of heads" "the model's index \\(logit\\): top_k" explain -m "$model" --plan clsa
says "explain: how a tile's rows make one list" 'one for 64 rows \(their scores summed\)' explain -m "$model" --plan tiles
finish
