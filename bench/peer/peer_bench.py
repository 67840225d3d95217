#!/usr/bin/env python3
"""Run the peers' llama-bench for the table of figures and print CSV rows.

    HEDDLE_PEER_DIR=DIR[:DIR...] peer_bench.py [--short] [--figures LIST] [--kv LIST] [-t THREADS] [-r N]
                                               [--facts FILE] [--ik-args=TEXT] MODEL.gguf...

Each DIR holds one peer's `llama-bench` (see README.md for projects, commits and flags). The project neither
contains nor builds them. Figures: pp512 pp32768 tg@0 tg@16384 tg@32768 (default: all but pp32768). KV types: f16, q8_0 (default:
both). Flash attention is on. A row's figure is the median over the repetitions in tokens per second.

--short   one repetition, depth 512 for 16384 and 32768: only to see that everything runs
--facts   copy this file's lines, as comments, to the head of the output (what `heddle bench depth` printed
          on this host, in this hour); without it the figures carry no bounds
--ik-args=TEXT  more options for ik_llama.cpp's llama-bench, such as --ik-args="-rtr 1" (repack at load)
A busy machine makes the peers many times slower (their threads spin): the script refuses to start while other
processes take more than 5 % of the processors, unless --busy is given, and each row says how much of them (in
percent of all cores) others took during its run.
Standard library only. Exit code 1 if a run failed (its row says `failed`), 2 for wrong usage.
"""
import argparse
import csv
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

COLUMNS = ["peer", "commit", "model", "kv", "figure", "depth", "tokens", "threads", "repetitions", "median_tps", "min_tps", "max_tps",
           "others_percent", "seconds"]
FIGURES = {"pp512": (512, 0, 0), "pp32768": (32768, 0, 0), "tg@0": (0, 64, 0), "tg@16384": (0, 64, 16384), "tg@32768": (0, 64, 32768)}


def host_facts():
    facts = {"host": platform.machine(), "kernel": platform.release(), "cores": os.cpu_count()}
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_int8")
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                facts["cpu"] = value.strip()
            elif key.strip() == "flags":
                facts["isa"] = " ".join(f for f in wanted if f in value.split())
                break
        facts["memory_gib"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    except OSError:
        pass
    return facts


class Peer:
    def __init__(self, folder, ik_args):
        self.program = pathlib.Path(folder) / "llama-bench"
        if not os.access(self.program, os.X_OK):
            raise FileNotFoundError(f"HEDDLE_PEER_DIR: {self.program} is not a program")
        usage = subprocess.run([self.program, "--help"], capture_output=True, text=True)
        self.has_depth = "--n-depth" in usage.stdout + usage.stderr
        self.name = "llama.cpp" if self.has_depth else " ".join(["ik_llama.cpp", *ik_args])
        self.more = [] if self.has_depth else ik_args

    def command(self, model, kv, figure, threads, repetitions):
        n_prompt, n_gen, depth = figure
        command = [self.program, "-m", model, "-fa", "1", "-t", threads, "-ctk", kv, "-ctv", kv, "-r", repetitions, "-o", "json", *self.more]
        if depth and self.has_depth:
            command += ["-p", n_prompt, "-n", n_gen, "-d", depth]
        elif depth:  # ik_llama.cpp: fill, then time the generation alone
            command += ["-p", 0, "-n", 0, "-gp", f"{depth},{n_gen}"]
        else:
            command += ["-p", n_prompt, "-n", n_gen]
        return [str(word) for word in command]

    def run(self, model, kv, figure, threads, repetitions):
        """The last result of llama-bench's list, or None."""
        command = self.command(model, kv, figure, threads, repetitions)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            try:
                return json.loads(done.stdout)[-1]
            except (ValueError, IndexError):
                pass
        print(f"peer_bench: failed ({done.returncode}): {' '.join(command)}\n{done.stderr[-500:]}", file=sys.stderr)
        return None


class Others:
    """The share of all processor time that went to processes which are not our children."""

    def __init__(self):
        self.start, self.busy, self.ours = time.monotonic(), self.busy_seconds(), self.our_seconds()

    @staticmethod
    def busy_seconds():
        # user nice system idle iowait irq softirq steal; steal counts: it is time we did not get
        ticks = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def our_seconds():
        used = os.times()
        return used.user + used.system + used.children_user + used.children_system

    def percent(self):
        seconds = time.monotonic() - self.start
        others = (self.busy_seconds() - self.busy) - (self.our_seconds() - self.ours)
        return max(0.0, 100 * others / (seconds * os.cpu_count()))


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--figures", default="pp512,tg@0,tg@16384,tg@32768")
    parser.add_argument("--kv", default="f16,q8_0")
    parser.add_argument("-t", type=int, default=2)
    parser.add_argument("-r", type=int, default=3)
    parser.add_argument("--facts")
    parser.add_argument("--ik-args", default="")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    unknown = set(options.figures.split(",")) - set(FIGURES)
    if unknown:
        parser.error(f"unknown figure {', '.join(sorted(unknown))}; known: {' '.join(FIGURES)}")
    return options


def main():
    options = arguments()
    folders = [f for f in os.environ.get("HEDDLE_PEER_DIR", "").split(":") if f]
    if not folders:
        print("peer_bench: HEDDLE_PEER_DIR names no folder with a peer's llama-bench", file=sys.stderr)
        return 2
    if not options.busy and not options.short:
        others = Others()
        time.sleep(3)
        if others.percent() > 5:
            print(f"peer_bench: other processes take {others.percent():.0f} % of the processors; wait, or give --busy", file=sys.stderr)
            return 2
    try:
        peers = [Peer(folder, options.ik_args.split()) for folder in folders]
        facts = pathlib.Path(options.facts).read_text().splitlines() if options.facts else []
    except OSError as error:
        print(f"peer_bench: {error}", file=sys.stderr)
        return 2
    print("# " + "; ".join(f"{k}: {v}" for k, v in host_facts().items()) + time.strftime("; %Y-%m-%d %H:%M UTC", time.gmtime()))
    for line in facts:
        print("# " + line)
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(COLUMNS)
    failed = 0
    for model in options.models:
        for name in options.figures.split(","):
            n_prompt, n_gen, depth = FIGURES[name]
            if options.short:
                n_prompt, depth = min(n_prompt, 512), min(depth, 512)
            for kv in options.kv.split(","):
                for peer in peers:  # peers beside each other in time
                    others = Others()
                    result = peer.run(model, kv, (n_prompt, n_gen, depth), options.t, 1 if options.short else options.r)
                    speeds = result["samples_ts"] if result else []
                    failed += not speeds
                    rows.writerow([peer.name, result["build_commit"] if result else "-", pathlib.Path(model).name, kv, name, depth, n_prompt or n_gen,
                                   options.t, len(speeds), *([f"{f(speeds):.2f}" for f in (statistics.median, min, max)] if speeds else ["failed", "-", "-"]),
                                   f"{others.percent():.0f}", round(time.monotonic() - others.start)])
                    sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
