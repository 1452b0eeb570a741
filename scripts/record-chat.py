#!/usr/bin/env python3
"""Records what Python's jinja2 makes of models/tests/data/chat/*.jinja, for models/tests/text.rs.

    record-chat.py models/tests/data/chat > models/tests/data/chat/expected.txt

Needs jinja2 (3.1.6 was used), set up as transformers sets it up. The templates: chatml is SmolLM2's and qwen3 is
Qwen3's, both Apache-2.0; the others are our own.
"""

import json
import pathlib
import sys
from datetime import datetime, timezone

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1_795_312_805  # 2026-11-22 02:00:05 UTC

CONVERSATIONS = [
    [("user", "Hello there, world")],
    [("system", " Be brief. \n"), ("user", "Hi x")],
    [("user", "What is 1+1?"), ("assistant", "<think>\nsum\n</think>\n\n2"), ("user", "  And 2+2?\n")],
    [("system", "S"), ("user", "你好 <|im_end|>"), ("assistant", "a\n"), ("user", "b \"q\" 'r' <&>")],
    [("assistant", "I begin"), ("user", "no")],
]


def environment():
    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def main():
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        for conversation in CONVERSATIONS:
            for prompt in (True, False):
                for clock in (True, False):
                    env = environment()
                    if clock:
                        now = datetime.fromtimestamp(NOW, timezone.utc)
                        env.globals["strftime_now"] = now.strftime
                    elif "strftime_now" not in path.read_text():
                        continue
                    record(env, path, conversation, prompt, NOW if clock else None)


def record(env, path, conversation, prompt, now):
    messages = [{"role": role, "content": content} for role, content in conversation]
    case = {"template": path.name, "messages": messages, "prompt": prompt, "now": now}
    try:
        case["expected"] = env.from_string(path.read_text()).render(
            messages=messages, add_generation_prompt=prompt, bos_token="<bos>", eos_token="<eos>"
        )
    except TemplateError as error:
        case["refused"] = str(error)
    print(json.dumps(case, ensure_ascii=True, separators=(",", ":")))


if __name__ == "__main__":
    main()
