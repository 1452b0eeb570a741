"""Ours: `chrysalis bench` on a package made from the same GGUF file. Its rows also tell the machine's limits."""

import json
import os
import pathlib

from . import process

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Chrysalis:
    name = "chrysalis"
    # For one sequence and for many: what the notes say, and what the command is given. The first is used unless another
    # is faster.
    configurations = {kind: [("as built, activations as by default, KV f16", "")] for kind in ("one sequence", "many")}

    def __init__(self, work, prebuilt):
        self.folder = work / self.name
        self.packed = set()
        self.binary = prebuilt
        self.version = None

    def prepare(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.binary is None:
            target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
            command = ["cargo", "build", "--release", "--locked", "-p", "chrysalis-cli"]
            process.run(command, self.folder / "build.log", cwd=ROOT)
            self.binary = target / "release" / "chrysalis"
        out, _ = process.measure([self.binary, "--version"], None, 60)
        self.version = out.strip()

    def refuses(self, model, job):
        return None

    def command(self, model, job, threads, repeat, options):
        package = self.folder / f"{model.key}.chry"
        if model.key not in self.packed:
            process.run([self.binary, "pack", model.path, "-o", package, "--force", "--json"])
            self.packed.add(model.key)
        return [
            self.binary, "bench", "--package", package, "--threads", threads, "--prompt", job.prompt,
            "--generate", job.generate, "--batch", job.batch, "--repeat", repeat, "--json",
        ], {}

    def parse(self, text):
        report = json.loads(text)
        (row,) = report["rows"]
        return {
            "prefill": row["prefill_tokens_per_s"],
            "decode": row["decode_tokens_per_s"],
            "load_s": report.get("load_seconds"),
            # Ours tells it before it measures the machine, which takes a GiB.
            "resident_bytes": report["memory"]["resident_bytes"],
            "limits": {phase: limit(row, phase) for phase in ("prefill", "decode")},
            "machine": {key: value for key, value in report.items() if key not in ("rows", "package")},
        }


def limit(row, phase):
    """The most that the machine allows, tokens a second, as our bench counts it: all systems' shares are of this."""
    rate, share = row[f"{phase}_tokens_per_s"], row[f"{phase}_share_of_limit"]
    return row.get(f"{phase}_limit_tokens_per_s") or (rate / share if rate > 0 and share > 0 else None)
