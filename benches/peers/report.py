"""From the saved runs to one table in Markdown: medians over the rounds, shares of the limit, ratios."""

import statistics

from . import rows

OURS = "chrysalis"
NONE = "-"


def table(state):
    """The whole text: the table, and under it what it does not say itself."""
    peers = [name for name in state["systems"] if name != OURS]
    head = ["model", "work", "limit", OURS, *(word for name in peers for word in (name, "ratio"))]
    lines = [line(head), line(["---"] * len(head))]
    for model in state["models"]:
        for row in settings(state).rows():
            cells = [cell(state, model, row, OURS)]
            for name in peers:
                cells += [cell(state, model, row, name), ratio_cell(state, model, row, name)]
            lines.append(line([state["models"][model]["title"], row.title, limit_cell(state, model, row), *cells]))
    return "\n".join([*lines, "", *notes(state)])


def settings(state):
    lengths = state["settings"]
    return rows.Settings(*(tuple(lengths[name]) for name in ("prompts", "contexts", "batches")), lengths["generate"])


def results(state, model, job, system):
    """What was measured, by round."""
    shape = [job.prompt, job.generate, job.batch]
    return {
        run["round"]: run
        for run in state["runs"]
        if (run["model"], run["system"], run["shape"]) == (model, system, shape) and "error" not in run
    }


def values(state, model, row, system):
    found = results(state, model, row.job, system)
    return {number: run[row.value] for number, run in found.items() if run.get(row.value) is not None}


def limits(state, model, row):
    """The machine's limit, by round: it was measured in the run of ours."""
    if row.limited is None:
        return {}
    found = {number: run["limits"][row.limited] for number, run in results(state, model, row.job, OURS).items()}
    return {number: limit for number, limit in found.items() if limit}


def share(value, limit):
    return value / limit


def ratios(ours, theirs, more_is_better):
    """How many times better ours is, in each round that has both."""
    both = [number for number in ours if number in theirs and ours[number] > 0 and theirs[number] > 0]
    return [ours[n] / theirs[n] if more_is_better else theirs[n] / ours[n] for n in both]


def cell(state, model, row, system):
    found = values(state, model, row, system)
    if not found:
        return NONE
    shown = f"{statistics.median(found.values()) * row.scale:.{row.digits}f}"
    limit = limits(state, model, row)
    shares = [share(found[number], limit[number]) for number in found if number in limit]
    return f"{shown} ({100 * statistics.median(shares):.0f} %)" if shares else shown


def limit_cell(state, model, row):
    found = limits(state, model, row)
    return f"{statistics.median(found.values()):.0f}" if found else NONE


def ratio_cell(state, model, row, system):
    ours, theirs = (values(state, model, row, name) for name in (OURS, system))
    found = ratios(ours, theirs, row.more_is_better)
    if not found:
        return NONE
    shown = f"{statistics.median(found):.2f}"
    return shown if len(found) == 1 else f"{shown} ({min(found):.2f} to {max(found):.2f})"


def notes(state):
    lengths = state["settings"]
    yield (
        f"Tokens a second over all sequences, in brackets the share of the machine's limit; medians of "
        f"{lengths['rounds']} alternated rounds. Ratio: how many times better {OURS} is (for load, memory and energy "
        f"less is better), the median of the rounds' ratios, and their range. Decode: {lengths['generate']} tokens; "
        f"batch: after a prompt of {rows.BATCH_PROMPT} each. Load, memory and energy: of a process with a prompt of "
        f"{rows.LOAD_PROMPT}."
    )
    yield ""
    yield f"{state['date']}, commit {state['commit']}, {state['machine']}, threads: {lengths['threads']}."
    for name, system in state["systems"].items():
        yield f"- {name}: {system.get('problem') or system['version']}{used(state, name)}"
    for model, about in state["models"].items():
        for name, reason in errors(state, model):
            yield f"- {about['title']}, {name}: {reason}"


def used(state, system):
    """The configurations that a system ran with, each with the models and kinds of shape it was chosen for."""
    found = {}
    for about in state["models"].values():
        for kind, name in about["chosen"].get(system, {}).items():
            found.setdefault(name, []).append(f"{about['title']} {kind}")
    if len(found) == 1:
        return f"; {next(iter(found))}"
    return "".join(f"; {name} ({', '.join(where)})" for name, where in found.items())


def errors(state, model):
    """Each reason once, with the shapes that it holds for."""
    found = {}
    for run in state["runs"]:
        if run["model"] == model and "error" in run:
            prompt, _, batch = run["shape"]
            found.setdefault((run["system"], run["error"]), {})[f"prompt {prompt}, batch {batch}"] = None
    for (system, reason), shapes in found.items():
        yield f"{system} ({'; '.join(shapes)})", reason


def line(cells):
    return "| " + " | ".join(cells) + " |"
