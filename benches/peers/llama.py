"""llama.cpp and its fork ik_llama.cpp: built from the source packages of their Python bindings, timed by llama.c."""

import json
import pathlib
import statistics
import sys
import tarfile

from . import process

PROGRAM = pathlib.Path(__file__).resolve().parent / "llama.c"


class Llama:
    """One adapter for both; what differs is in the two classes below."""

    flags, defines, libraries = [], [], []

    def __init__(self, work, prebuilt):
        self.tools = work / "tools"
        self.folder = work / self.name
        self.root = prebuilt
        self.binary = self.folder / "llama-peer"

    def prepare(self):
        """Builds what is not there yet. A library that was built elsewhere only gets our small program."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.root is None:
            if not any(self.folder.rglob("libllama.so")):
                self.build()
            self.root = self.folder
        library = first(self.root, "libllama.so", beside="libggml.so")
        folders = {library.parent, first(self.root, "libggml.so", beside="libllama.so").parent}
        headers = {first(self.root, name).parent for name in ("llama.h", "ggml.h")}
        process.run([
            "cc", "-O2", *self.defines, PROGRAM, "-o", self.binary, *(f"-I{folder}" for folder in sorted(headers)),
            *(word for folder in sorted(folders) for word in (f"-L{folder}", f"-Wl,-rpath,{folder}")),
            "-lllama", *self.libraries, "-lm",
        ], self.folder / "build.log")

    def build(self):
        log = self.folder / "build.log"
        python = self.tools / "bin" / "python"
        if not python.exists():
            process.run([sys.executable, "-m", "venv", self.tools], log)
        process.run([python, "-m", "pip", "install", "-q", "cmake==4.*", "ninja"], log)
        process.run([
            python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", self.package, "-d", self.folder,
            f"{self.package}=={self.package_version}",
        ], log)
        (archive,) = self.folder.glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(self.folder / "source")
        (vendor,) = self.folder.glob(f"source/*/vendor/{self.name}")
        cmake, build = self.tools / "bin" / "cmake", self.folder / "build"
        process.run([
            cmake, "-S", vendor, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={self.tools / 'bin' / 'ninja'}",
            "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", *self.flags,
        ], log)
        process.run([cmake, "--build", build, "--target", "llama"], log)

    @property
    def version(self):
        return f"of {self.package} {self.package_version}"

    def refuses(self, model, job):
        return None

    def command(self, model, job, threads, repeat, options):
        numbers = [job.prompt, job.generate, job.batch, threads, repeat]
        return [self.binary, "bench", model.path, *numbers, options], {}

    def quantize(self, source, target):
        """Writes a Q8_0 copy of a GGUF file."""
        process.run([self.binary, "quantize", source, target], self.folder / "quantize.log")

    def parse(self, text):
        return medians(text)


class LlamaCpp(Llama):
    name, package, package_version = "llama.cpp", "llama-cpp-python", "0.3.36"
    flags = ["-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_COMMON=OFF"]
    libraries = ["-lggml-cpu", "-lggml", "-lggml-base"]
    configurations = {
        kind: [
            ("flash attention, repacked weights", "fr"),
            ("plain attention, repacked weights", "r"),
            ("flash attention, weights as stored", "f"),
        ]
        for kind in ("one sequence", "many")
    }


class IkLlamaCpp(Llama):
    name, package, package_version = "ik_llama.cpp", "ik-llama-cpp-python", "0.1.5"
    # The kernels for caches that are neither f16, bf16 nor Q8_0 take most of the build and are not used here.
    flags = ["-DGGML_IQK_FA_ALL_QUANTS=OFF"]
    defines, libraries = ["-DIK"], ["-lggml"]
    # Its flash attention was seen to abort with more than one sequence in the cache ("S > 0"), in its own batched bench
    # too; it is tried all the same, last.
    configurations = {
        "one sequence": [
            ("flash attention, weights as stored", "f"),
            ("flash attention, run-time repack", "fr"),
            ("flash attention, run-time repack, merged q, k, v", "frm"),
        ],
        "many": [
            ("plain attention, run-time repack", "r"),
            ("plain attention, weights as stored", ""),
            ("flash attention, run-time repack", "fr"),
        ],
    }


def first(root, name, beside=""):
    """The first file of that name below `root`, best one that has another beside it."""
    found = sorted(root.rglob(name), key=lambda path: (not (path.parent / beside).exists(), str(path)))
    if not found:
        raise process.Failed(f"{root} has no {name}")
    return found[0]


def medians(text):
    """The line that our small programs print: several runs of a rate become their median."""
    report = json.loads(text.strip().splitlines()[-1])
    return {key: statistics.median(value) if isinstance(value, list) else value for key, value in report.items()}
