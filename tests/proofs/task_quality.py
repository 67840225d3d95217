#!/usr/bin/env python3
"""What plans cost on the tasks that decide: answer tokens right, beside dense, oracle, random, window.

    task_quality.py --run N [--documents N] [--jobs N] [--texts DIR] [CARD...]
    task_quality.py --check [CARD...]
                                       (cards: smollm2-8k gemma3-8k gemma3-32k warp-21m-8k warp-21m-32k; default: all)

`heddle eval` on documents drawn from 320,000 bytes of each text of texts.py, at most 64 questions each, and for each
task as many as give 2,000 answers at 8K and 500 at 32K; --documents: no more than N of them. An answer is one value
that was asked for: a question of multi_value and of multi_query has four. Rows go to
bench/results/tasks-CONTEXT-MODEL-N.jsonl (run 1 has no number). A run asks the first five plans what they have not answered
in any run, and goes on where it was stopped; on another host it is another run, for its plans are set against its own
dense. tasks-runs.csv says when, by which program and on which host a run was made. The summary is made from the rows, with 95 % intervals by bootstrap over documents (intervals.py): each plan over all
documents that it answered.
Gemma's `anchor` and `layered4` are one list for its three global layers.
"""
import argparse
import collections
import csv
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

from behaviour import MODELS, TOP, eval_hash, heddle, model_path
from intervals import bootstrap, sums, unexpected, verdict
from plan_quality import processor
from shards import share

CARDS = (("smollm2", 8), ("gemma3", 8), ("gemma3", 32), ("warp-21m", 8), ("warp-21m", 32))
KINDS = (("needle_noise",), ("needle_text", "multi_key", "multi_value", "multi_query", "passage"), ("needle_lines",))  # of haystacks
ASKED = {8: 2000, 32: 500}  # answers a task
OF_DOCUMENT = {8: {"needle_noise": 12, "needle_text": 12, "multi_key": 18, "multi_value": 16, "multi_query": 36, "passage": 16, "needle_lines": 64},
               32: {"needle_noise": 15, "needle_text": 15, "multi_key": 16, "multi_value": 24, "multi_query": 48, "passage": 15, "needle_lines": 64}}  # answers
VALUES = {"multi_value": 4, "multi_query": 4}  # answers of a question; of the other tasks one
N_FULL = 5  # plans, the first of these, that get all answers
METHODS = {"smollm2": ("layered_pq", "layered4", "budgets_pq", "keys4", "keys4_complement", "budgets4", "groups4", "indexcache", "anchor", "union4", "pqkeys"), "gemma3": ("anchor:top_k=2048", "layered4", "anchor", "keys4"),
           "warp-21m": ("clsa", "quest", "keys4")}  # the first that was asked is what is proved
LEAST_TASKS = {"warp-21m": 4}  # that decide; others 6: a model of 21M parameters reaches 60 % on fewer at 32K
MISSED = {("smollm2", 8): ("needle_lines",)}  # {card: bounds that do not hold, as docs/quality.md says}
CONTROLS = ("oracle", "random", "window")
DENSE, WINDOW = "dense", "window:window=512"
RUNS = TOP + "/bench/results/tasks-runs.csv"


def file_of(card, ending):
    return f"{TOP}/bench/results/tasks-{card[1]}k-{card[0]}{ending}"


def plans_of(card):
    return METHODS[card[0]] + CONTROLS


def answer(card, document, tasks, plans, texts, out, threads):
    """The plans' answers on one document; rows that `out` holds are not made again."""
    subprocess.run([heddle(), "eval", "-m", model_path(card[0]), *threads, "-c", str(1024 * card[1]), "--plans", ";".join(plans) + ";", "--tasks", tasks,
                    "--answers", "64", "--first", str(document), "--documents", "1", "--out", out, *texts], check=True, stdout=subprocess.DEVNULL)


def n_documents(card, task):
    """Enough for the answers that are asked for."""
    return -(-ASKED[card[1]] // OF_DOCUMENT[card[1]][task])


def missing(card, documents):
    """[(document, its tasks, plans that have not answered all of them)], for the plans that get the full counts."""
    found, work = load(card), []
    for document in range(documents):
        for kind in KINDS:
            tasks = [task for task in kind if document < n_documents(card, task)]
            plans = [p for p in METHODS[card[0]][:N_FULL] if any(document not in found[p][task] for task in tasks)]
            if plans:
                work.append((document, ",".join(tasks), plans))
    return work


def run(card, documents, jobs, folder, number):
    texts = [f"--text={folder}/{text}-{i}.txt" for i in range(3) for text in ("prose", "code", "lexicon")]
    into, work = file_of(card, f"-{number}.jsonl" if number > 1 else ".jsonl"), missing(card, documents)
    note_run(os.path.basename(into))
    if jobs <= 1:
        for item in work:
            answer(card, *item, texts, into, [])
        return
    shards = [f"{TOP}/build/tasks-{card[1]}k-{card[0]}-{number}-{job}.jsonl" for job in range(jobs)]
    share(into, shards, work, lambda item, shard: answer(card, *item, texts, shard, ["-t", "1"]))


def runs():
    """{file of rows: when, by which program and on which host}"""
    with open(RUNS) as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def note_run(file):
    if file not in runs():
        commit = subprocess.run(["git", "-C", TOP, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "not noted"
        with open(RUNS, "a", newline="") as out:
            csv.writer(out, lineterminator="\n").writerow([file, time.strftime("%Y-%m-%d", time.gmtime()), commit, processor()])


def files_of(card):
    """The card's files of rows, one a run, in the order of their numbers."""
    return [file_of(card, ".jsonl")] + sorted(glob.glob(file_of(card, "-*.jsonl")), key=lambda path: (len(path), path))


Asked = collections.namedtuple("Asked", "plan dense window")  # rows of one document and task, of one run


def load(card):
    """{plan: {task: {document: Asked}}}: rows of all files of the card. A file is a run, which asked dense and the window beside
    its plans: a plan's row is set against those of its own run, the newest of several."""
    found = collections.defaultdict(lambda: collections.defaultdict(dict))
    for path in files_of(card):
        run = {(row["plan"], row["task"], row["document"]): row for row in map(json.loads, open(path))}
        for (plan, task, document), row in run.items():
            base = [run.get((p, task, document)) for p in (DENSE, WINDOW)]
            if all(base):
                found[plan][task][document] = Asked(row, *base)
    return found


def stale(card, found):
    """Sentences on rows of another plan file than today's, and on those that nothing says the host of."""
    for path in files_of(card):
        if os.path.basename(path) not in runs():
            yield f"{os.path.basename(path)}: tasks-runs.csv does not say where it was made"
    for plan in plans_of(card):
        hashes = {asked.plan["plan_hash"] for documents in found[plan].values() for asked in documents.values()}
        if hashes - {eval_hash(plan)}:
            yield f"tasks of {card[0]}: {plan} is another plan than its rows are of"


def in_points(documents):
    """Of (tokens more right than dense's, tokens) of documents."""
    right, tokens = sums(documents)
    return (100 * right / tokens,)


def answers(asked):
    return sum(VALUES.get(a.plan["task"], 1) * a.plan["questions"] for a in asked)


Figure = collections.namedtuple("Figure", "value interval documents answers")


def figures(card, found):
    """{plan: {task: Figure}}, and of each task what dense and the window have right of the documents that any plan was asked."""
    made, of_task = collections.defaultdict(dict), {}
    for task in sorted({task for plan in plans_of(card) for task in found[plan]}):
        for plan in plans_of(card):
            asked = list(found[plan][task].values())
            if len(asked) > 1:
                points = [(a.plan["right"] - a.dense["right"], a.dense["tokens"]) for a in asked]
                (value,), (interval,) = in_points(points), bootstrap(points, in_points)
                made[plan][task] = Figure(value, interval, len(asked), answers(asked))
        rows = list(found[DENSE][task].values())
        of_task[task] = [100 * sum(row["right"] for row in side) / sum(row["tokens"] for row in side) for side in ([a.dense for a in rows], [a.window for a in rows])]
    return made, of_task


def is_deciding(dense, window):
    return dense >= 60 and dense - window >= 20


def table(card, made, of_task):
    """A line a plan, which has its own documents; beside each figure the number of answers."""
    lines = ["| plan | " + " | ".join(task + ("" if is_deciding(*both) else " (decides nothing)") for task, both in of_task.items()) + " |", "|" + "---|" * (1 + len(of_task))]
    lines += [f"| {name} | " + " | ".join(f"{both[i]:.1f}" for both in of_task.values()) + " |" for i, name in enumerate(("dense, %", "window of 512, %"))]
    for plan in filter(made.get, plans_of(card)):
        lines.append(f"| `{plan}` | " + " | ".join(f"{cell(f.value, f.interval)}; {f.answers:,}" if (f := made[plan].get(task)) else "" for task in of_task) + " |")
    return lines + [""]


def cell(value, interval):
    return f"{value:+.2f} ({interval[0]:+.2f} .. {interval[1]:+.2f})"


def claims(card, made, deciding):
    """{what is asked: (what came out, whether it holds)}"""
    proved, least_tasks, out = next(filter(made.get, METHODS[card[0]])), LEAST_TASKS.get(card[0], 6), {}
    own = {task: figure for task, figure in made[proved].items() if task in deciding}
    out["tasks"] = f"at least {least_tasks} tasks decide: {len(own)}", verdict(len(own), None, least_tasks, True)
    for task, figure in own.items():
        out[task] = f"{proved} is within 2 points of dense on {task}: {cell(figure.value, figure.interval)}", verdict(figure.value, figure.interval, -2, True)
    if card[1] == 32:
        task, figure = min(own.items(), key=lambda item: item[1].interval[0])
        out["intervals"] = f"its intervals reach no lower than -2 points: {figure.interval[0]:+.2f} at worst, {task}", verdict(figure.interval[0], None, -2, True)
    best = max((made[p][task] for p in ("random", "window") for task in deciding if task in made[p]), key=lambda figure: figure.value)
    out["controls"] = f"the controls of larger budget, random and window, lose at least 20 points on each: {cell(best.value, best.interval)} at best", \
        verdict(best.value, best.interval, -20, False)
    return out


def summarise(card, found):
    """The page of a card, and {what is asked: whether it holds}."""
    lines = [f"# Tasks at {card[1]}K, {MODELS.get(card[0], card[0])}", "", "tests/proofs/task_quality.py says how; KV f16. Answer tokens right in %: dense, a "
             "window of 512, and points of each plan against dense with the paired 95 % interval by document; then the plan's number of answers. An answer is one "
             "value that was asked for, of 8 tokens mostly: a question of multi_value or multi_query has four. Each plan is set against dense of the same "
             "documents and the same run; plans that were asked at different times have other documents.", ""]
    made, of_task = figures(card, found)
    deciding = [task for task, both in of_task.items() if is_deciding(*both)]
    lines += table(card, made, of_task)
    whole = [f"`{p}`" for p in plans_of(card) if made[p] and all(task in made[p] and made[p][task].answers >= ASKED[card[1]] for task in deciding)]
    lines += [f"Asked for are {ASKED[card[1]]:,} answers on each task that decides. These plans have them: {', '.join(whole) or 'none'}.", "", "Bounds:", ""]
    said = claims(card, made, deciding)
    lines += [f"- {sentence}: {outcome}" for sentence, outcome in said.values()]
    lines += ["", "Runs:", ""] + [f"- {name}: {run['date']}, {run['commit']}, {run['host']}" for name, run in runs().items()
                                  if f"{TOP}/bench/results/{name}" in files_of(card)]
    return "\n".join(lines) + "\n", {name: outcome for name, (_, outcome) in said.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--run", type=int, metavar="N", help="the run's number: a new one, or that of a run on this host to go on with")
    parser.add_argument("--texts", help="a folder that texts.py filled, where it cannot run (no network)")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("cards", nargs="*", metavar="CARD")
    options = parser.parse_args()
    if not options.check and not options.run:
        parser.error("--run N is missing: without it rows of this host would be set against dense of another")
    code = 0
    for card in CARDS:
        if options.cards and f"{card[0]}-{card[1]}k" not in options.cards:
            continue
        if not options.check:
            with tempfile.TemporaryDirectory() as folder:
                if not options.texts:
                    subprocess.run([sys.executable, TOP + "/tests/proofs/texts.py", "--bytes", "320000", folder], check=True, stdout=subprocess.DEVNULL)
                run(card, min(options.documents, max(n_documents(card, t) for kind in KINDS for t in kind)), options.jobs, options.texts or folder, options.run)
        found = load(card)
        (text, outcomes), summary = summarise(card, found), file_of(card, ".md")
        for why in stale(card, found):
            print(why)
            code = 1
        if not options.check:
            with open(summary, "w") as out:
                out.write(text)
        elif not os.path.exists(summary) or open(summary).read() != text:
            print(f"{summary[len(TOP) + 1:]} is not what its rows give")
            code = 1
        print(text)
        code |= unexpected(outcomes, MISSED.get(card, ()))
    return code


if __name__ == "__main__":
    sys.exit(main())
