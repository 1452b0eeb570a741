"""What is measured: the shapes that are run, and the rows of the table that are read off them."""

import dataclasses

BATCH_PROMPT = 128
LOAD_PROMPT = 512
REPEATED_TOKENS = 1024  # a shape of no more prompt tokens is repeated in its process


@dataclasses.dataclass(frozen=True)
class Job:
    """`batch` sequences of `prompt` tokens each, then `generate` tokens each."""

    prompt: int
    generate: int
    batch: int

    @property
    def kind(self):
        """What a configuration is chosen for: a peer's best may differ between one sequence and many."""
        return "one sequence" if self.batch == 1 else "many"

    @property
    def repeat(self):
        return 3 if self.prompt * self.batch <= REPEATED_TOKENS else 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a value of a job. `limited` names the limit that it is a share of."""

    title: str
    job: Job
    value: str
    limited: str = None
    more_is_better: bool = True
    scale: float = 1.0
    digits: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The lengths of a campaign."""

    prompts: tuple
    contexts: tuple
    batches: tuple
    generate: int

    def rows(self):
        """The rows in the order of the table. An empty context is a prompt of one token."""
        whole = self.job(LOAD_PROMPT)
        return [
            *(Row(f"prefill {n}", self.job(n), "prefill", "prefill") for n in self.prompts),
            *(Row(f"decode at {n}", self.job(n), "decode", "decode") for n in self.contexts),
            *(Row(f"batch {n}", self.job(BATCH_PROMPT, n), "decode", "decode") for n in self.batches),
            Row("load, s", whole, "load_s", more_is_better=False, digits=2),
            Row("resident, MiB", whole, "resident_bytes", more_is_better=False, scale=2.0**-20),
            Row("energy, J", whole, "joules", more_is_better=False),
        ]

    def job(self, prompt, batch=1):
        return Job(max(prompt, 1), self.generate, batch)

    def jobs(self):
        """Each shape once: most give more than one row."""
        return list(dict.fromkeys(row.job for row in self.rows()))


FULL = Settings((128, 512, 2048), (0, 512, 4096), (1, 4, 16), 64)
QUICK = Settings((128, 512), (0, 512), (1, 4), 32)
