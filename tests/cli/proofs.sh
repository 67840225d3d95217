#!/usr/bin/env bash
# The tools of tests/proofs: what a plan's figures may be set against.
. "$(dirname "$0")/tap.sh"
proofs=$(cd "$(dirname "$0")/../proofs" && pwd)

# A program that scores: losses of 8,192 tokens that name the plan, the window's larger at places.
cat >"$work/program" <<'PY'
#!/usr/bin/env python3
import array, sys
at = {name: sys.argv[sys.argv.index(name) + 1] for name in ("--plan", "--nll", "-f")}
loss = {"dense": 2.0, "window512": 2.5, "keys4": 2.1, "anchor": 2.2}[at["--plan"]]
open(at["--nll"], "wb").write(array.array("f", [loss + (at["--plan"] == "window512") * (i % 7 == 0) for i in range(8192)]).tobytes())
print("reads 50.0 %", file=sys.stderr)
PY
chmod +x "$work/program"
mkdir "$work/texts" "$work/results"
for text in prose code lexicon; do echo "$text" >"$work/texts/$text-0.txt"; done
quality() { # ARGS...: of documents and a table of this test
    HEDDLE=$work/program timeout 100 "$proofs/plan_quality.py" --results "$work/results" --texts "$work/texts" --models smollm2 \
        --documents 1 --no-behaviour "$@" >"$work/out" 2>"$work/err"
    code=$?
}
table=$work/results/plan-quality.csv
fields() { # NUMBER PLAN: field NUMBER of the plan's rows, each value once
    grep ",$2," "$table" | cut -d, -f"$1" | sort -u
}

quality keys4
host=$(fields 12 keys4) first=$(fields 13 keys4)
[ -n "$host" ] && [ -n "$first" ] && [ "$(fields 13 dense)$(fields 12 dense)" = "$first$host" ] &&
    [ "$(fields 13 window512)" = "$first" ] && [ "$(wc -l <"$table")" = 10 ] && grep -q '`keys4` | 50.0 % | +10.52 %' "$work/results/plan-quality.md"
result "a run measures dense and window512 beside a plan and names itself and its host" $?
quality keys4
[ "$(wc -l <"$table")" = 10 ]
result "what has its rows is not measured again" $?
quality anchor
second=$(fields 13 anchor)
[ -n "$second" ] && [ "$second" != "$first" ] && [ "$(fields 13 dense | wc -l)" = 2 ] && [ "$(grep -c ",dense,.*$second" "$table")" = 3 ]
result "a later run measures them again" $?
for text in prose code lexicon; do echo "$text again" >"$work/texts/$text-1.txt"; done
cp "$table" "$work/whole"
quality --documents 2 keys4
[ "$(grep -c ',keys4,' "$table")" = 6 ] && grep -q '`keys4` | 50.0 % .* | 1 |$' "$work/results/plan-quality.md"
result "documents of two runs do not make one line" $?
cp "$work/whole" "$table"
sed -i '/,dense,.*'"$second"'/s/,2.000000,2.000000,/,2.200000,2.200000,/' "$table"
quality keys4
grep -q '`keys4` | 50.0 % | +10.52 %' "$work/results/plan-quality.md" && grep -q '`anchor` | 50.0 % | +0.00 %' "$work/results/plan-quality.md"
result "a plan is set against dense of its own run" $?
for change in "s/$second/another/" "s/,[^,]*,$second/,another processor,$second/" d; do
    cp "$work/whole" "$table"
    sed -i "/,dense,.*$second/$change" "$table"
    quality anchor
    [ "$code" = 1 ] && grep -q "^refused: anchor on smollm2, prose 0: its run ($second, .* has no row of dense" "$work/out"
    result "not against that of another run or host, nor of none: ${change//$second/RUN}" $?
done
sed 's/^\(.*,dense,.*\),[^,]*$/\1,another/' "$work/whole" >"$table"
"$HEDDLE" report "$work/whole" -o "$work/whole.html" >"$work/out" 2>"$work/err" &&
    "$HEDDLE" report "$table" -o "$work/other.html" >"$work/out" 2>"$work/err" &&
    grep -q '</i>anchor</th><td>0\.6' "$work/whole.html" && ! grep -q '</i>anchor</th><td>0\.6' "$work/other.html"
result "nor does a page of 'heddle report'" $?
# Speeds: rows that could be set against dense of another run or host.
cat >"$work/speeds.py" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
from plan_speed import bad_runs, load
def rows(*plans, **of):
    return [{"plan": plan, "depth": "32768", "host": "one", "run": "a", **of} for plan in plans]
def why(*some):
    return "; ".join(bad_runs([row for part in some for row in part]))
assert not why(rows("dense", "anchor", "dense"), rows("dense", "keys4", "dense", run="b", host="two"))
assert why(rows("dense", "anchor"), rows("dense", "keys4", "dense", run="b")) == "run a at 32768 tokens: does not begin and end with dense"
assert "run b at" in why(rows("dense", "anchor", "dense"), rows("keys4", "dense", run="b"))
assert "does not begin" in why(rows("dense"))
assert "names no run" in why(rows("dense", "anchor", "dense", run=""))
assert why(rows("dense", "anchor"), rows("dense", host="two")) == "run a: is of 2 hosts: one, two"
assert not list(bad_runs(load()))
PY
PYTHONDONTWRITEBYTECODE=1 python3 "$work/speeds.py" "$proofs" >"$work/out" 2>"$work/err"
result "each run of speeds is of one host and begins and ends with dense; the committed ones" $?
PYTHONPATH=$proofs python3 - >"$work/out" 2>"$work/err" <<'PY'
from intervals import bootstrap, unexpected, verdict
from task_quality import in_points
some = [(right, 10) for right in (-1, 0, 0, 0, 0, 0, 0, 0, 0, 1)]
(low, high), = bootstrap(some, in_points)
assert bootstrap(some, in_points) == [(low, high)] and -6 <= low < 0 < high <= 6 and bootstrap(some[:1], in_points) is None
assert bootstrap([(1, 10), (1, 10)], in_points) == [(10, 10)]
assert verdict(-1, (-3, 0), -2, True) == "met, but the interval straddles it" and verdict(-1, (-1.5, 0), -2, True) == "holds"
assert verdict(1.2, (0.8, 1.5), 1, False) == "DOES NOT HOLD, and the interval straddles it" and verdict(1.2, None, 1, False) == "DOES NOT HOLD"
assert not unexpected({"a": "holds", "b": "DOES NOT HOLD"}, ["b"]) and unexpected({"a": "DOES NOT HOLD"}, []) and unexpected({"a": "holds"}, ["a"])
PY
code=$?
result "an interval is by document, and a bound that it straddles is said to be so" $code
finish
