#!/usr/bin/env bash
# The program without a model: commands, options, files and plans that cannot be.
. "$(dirname "$0")/tap.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)

heddle
[ "$code" = 2 ] && [ ! -s "$work/out" ] && grep -q '^Commands' "$work/err"
result "no command: the overview on stderr" $?
says "help" '^  run ' help
says "--help" '^  run ' --help
says "--version" '^heddle [0-9]+\.[0-9]+\.[0-9]+$' --version
says "help run shows defaults" '--kv TYPE .*default: f16' help run
says "help says which plan files cannot be named" "no file's name can have a ';'" help bench depth
says "run --help" '--temp T ' run --help
for command in run inspect plans explain tokenize perplexity "bench depth" eval report; do
    # shellcheck disable=SC2086
    says "help $command" "^heddle $command" help $command
done

refused "unknown command" "unknown command 'fly'" fly
refused "misspelled command" "did you mean 'run'" rum
refused "half a command" "heddle bench depth" bench
refused "half a command: all that begin so" "'heddle bench depth', 'heddle bench calibrate'" bench
refused "an unknown second word is named" "unknown command 'plan bogus'; known: 'heddle plan search'" plan bogus
refused "a repeated option is not the last one" "explain: --plan is given twice" explain -m x --plan anchor --plan quest
refused "a letter and its name are one option" "run: --context is given twice" run -m x -c 5 --context=6
refused "an option for several values may be repeated" "/nosuch/a: .*No such file" \
    run -m x -p hello -f /nosuch/a -f /nosuch/b
refused "eval of no plan" "eval: --plans '' names no plan" eval -m x --plans ''
refused "eval of a separator alone" "eval: --plans ';' names no plan" eval -m x --plans ';'
refused "eval of a list that ends in a separator is read" "needle_text: these need a real text" \
    eval -m x --plans 'dense;' --tasks needle_text
refused "unknown option" "unknown option --zzzzzz" run --zzzzzz
refused "misspelled option names the closest" "did you mean --context" run --contxt 5
refused "unknown letter" "unknown option -Q" run -Q
refused "option without its value" "needs a value" run -m
refused "flag with a value" "takes no value" run --chat=yes
refused "--session in no folder: before anything is read" "/nosuch/x.kv: cannot be written: No such file" \
    run -m x -p hello --session /nosuch/x.kv
refused "--record in no folder" "/nosuch/x: cannot be written: No such file" run -m x -p hello --record /nosuch/x
refused "plan search -o in no folder" "/nosuch/x.json: cannot be written: No such file" \
    plan search -m x -f y -o /nosuch/x.json
refused "plan search with a budget of no bytes" "--budget-bytes 0: must be in 1" plan search -m x -f y --budget-bytes 0
refused "plan search with a budget of no time" "--budget-ms 0: must be in" plan search -m x -f y --budget-ms 0
refused "eval of tasks in a text, without one" "needle_text: these need a real text" eval -m x --plans dense --tasks needle_text
refused "eval of a RULER file that is not there" "ruler /nosuch/x.jsonl: cannot be read: No such file" \
    eval -m x --plans dense --tasks needle_noise --ruler /nosuch/x.jsonl
refused "eval of an empty RULER file" "ruler /dev/null: is empty" eval -m x --plans dense --tasks needle_noise --ruler /dev/null
# A file without an end took all memory there is. A program under a sanitizer reserves more than this limit (kB) to begin with.
if (ulimit -v 3000000 && "$HEDDLE" help) >"$work/out" 2>&1; then
    limit=$(ulimit -v)
    ulimit -S -v 3000000
    for words in "run -f" "eval --plans dense --out"; do
        # shellcheck disable=SC2086
        refused "$words of a file without an end" "/dev/zero: is larger than the limit of 1073741823 bytes" \
            ${words% *} -m "$top/models/warp-21m" "${words##* }" /dev/zero
    done
    "$HEDDLE" tokenize -m "$top/models/warp-21m" -f - </dev/zero >"$work/out" 2>"$work/err"
    code=$?
    [ "$code" = 2 ] && grep -q "standard input: is larger than the limit of" "$work/err"
    result "standard input without an end" $?
    ulimit -S -v "$limit"
fi
says "a pipe is read to its end" '^ +849  the' tokenize -m "$top/models/warp-21m" -f <(echo "the warp")
if [ -w /dev/full ]; then
    "$HEDDLE" help >/dev/full 2>"$work/err"
    code=$?
    [ "$code" = 1 ] && [ "$(grep -c 'cannot be written' "$work/err")" = 1 ]
    result "a full disk is told once" $?
fi
tiny=$(dirname "$0")/../golden/tiny/llama
for setting in HEDDLE_IMPL=bogus HEDDLE_IMPL=avx2,-nothing HEDDLE_DEVICE=cuda; do
    export "${setting?}"
    refused "$setting is not known" "${setting%%=*} \".*\": must be" inspect "$tiny"
    unset "${setting%%=*}"
done
for setting in HEDDLE_IMPL=generic HEDDLE_IMPL=ref HEDDLE_DEVICE=cpu HEDDLE_IMPL= HEDDLE_DEVICE=; do
    export "${setting?}"
    says "$setting is known" '^architecture +llama' inspect "$tiny"
    unset "${setting%%=*}"
done
cat >"$work/plan.json" <<'END'
{"heddle_plan": 1, "name": "other", "variants": [{"decode": [{"layers": [0, 77]}]}]}
END
refused "what the model refuses in a plan names the file" "plan $work/plan.json: .*layers\[1\] 77" \
    explain -m "$tiny" --plan "$work/plan.json"
refused "not a number" "must be a whole number" run -m x -c many
refused "number with a tail" "must be a whole number" run -m x -c 12x
refused "number out of bounds" "must be in 1\.\." run -m x -c 0
refused "negative temperature" "must be in 0\.\." run -m x --temp -1
refused "nan is no temperature" "must be a number" run -m x --temp nan
refused "stray word" "unexpected argument 'word'" run word
refused "nothing to answer" "nothing to answer" run -m x
refused "--special without --raw" "goes with --raw" run -m x -p hello --special
refused "no model" "no model is given" run -p hello
refused "no text to score" "no text is given" perplexity -m x
refused "no text to tokenise" "no text is given" tokenize -m x
refused "depths not ascending" "ascending" bench depth -m x --depths 5,4
refused "depths not numbers" "ascending" bench depth -m x --depths a

echo "some text" >"$work/text"
: >"$work/empty"
refused "missing document" "No such file" run -m x -f "$work/none"
refused "document is a folder" "is a folder" run -m x -f "$work"
refused "empty document" "is empty" run -m x -f "$work/empty"
refused "missing document comes before the model" "No such file" perplexity -m x -f "$work/none"
refused "stdin twice" "standard input" run -m x -f - -f - -p hello
refused "stdin for turns and document" "standard input" run -m x --chat -f -

refused "missing model" "No such file" run -m "$work/none.gguf" -p hello
refused "empty model" "empty.gguf|empty" run -m "$work/empty" -p hello
head -c 5000 /dev/urandom >"$work/noise.gguf"
refused "model is noise" "noise.gguf" run -m "$work/noise.gguf" -p hello
printf 'GGUF\003\000\000\000\377\377\377\377\377\377\377\177\377\377\377\377\377\377\377\177' >"$work/hostile.gguf"
refused "hostile header" "hostile.gguf" run -m "$work/hostile.gguf" -p hello
printf 'GGUF\003\000\000\000' >"$work/short.gguf"
refused "header cut short" "short.gguf" inspect "$work/short.gguf"
mkdir "$work/folder"
refused "folder without config.json" "config.json" inspect "$work/folder"

says "plans lists dense" '^dense ' plans
says "plans lists anchor" '^anchor ' plans
says "a plan as text" '"anchor"' explain --text --plan anchor
refused "unknown plan" "no-such-plan" run -m x -p hello --plan no-such-plan
printf '{\n "name": "p",\n oops\n}\n' >"$work/syntax.json"
refused "plan syntax: line and column" "syntax.json.*line 3" run -m x -p hello --plan "$work/syntax.json"
printf '{"name": "p", "colour": 1}' >"$work/member.json"
refused "plan with an unknown member" "colour" run -m x -p hello --plan "$work/member.json"
refused "plan change out of bounds" "top_k" run -m x -p hello --plan anchor:top_k=-5
refused "plan change of nothing" "zzz" run -m x -p hello --plan anchor:zzz=5
finish
