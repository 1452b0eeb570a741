"""candle's quantised models: the small program in candle/, built for this machine's CPU."""

import pathlib

from . import process
from .llama import medians

PROJECT = pathlib.Path(__file__).resolve().parent / "candle"
LLAMA_CONTEXT = 4096  # candle's quantized_llama has rotations for no more


class Candle:
    name = "candle"
    version = "candle-transformers 0.11.1"
    configurations = {kind: [("-C target-cpu=native, its own f32 cache", "")] for kind in ("one sequence", "many")}

    def __init__(self, work, prebuilt):
        self.folder = work / self.name
        self.binary = prebuilt

    def prepare(self):
        if self.binary is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {"RUSTFLAGS": "-C target-cpu=native", "CARGO_TARGET_DIR": str(self.folder / "target")}
        command = ["cargo", "build", "--release", "--locked", "--manifest-path", PROJECT / "Cargo.toml"]
        process.run(command, self.folder / "build.log", env)
        self.binary = self.folder / "target" / "release" / "candle-peer"

    def refuses(self, model, job):
        if not model.key.startswith("gemma") and job.prompt + job.generate > LLAMA_CONTEXT:
            return f"its Llama ends at {LLAMA_CONTEXT} tokens"
        return None

    def command(self, model, job, threads, repeat, options):
        words = [self.binary, model.path, job.prompt, job.generate, job.batch, repeat]
        return words, {"RAYON_NUM_THREADS": str(threads)}

    def parse(self, text):
        return medians(text)
