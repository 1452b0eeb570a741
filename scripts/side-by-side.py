#!/usr/bin/env python3
"""chrysalis bench and llama.cpp in turns on the same GGUF files: medians, ratios, the share of the machine's limit.

    side-by-side.py [--rounds 5] [--threads 2] [--prompt 512] [--generate 64] MODEL.gguf...

Run it with the Python that has llama-cpp-python (scripts/llama-cpp-reference.py says how it is built), after
`cargo build --release -p chrysalis-cli`. The runs alternate, so that a busy neighbour hits both. Prints Markdown.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHRYSALIS = ROOT / "target" / "release" / "chrysalis"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--plain-weights", action="store_true", help="passed to llama-cpp-reference.py")
    args = parser.parse_args()
    print("| model | work | chrysalis tok/s | of limit | llama.cpp tok/s | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rounds = measure(args, model, pathlib.Path(folder))
        for work, title in (("prefill", f"prefill {args.prompt}"), ("decode", f"decode {args.generate}")):
            ours = statistics.median(one["ours"][work] for one in rounds)
            share = statistics.median(one["ours"][work + "_share"] for one in rounds)
            peer = statistics.median(one["peer"][work] for one in rounds)
            ratio = statistics.median(one["ours"][work] / one["peer"][work] for one in rounds)
            name = pathlib.Path(model).stem
            print(f"| {name} | {title} | {ours:.0f} | {100 * share:.0f} % | {peer:.0f} | {ratio:.2f} |", flush=True)


def measure(args, model, folder):
    package = folder / "model.chry"
    run([CHRYSALIS, "pack", model, "-o", package, "--json"])
    rounds = []
    for number in range(args.rounds):
        ours = json.loads(run([
            CHRYSALIS, "bench", "--package", package, "--threads", args.threads, "--prompt", args.prompt,
            "--generate", args.generate, "--repeat", 1, "--json",
        ]))["rows"][0]
        plain = ["--plain-weights"] if args.plain_weights else []
        peer = json.loads(run([
            sys.executable, ROOT / "scripts" / "llama-cpp-reference.py", model, "--threads", args.threads,
            "--prefill", args.prompt, "--decode", args.generate, "--repeats", 1, *plain,
        ]))["speed"]
        rounds.append({
            "ours": {
                "prefill": ours["prefill_tokens_per_s"],
                "decode": ours["decode_tokens_per_s"],
                "prefill_share": ours["prefill_share_of_limit"],
                "decode_share": ours["decode_share_of_limit"],
            },
            "peer": {work: peer[work]["tokens_per_s"] for work in ("prefill", "decode")},
        })
        print(f"{pathlib.Path(model).stem} round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    return rounds


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    main()
