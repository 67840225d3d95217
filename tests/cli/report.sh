#!/usr/bin/env bash
# The report: refusals, a page that needs nothing else, and how a browser lays it out.
. "$(dirname "$0")/tap.sh"
top=$(cd "$(dirname "$0")/../.." && pwd)
results=$top/tests/golden/report/results.jsonl
speeds=$top/bench/results/2026-11-26-emerald-rapids-ours-f16.csv

refused "no results" "no results are given" report
refused "a missing file" "No such file" report "$work/none"
: >"$work/empty"
refused "an empty file" "is empty" report "$work/empty"
echo "some text" >"$work/text"
refused "a text" "neither a result" report "$work/text"
echo '{"what":"task"' >"$work/broken"
echo 'more' >>"$work/broken"
refused "a broken result" "line 1 is no result" report "$work/broken"
printf '{"what":"task"' >"$work/cut"
refused "one line that was cut" "report: the files hold no whole result" report "$work/cut"
printf 'plan,depth\n"dense",1\n' >"$work/short.csv"
refused "a CSV of something else" "line 2 is no row" report "$work/short.csv"

quality=$top/bench/results/plan-quality.csv steps=$top/bench/results/plan-speed.csv
prompts=$top/bench/results/prefill-quality.csv evictions=$top/bench/results/eviction-quality.csv
heddle report "$quality" "$prompts" "$evictions" "$steps" -o "$work/methods.html"
[ "$code" = 0 ] && [ "$(grep -o '<td>[^<]*<small>at 32K' "$work/methods.html" | wc -l)" -ge 18 ]
result "quality and steps of 18 methods and more, one card" $?
grep -q "times dense's speed there" "$work/methods.html" && grep -q "dense's perplexity over" "$work/methods.html"
result "frontiers of perplexity and of speed over dense" $?
python3 - "$quality" "$work/methods.html" "$steps" >"$work/out" 2>"$work/err" <<'PY'
import csv, math, re, statistics, sys
def read(path):
    return [r for r in csv.DictReader(line for line in open(path) if not line.startswith("#")) if r["model"] == "smollm2"]
rows, steps = read(sys.argv[1]), read(sys.argv[3])
of = {(r["plan"], r["text"], r["doc"], r["run"]): float(r["quarter"]) for r in rows}
docs = sorted(key[1:] for key in of if key[0] == "anchor" and ("dense", *key[1:]) in of)
runs = [doc[2] for doc in docs]
run = max(runs, key=lambda run: (runs.count(run), run))  # the run with most documents, the newest of several
docs = [doc for doc in docs if doc[2] == run]
total = {plan: sum(of[(plan, *doc)] for doc in docs) for plan in ("dense", "anchor", "window512")}
r = (total["window512"] - total["anchor"]) / (total["window512"] - total["dense"])
lost = {text: [of[("anchor", *doc)] - of[("dense", *doc)] for doc in docs if doc[0] == text] for text, *_ in docs}
worst = max(sum(some) / len(some) for some in lost.values())
page = open(sys.argv[2]).read().splitlines()
def cells_of(plan):
    return re.findall(r"<td[^>]*>(.*?)</td>", next(line for line in page if f"</i>{plan}</th><td" in line))
cells = cells_of("anchor")
print(cells, r, worst)
assert cells[0].split("<")[0] == f"{r:.3f}" and cells[3] == f"{100 * math.expm1(worst):+.2f}"
runs = {s["plan"]: s["run"] for s in steps}
assert runs["anchor"] != runs["duo"]
for plan in ("anchor", "layered4", "minference", "duo"):
    own = [s for s in steps if s["run"] == runs[plan]]
    dense = statistics.median(float(s["step_ms"]) for s in own if s["plan"] == "dense")
    assert cells_of(plan)[-2] == f"{dense / next(float(s['step_ms']) for s in own if s['plan'] == plan):.2f}", (plan, cells_of(plan))
PY
code=$?
result "their R, perplexity and speed are the files' figures" $code
python3 - "$work/methods.html" "$quality" "$steps" "$prompts" "$evictions" "$top/plans" >"$work/out" 2>"$work/err" <<'PY'
import csv, math, os, re, sys
page = open(sys.argv[1]).read().split('<h1 class="model">')[1]
def read(path):
    return list(csv.DictReader(line for line in open(path) if not line.startswith("#")))
def cells(section, plan, second=""):
    rows = re.search(f"<h2>{section}.*?</section>", page, re.S).group(0).splitlines()
    return re.findall(r"<td>(.*?)</td>", next(line for line in rows if f"</i>{plan}</th><td>{second}" in line))
shown = set(re.findall(r'</i>([^<]*)</th>', page))
files = [read(path) for path in sys.argv[2:6]]
missing = {r["plan"] for rows in files for r in rows if r.get("model", "smollm2") == "smollm2"} - {s.split(":keep")[0] for s in shown}
plans = {name[:-5] for name in os.listdir(sys.argv[6])} - {s.split(":")[0] for s in shown}
print("missing", missing, "not of this model", plans)
assert not missing and plans <= {"clsa", "clsa_blocks", "clsa_pools", "distilled"}
base = {(r["plan"], r["doc_sha256"], r.get("run") or ""): float(r["quarter"]) for r in files[0] + files[2] if r.get("part", "all") == "all" and r.get("model", "smollm2") == "smollm2"}
for part, name in (("prompt", "the prompt"), ("both", "all")):
    own = [r for r in files[2] if r["plan"] == "tiles" and r["part"] == part]
    dense, window = (sum(base[p, r["doc_sha256"], r.get("run") or ""] for r in own) / len(own) for p in ("dense", "window512"))
    mean = sum(float(r["quarter"]) for r in own) / len(own)
    row = cells("Prompts read by lists", "tiles", name + "<")
    print(row)
    assert row[1].startswith(f"{(window - mean) / (window - dense):.3f}") and row[3].startswith(f"{100 * math.expm1(mean - dense):+.2f}") and row[5] == str(len(own))
for r in files[3]:
    row = cells("Rows evicted", r["plan"] + (f":keep={r['keep']}" if r["keep"] else ""))
    assert abs(float(row[0]) - float(r["loss"])) < 6e-4 and row[2] == r["kv_percent"], (r, row)
    assert not r["low95"] or f"{float(r['minus_dense']):+.3f}<br><small>" in row[1], (r, row)
assert [p for p in re.findall(r"</i>(h2o:[^<]*)<", page)] == [f"h2o:keep={keep}" for keep in (512, 1024, 2048)]
assert all(f'<tr class="quiet"><th scope="row"><i class="key control0"></i>recent:keep={keep}<' in page for keep in (512, 1024, 2048))
PY
code=$?
result "every plan that was measured has a row, with its own measure" $code
sed 's/,both,[0-9.]*/,both,/' "$prompts" >"$work/broken.csv"
refused "a prompt's row without its loss" "is no row of" report "$work/broken.csv"
sed 's/,384,[0-9.]*/,384,/' "$evictions" >"$work/broken.csv"
refused "an eviction's row without its loss" "is no row of" report "$work/broken.csv"
# Where labels lie, by their places and an upper bound of a letter's width; every point has its name, and those of the
# frontier (filled) and of controls are written.
python3 - "$work/methods.html" >"$work/out" 2>"$work/err" <<'PY'
import re, sys
n = over = 0
charts = [svg for svg in re.findall(r"<svg.*?</svg>", open(sys.argv[1]).read(), re.S) if "frontier" in svg]
assert len(charts) >= 4
for number, svg in enumerate(charts):
    dots = re.findall(r'<(?:circle|path)[^>]* class="dot ([^"]*)"><title>([^<]*): [-\d.]+(?: %)?; [-\d.]+(?: %)?</title>', svg)
    must = {name for kind, name in dots if "open" not in kind or "control" in kind}
    written = set(re.findall(r'class="label[^"]*">([^< ]*)', svg))
    print(len(dots), "points,", len(written), "written, unwritten:", must - written)
    assert len(dots) == svg.count('class="dot ') and len(dots) > (25 if number < 4 else 2) and len(must) > 2 and must <= written <= {name for _, name in dots}
    boxes = []
    for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start" class="label[^"]*">([^<]*)</text>', svg):
        x, y, text = float(x), float(y), re.sub(r"&\w+;", "&", text)
        boxes.append((x, y - 11.5, x + 7.6 * len(text), y + 3.5, text))
    n += len(boxes)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            if min(a[2], b[2]) - max(a[0], b[0]) > 0.1 and min(a[3], b[3]) - max(a[1], b[1]) > 0.1:
                over += 1
                print(f"{a[4]} lies over {b[4]}")
print(n, "labels")
assert n > 60 and not over
PY
code=$?
result "every point is named, and no label lies over another" $code
python3 - "$work/methods.html" >"$work/out" 2>"$work/err" <<'PY'
import re, sys
page = open(sys.argv[1]).read().split('<h1 class="model">')[1]
charts = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.S) if "R of the worst text" in svg]
worst = dict(re.findall(r"</i>([^<]*)</th><td>[-\d.]+(?:<br><small>[^<]*</small>)?</td><td>([-\d.]+)</td>", page))
points = [dict(re.findall(r'class="dot [^"]*"><title>([^<]*): [-\d.]+(?: %)?; ([-\d.]+)', svg)) for svg in charts]
print(worst, points)
assert len(points) == 2 and all(len(of) > 25 for of in points)
assert all(abs(float(y) - float(worst[name])) < 6e-4 for of in points for name, y in of.items())
PY
code=$?
result "R in the picture is that of the worst text" $code
grep -q 'Every figure is from plan-quality.csv, prefill-quality.csv, eviction-quality.csv and plan-speed.csv' "$work/methods.html"
result "the page names its files" $?
grep -q '<th>over dense</th>' "$work/methods.html" && ! grep -qE '<th>(tasks, mean|agreement, %)</th>' "$work/methods.html"
result "what no plan has, has no column" $?
grep -q '</i>tiles</th><td colspan="5"><small>reads prompts by lists: see below</small></td><td>7.0 <small>at 32K</small></td>' "$work/methods.html"
result "a share at another length says so" $?
# A plan that two runs measured: rows of one, and each document once.
python3 - >"$work/twice.csv" <<'PY'
print("plan_hash,model,text,doc,doc_sha256,plan,nll,quarter,gain,n_gain,share,host,run")
for run, docs, add in (("a", 1, 0.3), ("b", 2, 0.1), ("c", 2, 0.2)):
    for doc in range(docs):
        for plan, loss in (("dense", 2), ("window512", 3), ("quest", 2 + add)):
            print(f"{plan}0,small,prose,{doc},d{doc},{plan},2,{loss:.6f},2,9,50.00,a host,2026-{run}")
PY
heddle report "$work/twice.csv" -o "$work/twice.html"
grep -q '</i>quest</th><td>0.800<.*</td><td>2</td><td>50.0</td></tr>' "$work/twice.html" && grep -q '</i>dense</th>.*<td>2</td><td>50.0</td></tr>' "$work/twice.html"
result "of a plan that was measured twice the newest whole run counts" $?
# Speeds of two hosts: each is set against dense of its own run, wherever it stands.
cat >"$work/runs.csv" <<'CSV'
model,depth,plan,kv,step_ms,share_of_dense,kv_bytes,host,run
small,4096,dense,f16,10.0,1,1000,one host,a
small,4096,minference,f16,10.0,1,1000,one host,a
small,4096,quest,f16,2.0,0.1,1000,one host,a
small,4096,dense,f16,10.0,1,1000,one host,a
small,4096,dense,f16,40.0,1,1000,another host,b
small,4096,keys4,f16,10.0,0.2,1000,another host,b
small,4096,dense,f16,60.0,1,1000,another host,b
CSV
over() { # PLAN TIMES: of the page of these runs
    sed -n 's#.*</i>'"$1"'</th>.*<td>\([0-9.]*\)</td><td>[0-9]*</td></tr>#\1#p' "$work/runs.html" | tee "$work/out" | grep -qx "$2"
}
heddle report "$work/runs.csv" -o "$work/runs.html"
over minference 1.00 && over quest 5.00 && over keys4 5.00 && over dense 1.00
result "a plan is set against dense of its own run" $?
grep -q '</i>dense</th>.*100.0 <small>at 4K, run 1</small><br>20.0 <small>at 4K, run 2</small>' "$work/runs.html"
result "dense has its speed in each" $?
grep -q 'Run 2: runs.csv, b; another host; by <code>build/bench/bench_depth</code>: the keys and values are made up' "$work/runs.html" &&
    ! grep -q 'heddle bench depth' "$work/runs.html"
result "the page says of whom the speeds are, and that rows were made up" $?
sed 's/,4096,/,8192,/' "$work/runs.csv" | sed 1d | cat "$work/runs.csv" - >"$work/depths.csv"
heddle report "$work/depths.csv" -o "$work/depths.html"
[ "$(grep -c '<h2>Decode speed by depth' "$work/depths.html")" = 2 ] && ! grep -q '<h2>Decode speed' "$work/runs.html"
result "each run has its chart of depths, where it has several" $?
for run in $(seq 65); do echo "small,4096,dense,f16,10.0,1,1000,a host,r$run"; done |
    sed '1i model,depth,plan,kv,step_ms,share_of_dense,kv_bytes,host,run' >"$work/many.csv"
refused "too many runs" "many.csv: more than 64 runs" report "$work/many.csv" -o "$work/many.html"

sed 's/^\(.*,dense,[0-9.]*\),[0-9.]*,/\1,,/' "$quality" >"$work/broken.csv"
refused "a quality row without its loss" "is no row of" report "$work/broken.csv"

heddle report "$results" "$speeds" -o "$work/page.html"
[ "$code" = 0 ] && [ -s "$work/page.html" ]
result "results and speeds make a page" $?
! grep -qE '<script|<link|https?://|@import|url\(' "$work/page.html"
result "the page loads nothing and runs nothing" $?
grep -q 'Run 1: .*csv; heddle 0.1.0, model .*, KV f16, 2 threads.*; by <code>heddle bench depth</code>, over a text' "$work/page.html"
result "the comments above the speeds are under them" $?
grep -q '<th>tasks, mean</th>' "$work/page.html" && grep -q 'over the tasks of [0-9]* tokens that decide' "$work/page.html"
result "and what a plan has, has one" $?
for heading in "Quality beside" "Every plan" "Every task" "Loss by position" "Decode speed" "Memory by depth" "Needles by" \
    "Overlap of lists" "Mass held" "What was read under anchor"; do
    grep -q "<h2>$heading" "$work/page.html"
    result "section: $heading" $?
done
grep -q '>100 %</text>' "$work/page.html" && ! grep -qE '>(120|150) %</text>' "$work/page.html"
result "no axis of a share goes beyond all of it" $?
heddle report "$results" "$speeds" -o "$work/again.html"
cmp -s "$work/page.html" "$work/again.html"
result "the same files give the same page" $?
heddle report "$results" -o "$work/alone.html"
[ "$code" = 0 ] && ! grep -q "Decode speed by depth" "$work/alone.html"
result "no speeds, no section of speeds" $?

# A file of rows that differ in what is named: rows PATH MEMBERS... (each a JSON object of members; right of 10 tokens).
rows() {
    python3 - "$@" <<'PY'
import json, sys
with open(sys.argv[1], "w") as file:
    for changed in sys.argv[2:]:
        row = {"what": "task", "model": "small", "model_hash": "a", "kv": "f16", "context": 4096, "frame": "chat", "seed": 1,
            "haystack": "noise", "source": "", "source_hash": "", "document": 0, "task": "needle_noise", "answers": 8,
            "questions": 1, "exact": 0, "tokens": 10, "nll": 1.0, "share_read": 0.25} | json.loads(changed)
        row = row | {"plan_hash": row.get("plan_hash", row["plan"])}
        print(json.dumps(row | {"depths": [0.5], "question_right": [row["right"]], "question_tokens": [row["tokens"]]}), file=file)
PY
}
window=window:window=512
rows "$work/beyond.jsonl" '{"plan": "dense", "right": 9}' '{"plan": "dense", "document": 1, "right": 999999}'
refused "more right than tokens" "line 2: right: must be a number" report "$work/beyond.jsonl"
rows "$work/beyond.jsonl" '{"plan": "dense", "right": 9, "nll": "x"}'
refused "a loss that is a text" "line 1: nll: must be a number" report "$work/beyond.jsonl"
rows "$work/answers.jsonl" '{"plan": "dense", "right": 9}' "{\"plan\": \"$window\", \"right\": 1}" '{"plan": "keys4", "right": 8}' \
    '{"plan": "dense", "answers": 2, "right": 3}' "{\"plan\": \"$window\", \"answers\": 2, \"right\": 2}" \
    '{"plan": "keys4", "answers": 2, "right": 1}' '{"plan": "few", "answers": 2, "right": 2}'
heddle report "$work/answers.jsonl" -o "$work/answers.html"
grep -q '</i>dense</th><td>90.0</td></tr>' "$work/answers.html" && grep -q '</i>keys4</th><td>-10.0</td></tr>' "$work/answers.html" &&
    grep -q '</i>few</th><td>-10.0</td></tr>' "$work/answers.html" &&
    grep -q 'class="cell[^"]*">80<' "$work/answers.html"
result "a document that was asked twice counts once, by the most answers that two plans have" $?

rows "$work/frames.jsonl" '{"plan": "dense", "right": 9}' "{\"plan\": \"$window\", \"right\": 1}" '{"plan": "anchor", "right": 8}' \
    '{"plan": "dense", "frame": "raw", "right": 7}' "{\"plan\": \"$window\", \"frame\": \"raw\", \"right\": 2}" \
    '{"plan": "keys4", "frame": "raw", "right": 6}' '{"plan": "dense", "invariant": true, "right": 10}' \
    "{\"plan\": \"$window\", \"invariant\": true, \"right\": 0}" '{"plan": "dense", "frame": "raw", "haystack": "ruler", "task": "vt", "right": 4}' \
    "{\"plan\": \"$window\", \"frame\": \"raw\", \"haystack\": \"ruler\", \"task\": \"vt\", \"right\": 3}"
heddle report "$work/frames.jsonl" -o "$work/frames.html"
grep -o '<h1 class="model">.*\|</i>[^<]*</th><td>[-0-9.]*</td>\(<td>[-0-9.]*</td>\)\?</tr>' "$work/frames.html" >"$work/out"
diff - "$work/out" >"$work/err" <<'HTML'
<h1 class="model">small <small>f16 keys and values</small></h1>
</i>dense</th><td>90.0</td><td>40.0</td></tr>
</i>window:window=512</th><td>10.0</td><td>30.0</td></tr>
</i>anchor</th><td>-10.0</td><td></td></tr>
<h1 class="model">small <small>f16 keys and values; questions without a chat template</small></h1>
</i>dense</th><td>70.0</td></tr>
</i>window:window=512</th><td>20.0</td></tr>
</i>keys4</th><td>-10.0</td></tr>
<h1 class="model">small <small>f16 keys and values; the invariant mode</small></h1>
</i>dense</th><td>100.0</td></tr>
</i>window:window=512</th><td>0.0</td></tr>
HTML
result "questions with and without a chat template, and the invariant mode, have cards of their own" $?

rows "$work/edited.jsonl" '{"plan": "my.json", "plan_hash": "0123456789abcdef", "right": 9}' '{"plan": "my.json", "plan_hash": "fedcba9876543210", "right": 8}' \
    '{"plan": "dense", "right": 9}' "{\"plan\": \"$window\", \"right\": 1}"
heddle report "$work/edited.jsonl" -o "$work/edited.html"
for label in dense 'my.json (012345)' 'my.json (fedcba)'; do
    grep -qF "</i>$label</th><td>" "$work/edited.html" && grep -qF "<title>$label</title>" "$work/edited.html" || echo "$label"
done >"$work/out"
[ ! -s "$work/out" ]
result "plans of one name are told apart by their hashes" $?

# Samples of RULER: tasks that are named after their files. Nothing else was measured, so nothing else has a section.
python3 - >"$work/ruler.jsonl" <<'PY'
import json
rights = {"niah_multi_1": {"dense": 9, "window:window=512": 2, "keys4": 8, "quest": 10}, "vt<1>": {"dense": 4, "window:window=512": 3, "keys4": 4}}
for task, of in rights.items():
    for i in range(3):
        for plan, right in of.items():
            print(json.dumps({"what": "task", "model": "small", "model_hash": "a", "kv": "f16", "plan": plan, "plan_hash": plan[:5],
                "context": 4096, "frame": "raw", "seed": 1, "haystack": "ruler", "source": task, "source_hash": task, "document": i,
                "task": task, "answers": 1, "questions": 1, "exact": 0, "tokens": 10, "right": right, "nll": 1.0, "share_read": 0.25}))
PY
heddle report "$work/ruler.jsonl" -o "$work/ruler.html"
grep -q '<th class="" title="samples of RULER[^"]*">niah multi 1</th><th class="quiet" title="samples of RULER[^"]*">vt&lt;1&gt;</th>' "$work/ruler.html" &&
    grep -q '</i>dense</th><td>90.0</td><td>40.0</td></tr>' "$work/ruler.html" && grep -q '</i>keys4</th><td>-10.0<.*<td>+0.0<' "$work/ruler.html" &&
    grep -q '</i>keys4</th><td>-10.0</td><td>-10.0<br><small>niah_multi_1</small></td><td>25.0</td></tr>' "$work/ruler.html"
result "tasks of RULER have their columns and count where they decide" $?
grep '<svg' -A 99 "$work/ruler.html" | grep -oE ' cy="[^"]*' | tr -d 'a-z ="' | awk '{ n++; if ($1 < 44 || $1 > 348) out++ } END { exit n < 3 || out }'
result "a plan that is better than dense stands in the chart" $?
grep vt "$work/ruler.jsonl" >"$work/vt.jsonl"
heddle report "$work/vt.jsonl" -o "$work/vt.html"
[ "$code" = 0 ] && ! grep -q '<h2>Needles' "$work/ruler.html" &&
    ! grep -qE '<h2>(Needles|Every plan<|Quality)' "$work/vt.html" && grep -q '<h2>Every task' "$work/vt.html"
result "what was not measured has no section" $?

cat "$speeds" "$speeds" >"$work/joined.csv"
heddle report "$work/joined.csv" -o "$work/joined.html"
[ "$code" = 0 ] && ! grep -q '</i>plan<' "$work/joined.html" && grep -q '</i>dense<' "$work/joined.html"
result "joined files of speeds: their names are no plan" $?

# A record over its text.
model=$top/models/warp-21m
head -c 12000 "$top/docs/plan.md" >"$work/source"
heddle run -m "$model" -f "$work/source" -p "What is a plan?" -n 12 --plan clsa:top_k=64 --record "$work/lists"
heddle report --record "$work/lists" -m "$model" -o "$work/record.html"
[ "$code" = 0 ] && [ "$(grep -o 'class="answer"' "$work/record.html" | wc -l)" -ge 8 ] &&
    sed 's/<[^>]*>//g' "$work/record.html" | grep -q '# Plan files$'
result "a record is shown over its text" $?
! grep -qE '<link|https?://|@import|url\(|src=' "$work/record.html"
result "and loads nothing" $?
refused "a record without its model" "needs the model" report --record "$work/lists"
refused "a text as a record" "does not hold lists" report --record "$work/text" -m "$model"

# Files that anyone may have written: drawn or refused, never a crash.
python3 - "$results" "$speeds" "$HEDDLE" "$work" >"$work/out" 2>"$work/err" <<'PY'
import json, random, subprocess, sys
results, speeds, heddle, work = sys.argv[1:]
lines, csv = open(results).read().splitlines(), open(speeds, "rb").read()
draw, codes = random.Random(3), {}
for i in range(40):
    if i % 2:
        out = []
        for line in draw.sample(lines, 40):
            row = json.loads(line)
            for member in draw.sample(sorted(row), 2):
                row[member] = draw.choice([None, -1, 1e308, "x" * 300, [], [[]], {}, -5, 3.7, "", True])
            row.setdefault("what", "loss")
            out.append(json.dumps(row) + "\n")
        data = "".join(out).encode()
    else:
        data = bytearray(csv)
        for _ in range(draw.randint(1, 30)):
            data[draw.randrange(len(data))] = draw.choice(b'",#\n0-e.\xff\x00')
    open(work + "/changed", "wb").write(data)
    done = subprocess.run([heddle, "report", work + "/changed", speeds, "-o", work + "/changed.html"], capture_output=True)
    codes[done.returncode] = codes.get(done.returncode, 0) + 1
print("exit codes", codes)
assert set(codes) <= {0, 2} and codes.get(0)
PY
code=$?
result "changed files are drawn or refused" $code

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
if [ -z "$browser" ]; then
    skip "a browser lays it out" "no chromium here"
    finish
fi
look() { # ARGS...: the browser without a screen
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$work/profile" --hide-scrollbars \
        --window-size=1100,4000 "$@" 2>"$work/err"
}
sed 's#</body>#<pre id="found"></pre><script>\
const answer=document.querySelectorAll("b.answer"),token=answer[answer.length-1];token.click();\
const lit=[...spans].filter(s=>parseInt(s.style.getPropertyValue("--w"))>0).length;token.click();\
const back=[...spans].every((s,i)=>s.style.getPropertyValue("--w")===all[i]);\
document.getElementById("found").textContent=`found: ${lists[token.dataset.row][2].length/2} read, ${lit} lit, ${back}`</script></body>#' \
    "$work/record.html" >"$work/pressed.html"
look --dump-dom "file://$work/pressed.html" >"$work/dom"
grep -o 'found: [0-9][^<]*' "$work/dom" | tail -n 1 >"$work/out"
read -r _ read _ lit _ back <"$work/out"
echo "# $(cat "$work/out")"
[ "${read:-0}" -ge 64 ] && [ "$read" = "${lit:-0}" ] && [ "$back" = true ]
result "a pressed token shows its list, and gives the page back" $?
# A copy of the page with a script that measures it: texts that leave their drawing, labels over labels.
measure() { # PAGE: what its texts do, into $drawings $texts $outside $over
    sed 's#</body>#<pre id="found"></pre><script>\
let out=0,over=0,texts=0,drawings=0,which="";\
for(const svg of document.querySelectorAll("svg")){drawings++;const b=svg.viewBox.baseVal,labels=[];\
for(const t of svg.querySelectorAll("text")){texts++;const r=t.getBBox();\
if(r.x<-1||r.y<-3||r.x+r.width>b.width+1||r.y+r.height>b.height+3){out++;which+=" outside: "+t.textContent}\
if(t.classList.contains("label"))labels.push([r,t.textContent])}\
for(let i=0;i<labels.length;i++)for(let j=0;j<i;j++){const p=labels[i][0],q=labels[j][0];\
const w=Math.min(p.x+p.width,q.x+q.width)-Math.max(p.x,q.x),h=Math.min(p.y+p.height,q.y+q.height)-Math.max(p.y,q.y);\
if(w>2\&\&h>4){over++;which+=" over: "+labels[i][1]+" / "+labels[j][1]}}}\
document.getElementById("found").textContent=`found: ${drawings} drawings, ${texts} texts, ${out} outside, ${over} over${which}`;\
</script></body>#' "$1" >"$work/measured.html"
    look --dump-dom "file://$work/measured.html" >"$work/dom"
    grep -o 'found: [0-9][^<]*' "$work/dom" | tail -n 1 >"$work/out"
    read -r _ drawings _ texts _ outside _ over _ <"$work/out"
    echo "# $(cat "$work/out")"
}
measure "$work/methods.html"
[ "${outside:-1}" = 0 ] && [ "${over:-1}" = 0 ]
result "all plans: no text leaves its drawing, no label lies over another" $?
measure "$work/page.html"
[ "${drawings:-0}" -ge 12 ] && [ "${texts:-0}" -ge 200 ]
result "the browser finds the drawings and their texts" $?
[ "${outside:-1}" = 0 ]
result "no text leaves its drawing" $?
[ "${over:-1}" = 0 ]
result "no label lies over another" $?
look --screenshot="$work/light.png" "file://$work/page.html" >"$work/out"
look --force-dark-mode --blink-settings=preferredColorScheme=0 --screenshot="$work/dark.png" "file://$work/page.html" >"$work/out"
python3 - "$work/light.png" "$work/dark.png" >"$work/out" 2>>"$work/err" <<'PY'
import struct, sys, zlib
def rows(path):
    data, at, packed = open(path, "rb").read(), 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", data[at + 8:at + 18])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + n]
        at += n + 12
    raw, size = zlib.decompress(packed), 4 if colour == 6 else 3
    before, stride = bytearray(width * size), width * size + 1
    for y in range(height):
        kind, line = raw[y * stride], bytearray(raw[y * stride + 1:(y + 1) * stride])
        for i in range(len(line)):
            a = line[i - size] if i >= size else 0
            b, c = before[i], before[i - size] if i >= size else 0
            p = a + b - c
            paeth = a if abs(p - a) <= abs(p - b) and abs(p - a) <= abs(p - c) else b if abs(p - b) <= abs(p - c) else c
            line[i] = (line[i] + (0, a, b, (a + b) // 2, paeth)[kind]) & 255
        before = line
        if y % 8 == 0:
            yield [tuple(line[i:i + 3]) for i in range(0, len(line), size * 3)]
paper = []
for path in sys.argv[1:]:
    counts = {}
    for row in rows(path):
        for pixel in row:
            counts[pixel] = counts.get(pixel, 0) + 1
    most = max(counts, key=counts.get)
    inked = 1 - counts[most] / sum(counts.values())
    print(f"{path}: paper {most}, {100 * inked:.1f} % inked, {len(counts)} colours")
    assert inked > 0.01 and len(counts) > 50
    paper.append(sum(most))
assert paper[0] > 700 and paper[1] < 150
PY
result "light and dark are drawn" $?
sed 's/^/# /' "$work/out"
finish
