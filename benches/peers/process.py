"""One command, run and watched from outside: its output, its time, its resident memory, the machine's energy."""

import os
import pathlib
import statistics
import subprocess
import tempfile
import time

SAMPLE_S = 0.1
POWERCAP = pathlib.Path("/sys/class/powercap")


class Failed(Exception):
    """A command that did not do what it was asked: the message says which, and why."""


def run(command, log=None, env=None, cwd=None):
    """Runs a step of a build; its output goes to the end of `log`. What it says last of an error is the reason."""
    words = [str(word) for word in command]
    with open(log, "a+b") if log else tempfile.TemporaryFile() as out:
        start = out.seek(0, os.SEEK_END)
        try:
            code = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, env=environment(env), cwd=cwd).returncode
        except OSError as error:
            raise Failed(f"{words[0]}: {error.strerror}") from error
        if code != 0:
            raise Failed(f"{pathlib.Path(words[0]).name}: {last_words(out, start) or f'ended with status {code}'}")


def measure(command, env, timeout_s):
    """Runs a measurement in a process of its own. Returns (standard output, what was seen from outside)."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before = energy()
        start = time.monotonic()
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(env))
        except OSError as error:
            raise Failed(f"{words[0]}: {error.strerror}") from error
        try:
            samples = watch(process, start + timeout_s)
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - start
        if process.returncode != 0:
            if seconds >= timeout_s:
                raise Failed(f"not done after {timeout_s:.0f} s")
            raise Failed(last_words(err) or f"ended with status {process.returncode}")
        out.seek(0)
        seen = {"seconds": seconds, "resident_bytes": settled(samples), "joules": spent(before, energy())}
        return out.read().decode(), seen


def watch(process, deadline):
    """Resident memory while the process runs."""
    samples = []
    while process.poll() is None and time.monotonic() < deadline:
        samples.append(resident(process.pid))
        try:
            process.wait(SAMPLE_S)
        except subprocess.TimeoutExpired:
            pass
    return samples


def resident(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def settled(samples):
    """The median of the last third: loading and probing are over by then."""
    last = [sample for sample in samples[len(samples) - max(1, len(samples) // 3) :] if sample]
    return statistics.median(last) if last else None


def energy():
    """Microjoules of each package that the machine counts, with the range of its counter."""
    found = {}
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:
            try:
                read = [int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
            except OSError:
                continue
            found[zone.name] = read
    return found


def spent(before, after):
    """Joules between two readings, or None where the machine does not tell. A counter may have wrapped once."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[zone][0] - before[zone][0]) % (before[zone][1] + 1) for zone in before) / 1e6


def environment(extra):
    return {**os.environ, **(extra or {})}


def last_words(file, start=0):
    """The last line that names an error or an assertion, or else the last line."""
    file.seek(start)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    return (errors or lines or [""])[-1][:200]
