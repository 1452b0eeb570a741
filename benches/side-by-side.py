#!/usr/bin/env python3
"""chrysalis beside ik_llama.cpp, llama.cpp and candle: builds the peers, alternates the runs, prints one table.

    benches/side-by-side.py                                    everything, in a throw-away folder (hours)
    benches/side-by-side.py --quick                            one round of few rows on SmolLM2
    benches/side-by-side.py --work DIR --json OUT.json --svg docs/benchmarks.svg
    benches/side-by-side.py --json OUT.json --resume ...       goes on where a campaign was ended
    benches/side-by-side.py --render OUT.json [--svg FILE]     the table and the plot again, nothing is run
    benches/side-by-side.py --self-test

Every run is a process of its own on the same GGUF file, with the same prompt length, batch and threads. Within a round
each shape is run by every system in turn, and each starts first in its turn, so that a busy neighbour hits all. A peer
that cannot be built, or cannot do a shape, has a "-" in its cells and the reason under the table; the rest goes on.
Before the first round each peer tries its configurations on each model and keeps the fastest. Needs Python 3 alone, a C
and C++ compiler, Rust, and the package registries; the table goes to standard output, progress to standard error.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True  # the source tree stays as it is

from peers import models, plot, process, report, rows
from peers.candle import Candle
from peers.chrysalis import Chrysalis
from peers.llama import IkLlamaCpp, LlamaCpp

SYSTEMS = (Chrysalis, IkLlamaCpp, LlamaCpp, Candle)
NAMES = [system.name for system in SYSTEMS]
TRIALS = (rows.Job(512, 32, 1), rows.Job(128, 32, 8))  # what a configuration is chosen by, one of each kind
HERE = pathlib.Path(__file__).resolve().parent


def main():
    args = arguments()
    if args.self_test:
        unittest.main(module="peers.tests", argv=["side-by-side"])
    if args.render:
        return show(json.loads(args.render.read_text()), args.svg)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no run is left behind
    work = args.work or pathlib.Path(tempfile.mkdtemp(prefix="side-by-side-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    try:
        campaign = Campaign(args, work)
        campaign.prepare()
        campaign.run()
        show(campaign.state, args.svg)
    except process.Failed as error:
        sys.exit(f"side-by-side: {error}")
    except KeyboardInterrupt:
        sys.exit("side-by-side: ended; " + (f"--resume goes on with {args.json}" if args.json else "nothing is saved"))
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    path = pathlib.Path
    parser.add_argument("--quick", action="store_true", help="one round of few rows, on SmolLM2 Q4_1 by default")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default all cores")
    parser.add_argument("--models", type=names, help=f"of {','.join(models.TITLES)}; default all")
    parser.add_argument("--systems", type=names, default=NAMES, help=f"of {','.join(NAMES)}")
    parser.add_argument("--batches", type=numbers, help="default 1,4,16")
    parser.add_argument("--prompts", type=numbers, help="default 128,512,2048")
    parser.add_argument("--contexts", type=numbers, help="default 0,512,4096")
    parser.add_argument("--generate", type=int, help="tokens of each sequence; default 64")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run; default 900")
    parser.add_argument("--work", type=path, help="folder for builds, models and packages; kept, and used again")
    parser.add_argument(
        "--prebuilt", type=named, action="append", default=[], metavar="SYSTEM=PATH",
        help="a folder with libllama.so and headers somewhere below (llama.cpp, ik_llama.cpp); our or candle's binary",
    )
    parser.add_argument(
        "--model", type=named, action="append", default=[], metavar="MODEL=FILE.gguf", help="use this file"
    )
    parser.add_argument("--json", type=path, help="raw results, written after every run")
    parser.add_argument("--resume", action="store_true", help="go on with what --json already has")
    parser.add_argument("--svg", type=path, help="write the plot there")
    parser.add_argument("--render", type=path, metavar="JSON", help="only table and plot, from saved results")
    parser.add_argument("--self-test", action="store_true", help="check the pure parts")
    args = parser.parse_args()
    settle(parser, args)
    return args


def settle(parser, args):
    """Fills in what depends on --quick, and refuses names that there are not."""
    base = rows.QUICK if args.quick else rows.FULL
    given = {name: getattr(args, name) for name in vars(base) if getattr(args, name)}
    args.settings = rows.Settings(**{**vars(base), **given})
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.models = args.models or (["smollm2-q4_1"] if args.quick else list(models.TITLES))
    for option, found, right in (
        ("--models", args.models, models.TITLES),
        ("--model", [name for name, _ in args.model], models.TITLES),
        ("--systems", args.systems, NAMES),
        ("--prebuilt", [name for name, _ in args.prebuilt], NAMES),
    ):
        if wrong := set(found) - set(right):
            parser.error(f"{option}: {', '.join(sorted(wrong))} is none of {', '.join(right)}")
    if args.resume and not (args.json and args.json.exists()):
        parser.error("--resume needs --json with the results that are there")


def names(text):
    return text.split(",")


def numbers(text):
    return tuple(int(number) for number in text.split(","))


def named(text):
    name, _, path = text.partition("=")
    return name, pathlib.Path(path).resolve()


class Campaign:
    """All runs of one call. What is known so far is in `state`, which is what is saved."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        prebuilt = dict(args.prebuilt)
        self.systems = [system(work, prebuilt.get(system.name)) for system in SYSTEMS if system.name in args.systems]
        self.models = {}
        settings = {**vars(args.settings), "rounds": args.rounds, "threads": args.threads}
        settings = json.loads(json.dumps(settings))  # as they will be read again
        if args.resume:
            self.state = json.loads(args.json.read_text())
            if {**self.state["settings"], "rounds": args.rounds} != settings:
                raise process.Failed(f"{args.json} was measured with other lengths or threads")
            if self.state["commit"] != commit() or self.state["machine"] != machine():
                raise process.Failed(f"{args.json} is of {self.state['commit']} on {self.state['machine']}")
            # What failed is tried again, in case its reason is gone.
            self.state["runs"] = [run for run in self.state["runs"] if "error" not in run]
            self.state["settings"] = settings
        else:
            self.state = {"date": str(datetime.date.today()), "commit": commit(), "machine": machine()}
            self.state |= {"settings": settings, "systems": {}, "models": {}, "trials": [], "runs": []}

    def prepare(self):
        """Builds the systems and makes the models. Whoever fails is left out, with the reason."""
        for system in self.systems:
            say(f"{system.name}: preparing; a build takes minutes")
            try:
                system.prepare()
                self.state["systems"][system.name] = {"version": system.version}
            except process.Failed as error:
                self.state["systems"][system.name] = {"problem": f"not built: {error}"}
                say(f"{system.name}: {error}")
        self.systems = [one for one in self.systems if "problem" not in self.state["systems"][one.name]]
        quantizers = [system for system in self.systems if hasattr(system, "quantize")]
        for key in self.args.models:
            about = self.state["models"].setdefault(key, {"title": models.TITLES[key], "chosen": {}})
            try:
                self.models[key] = models.obtain(key, self.work, dict(self.args.model), quantizers)
                about["bytes"] = self.models[key].path.stat().st_size
            except process.Failed as error:
                say(f"{about['title']}: {error}")
                about["problem"] = str(error)
        self.save()

    def run(self):
        for model in self.models.values():
            for system in self.systems:
                for job in TRIALS:
                    self.choose(model, system, job)
        jobs = self.args.settings.jobs()
        for number in range(1, self.args.rounds + 1):
            for model in self.models.values():
                for turn, job in enumerate(jobs):
                    first = (number + turn) % max(1, len(self.systems))
                    for system in self.systems[first:] + self.systems[:first]:
                        self.once(number, model, job, system)

    def choose(self, model, system, job):
        """Keeps the fastest configuration of a system for shapes like `job`: the highest product of both rates.

        Each is tried twice, in turns, and its better try counts: a neighbour only ever makes a run slower.
        """
        chosen = self.state["models"][model.key]["chosen"].setdefault(system.name, {})
        names = [name for name, _ in system.configurations[job.kind]]
        if chosen.get(job.kind) in names:
            return
        scores = dict.fromkeys(names, 0.0)
        tries = system.configurations[job.kind] * 2 if len(names) > 1 and not self.args.quick else []
        for name, options in tries:
            found = self.measure(model, job, system, options)
            scores[name] = max(scores[name], found.get("prefill", 0.0) * found.get("decode", 0.0))
            trial = {"model": model.key, "system": system.name, "configuration": name, "shape": shape(job)}
            self.state["trials"].append({**trial, **found})
            say(f"trial, {model.title}, {system.name}, {name}: {outcome(found)}")
        chosen[job.kind] = max(names, key=scores.get)
        self.save()

    def once(self, number, model, job, system):
        """One run, unless it was made before, or the same shape failed before."""
        same = [
            run for run in self.state["runs"]
            if (run["model"], run["system"], run["shape"]) == (model.key, system.name, shape(job))
        ]
        if any(run["round"] == number or "error" in run for run in same):
            return
        if reason := system.refuses(model, job):
            found = {"error": reason}
        else:
            chosen = self.state["models"][model.key]["chosen"][system.name][job.kind]
            options = dict(system.configurations[job.kind])[chosen]
            found = self.measure(model, job, system, options)
        run = {"round": number, "model": model.key, "system": system.name, "shape": shape(job), **found}
        self.state["runs"].append(run)
        self.save()
        work = f"{job.prompt} x {job.batch}"
        say(f"round {number}/{self.args.rounds}, {model.title}, {work}, {system.name}: {outcome(found)}")

    def measure(self, model, job, system, options):
        try:
            command, env = system.command(model, job, self.args.threads, job.repeat, options)
            text, seen = process.measure(command, env, self.args.timeout)
            return {**seen, **system.parse(text), "at": time.time()}
        except process.Failed as error:
            return {"error": str(error)}
        except (ValueError, KeyError, IndexError) as error:
            return {"error": f"its output was not understood: {error!r}"}

    def save(self):
        if self.args.json:
            part = self.args.json.with_suffix(".part")
            part.write_text(json.dumps(self.state, indent=1) + "\n")
            os.replace(part, self.args.json)


def shape(job):
    return [job.prompt, job.generate, job.batch]


def outcome(found):
    return found.get("error") or f"prefill {found['prefill']:.0f}, decode {found['decode']:.0f} tok/s"


def show(state, svg):
    print(report.table(state), flush=True)
    if svg:
        svg.write_text(plot.svg(state))


def say(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def commit():
    """The commit of the source tree, and whether it was changed since."""

    def git(*words):
        done = subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def machine():
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


if __name__ == "__main__":
    main()
