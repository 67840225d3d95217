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
cp "$work/one.json" "$work/old.json" && ln "$work/old.json" "$work/kept.json" && chmod 640 "$work/old.json"
heddle plan search -m "$gemma" -f "$text" -c 400 --rows 32 --lists 1 --fit-top-k 32 --score key_i4 --name new -o "$work/old.json"
[ "$code" = 0 ] && grep -q '"name": "new"' "$work/old.json" && cmp -s "$work/one.json" "$work/kept.json" &&
    [ "$(stat -c %a "$work/old.json")" = 640 ] && [ ! -e "$work/old.json.part" ]
result "the new file takes the old one's place, which nothing was written into" $?
heddle plan search -m "$model" -f "$text" -c 400 --rows 16 --lists 4 --fit-top-k 16 --by heads -o "$work/heads.json"
[ "$code" = 0 ] && grep -q '"head_map"' "$work/heads.json"
result "head maps are written" $?
says "and taken" 'heads mapped' explain -m "$model" --plan "$work/heads.json"
refused "no text" 'no text is given' plan search -m "$model"
refused "as many lists as layers" 'must be fewer' plan search -m "$gemma" -f "$text" -c 400 --rows 32 --lists 3
for score in best block_mean index; do
    refused "the score $score" "score $score: must be attention_mass, key_i8, key_i4, key_pq2 or key_pq4: .*single tokens" \
        plan search -m "$model" -f "$text" --score "$score"
done
heddle plan search -m "$gemma" -f "$text" -c 400 --rows 16 --lists 1 --fit-top-k 32 --score key_pq4 -o "$work/codes.json"
[ "$code" = 0 ]
says "a search for coded keys, and its plan is taken" 'makes a list by product-quantised keys, 1 bit' explain -m "$gemma" --plan "$work/codes.json"
cp "$text" "$work/again"
refused "a text that is judged on and fitted on" 'check .*again: its 400 tokens are those of -f .*jargon.txt, which are fitted on' \
    plan search -m "$gemma" -f "$text" --check "$work/again" -c 400 --rows 16 --lists 1
refused "a text that is too short" 'at least twice --rows' plan search -m "$model" -f "$text" -c 400 --rows 256

heddle bench calibrate -m "$gemma" --depth 512 --tokens 4 -o "$work/cost.json"
[ "$code" = 0 ] && grep -q '"dense_ms_per_mb"' "$work/cost.json" && [ "$(grep -c '"depth"' "$work/cost.json")" = 36 ]
result "nine probes at four depths give a cost model" $?
# a model whose prices are known, so that what fits does not hang on this host
sed -E 's/("(dense|listed|summary)_ms_per_mb"): [^,]*/\1: 1.0/; s/("step_ms"): [^,]*/\1: 0.0/; s/("select_ms_per_million"): [^,]*/\1: 0.0/' \
    "$work/cost.json" >"$work/plain.json"
search=(plan search -m "$gemma" -f "$text" -c 400 --rows 32 --lists 1 --fit-top-k 32 --score key_i4 --at 4K)
heddle "${search[@]}" --cost "$work/plain.json" --budget-ms 10 -o "$work/budget.json"
[ "$code" = 0 ] && grep -q '1 lists within the budget: top_k 384, ' "$work/err"
result "a budget of 10 ms where a million bytes take one: top_k 384" $?
heddle "${search[@]}" --budget-bytes 10000000 -o "$work/bytes.json"
[ "$code" = 0 ] && grep -q '1 lists within the budget: top_k 384, ' "$work/err" && grep -q 'measured: ' "$work/err"
result "and so for a budget of ten million bytes; what a step takes is measured" $?
top_k_of() { grep -o '1 lists within the budget: top_k [0-9]*' "$work/err" | grep -o '[0-9]*$'; }
heddle "${search[@]}" --budget-bytes 9000000 -o "$work/fewer.json" && fewer=$(top_k_of)
heddle "${search[@]}" --cost "$work/plain.json" --budget-ms 10 --budget-bytes 9000000 -o "$work/both.json" && both=$(top_k_of)
heddle "${search[@]}" --cost "$work/plain.json" --budget-ms 9 --budget-bytes 10000000 -o "$work/both.json"
[ "$code" = 0 ] && [ "${fewer:-0}" -gt 0 ] && [ "$fewer" -lt 384 ] && [ "$both" = "$fewer" ] && [ "$(top_k_of)" = "$fewer" ]
result "of two budgets the tighter one decides, whichever it is" $?
grep -q '"dense_below": [1-9]' "$work/budget.json"
result "the crossover with dense is in the plan" $?
says "and the plan is taken" 'makes a list by 4-bit keys' explain -m "$gemma" --plan "$work/budget.json"
heddle "${search[@]}" --cost "$work/plain.json" -o "$work/priced.json" # it had printed prices and written 0
[ "$code" = 0 ] && grep -q '"dense_below": [1-9]' "$work/priced.json" && grep -q 'below that dense is no slower' "$work/err"
result "and where prices come without a budget" $?
refused "a budget that nothing fits" 'no plan is within the budget: 1 lists and top_k 32 take 8\.[0-9]+ MB' \
    "${search[@]}" --budget-bytes 2000000
refused "a budget in ms without prices" '\-\-budget-ms needs --cost' "${search[@]}" --budget-ms 5
refused "prices of another model" 'was measured with model' plan search -m "$model" -f "$text" --cost "$work/plain.json"
refused "a plan for prices" 'is no cost model' "${search[@]}" --cost "$work/one.json"
sed 's/"step_ms": 0.0/"step_ms": -1.0/' "$work/plain.json" >"$work/minus.json"
refused "a price below zero" 'terms.step_ms: must be a number of 0 or more' "${search[@]}" --cost "$work/minus.json"

heddle plan search -m "$model" -f "$text" -c 400 --rows 16 --lists 4 --fit-top-k 16 --by hylra --score key_i4 -o "$work/hylra.json"
[ "$code" = 0 ] && grep -q '"head_map": \[0, 1, 2\]' "$work/hylra.json" && grep -q 'by overlap (HyLRA)' "$work/err"
result "lists reused by overlap" $?
says "and taken" 'dense' explain -m "$model" --plan "$work/hylra.json"

# tokens of all lists of a plan by heads, every layer counted as often as its rule names it
sum_of_heads() {
    awk '/"layers"/ { n = gsub(/[0-9]+/, "&") } /"head_top_k"/ { sub(/.*head_top_k": \[/, ""); sub(/\].*/, "")
        k = split($0, of, ", "); for (i = 1; i <= k; i++) sum += n * of[i] } END { print sum }' "$1"
}
by_head=(plan search -m "$model" -f "$text" -c 400 --rows 16 --window 32 --fit-top-k 32)
heddle "${by_head[@]}" --by budgets --score key_i4 --top-k 96 -o "$work/budgets.json"
[ "$code" = 0 ] && [ "$(sum_of_heads "$work/budgets.json")" = $((90 * 96)) ]
result "budgets by head: 96 tokens in the mean over 90 heads" $?
[ "$(grep -o '"head_top_k": \[[^]]*\]' "$work/budgets.json" | sort -u | wc -l)" -gt 5 ]
result "and not the same for every head" $?
says "and taken" 'top_k [0-9]*, [0-9]*, [0-9]* by KV head' explain -m "$model" --plan "$work/budgets.json"
heddle "${by_head[@]}" --by budgets --score key_i4 --top-k 96 --list-layers 0,7,8,17,20,29 -o "$work/shared.json"
[ "$code" = 0 ] && [ "$(grep -c '"share": [0-9]*, "head_map": ' "$work/shared.json")" = 24 ] &&
    grep -q '6 layers. lists for each KV head' "$work/shared.json" && grep -q 'one list for all heads' "$work/err"
result "budgets of six layers' heads, whose lists the others read" $?
# a list's tokens count for its own layer and for each head whose map names it
spent=$(sed 's/[][,:{}]/ /g' "$work/shared.json" | awk '
    /"share"/ { for (i = 1; $i != "\"share\""; i++); owner = $(i + 1); for (h = 0; h < 3; h++) readers[owner, $(i + 3 + h)]++; next }
    /"layers"/ { n = 0; for (i = 2; $i ~ /^[0-9]+$/; i++) made[n++] = $i }
    /"head_top_k"/ { for (i = 1; $i != "\"head_top_k\""; i++); for (j = 0; j < n; j++) for (h = 0; h < 3; h++) { top_k[made[j], h] = $(i + 1 + h); readers[made[j], h]++ } }
    END { for (list in top_k) sum += readers[list] * top_k[list]; print sum }')
[ "$spent" -le $((90 * 96)) ] && [ "$spent" -gt $((90 * 96 - 27 * 32)) ]
result "96 tokens in the mean over all layers that read ($spent)" $?
says "and taken" 'token_list of layer 8' explain -m "$model" --plan "$work/shared.json"
for method in budgets duo; do
    refused "a number of lists by $method" "\-\-lists goes not with --by $method" \
        "${by_head[@]}" --by "$method" --score key_i4 --full-heads 1 --lists 5
done
refused "list layers of another method" 'list-layers goes with --by budgets' "${by_head[@]}" --list-layers 0,3
refused "list layers without the first" 'layer 0 must be the first of them' "${by_head[@]}" --by budgets --score key_i4 --list-layers 3,7
refused "list layers out of order" 'layer 3 does not come after' "${by_head[@]}" --by budgets --score key_i4 --list-layers 0,7,3
refused "a list layer that is none" 'layer 30 is none that can make a list' "${by_head[@]}" --by budgets --score key_i4 --list-layers 0,30
refused "list layers that are no numbers" 'must be layer numbers with commas' "${by_head[@]}" --by budgets --score key_i4 --list-layers 0,x
few=(plan search -m "$gemma" -f "$text" -c 400 --rows 32 --window 32 --fit-top-k 32) # three open layers of one KV head
heddle "${few[@]}" --by budgets --score key_i4 --budget-bytes 10000000 --at 4K -o "$work/fits.json"
[ "$code" = 0 ] && [ "$(sum_of_heads "$work/fits.json")" -gt 0 ] && grep -q 'expected [89]\.[0-9]* MB a step' "$work/err"
result "under a budget of bytes" $?
heddle "${few[@]}" --by duo --full-heads 1 -o "$work/duo.json"
[ "$code" = 0 ] && [ "$(grep -c '"operator": "dense"' "$work/duo.json")" = 1 ] && grep -q '1 of 3 KV heads read everything' "$work/duo.json" &&
    grep -q 'as many, at random' "$work/err"
result "a head that reads everything, beside one at random" $?
says "and taken" 'top_k 0 by KV head' explain -m "$gemma" --plan "$work/duo.json"
refused "budgets without a score" 'needs --score key_i8, key_i4' "${by_head[@]}" --by budgets
refused "duo without a number of heads" 'needs --full-heads N, --budget-ms MS or --budget-bytes N' "${by_head[@]}" --by duo
refused "heads of another method" 'full-heads goes with --by duo' "${by_head[@]}" --full-heads 3
refused "more heads than there are" 'must be fewer than all' "${by_head[@]}" --by duo --full-heads 90
# one of three heads that reads everything of 4K: what fits when two do not
full_heads() { grep -o '[0-9] of 3 KV heads read everything' "$work/duo.json" | head -c 1; }
for budget in 13000000:1 1000000000:3; do
    heddle "${few[@]}" --by duo --budget-bytes "${budget%:*}" --at 4K -o "$work/duo.json"
    [ "$code" = 0 ] && echo "# $(full_heads) heads: $(grep 'the plan after 4096' "$work/err")" && [ "$(full_heads)" = "${budget#*:}" ]
    result "heads under a budget of ${budget%:*} bytes" $?
done
heddle "${few[@]}" --by duo --budget-bytes 1000000000 --full-heads 2 --at 4K -o "$work/duo.json"
[ "$code" = 0 ] && [ "$(full_heads)" = 2 ]
result "of a budget and a number of heads both hold" $?
refused "a budget that no heads fit" 'no plan is within the budget: sinks and window of all 3 heads take [0-9.]+ MB after 4096' \
    "${few[@]}" --by duo --budget-bytes 1000 --at 4K
refused "a method that is none" 'must be loss, mass, heads, hylra, budgets or duo' "${by_head[@]}" --by magic
refused "a name that breaks the file" 'has character 34 at byte 1; must have no control character' "${by_head[@]}" --name 'a"b'
refused "a name of two lines" 'has character 10 at byte 1' "${by_head[@]}" --name $'a\nb' # the plan could not be read
refused "a name that is no text" 'must be UTF-8' "${by_head[@]}" --name $'a\xff'
refused "no name" 'has 0 bytes; must have 1..64' "${by_head[@]}" --name ''
refused "a name of 65 bytes" 'has 65 bytes; must have 1..64' "${by_head[@]}" --name "$(printf 'x%.0s' {1..65})"
refused "a plan for no context" '\-\-at 0: must be in 1' "${few[@]}" --at 0
refused "a context for no budget and no price" '\-\-at goes with --budget-ms MS, --budget-bytes N or --cost FILE' "${few[@]}" --at 4K
heddle plan search -m "$gemma" -f "$text" -c 400 --rows 16 --lists 1 --fit-top-k 32 --by mass -o "$work/mass.json"
[ "$code" = 0 ] && grep -q '^fitted in [0-9]* s, 0 evaluations$' "$work/err" && grep -q 'plan search: 0 evaluations of 16 rows' "$work/mass.json"
result "the evaluations of a plan are those that found it, and what is said" $?
refused "a folder that is not there" 'cannot be written: No such file' "${by_head[@]}" -o "$work/none/plan.json"
finish
