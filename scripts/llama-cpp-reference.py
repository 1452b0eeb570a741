#!/usr/bin/env python3
"""What llama.cpp makes of a GGUF file: perplexity of a text, prefill and decode speed; JSON on standard output.

    llama-cpp-reference.py MODEL.gguf [--text FILE] [--threads N] [--prefill 512] [--decode 64] [--repeats 5]

Needs llama-cpp-python built for this machine (0.3.36 was used). Conventions, which `chrysalis eval` and
`chrysalis bench` share:

- Perplexity: the whole text, cut at --context tokens (2048), in one pass. The text is tokenised with its special
  tokens as text and with BOS before it exactly if the model adds one; BOS counts among the tokens of the context.
  Every token but the first is scored, given all before it: exp(mean of -ln p), p from a softmax in f64.
- Prefill: N random ids into an empty cache, in one call, one row of logits. Decode: ids one by one after an empty
  cache, one row of logits each. The median of --repeats runs after one that is not counted. Threads are the same for both.
"""

import argparse
import ctypes
import json
import math
import random
import statistics
import time

import llama_cpp
from llama_cpp import Llama


def main():
    args = arguments()
    out = {"model": args.model, "threads": args.threads, "llama_cpp_python": llama_cpp.__version__}
    if args.text:
        out["perplexity"] = perplexity(args)
    if args.repeats > 0:
        out["speed"] = speed(args)
    print(json.dumps(out))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--plain-weights", action="store_true", help="no AMX and no repacked weights (gcc 12 miscompiles ggml's AMX)"
    )
    parser.add_argument("--cache", choices=["f16", "f32"], default="f16", help="type of the KV cache")
    return parser.parse_args()


def load(args, tokens, batch, all_logits):
    if args.plain_weights:
        raw = llama_cpp.llama_cpp
        params = raw.llama_model_default_params()
        params.use_extra_bufts = False
        raw.llama_model_default_params = lambda: params
    kind = llama_cpp.GGML_TYPE_F32 if args.cache == "f32" else llama_cpp.GGML_TYPE_F16
    return Llama(
        model_path=args.model,
        n_ctx=tokens,
        n_batch=batch,
        n_ubatch=min(batch, 512),
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_gpu_layers=0,
        logits_all=all_logits,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )


def perplexity(args):
    model = load(args, args.context, args.context, True)
    with open(args.text, "rb") as file:
        text = file.read()
    ids = model.tokenize(text, add_bos=True, special=False)
    cut = len(ids) > args.context
    ids = ids[: args.context]
    start = time.perf_counter()
    model.reset()
    model.eval(ids)
    total = 0.0
    agreed = 0
    for position in range(len(ids) - 1):
        row = [float(x) for x in model.scores[position]]
        highest = max(row)
        log_sum = highest + math.log(math.fsum(math.exp(x - highest) for x in row))
        total += log_sum - row[ids[position + 1]]
        agreed += row[ids[position + 1]] == highest
    scored = len(ids) - 1
    return {
        "text": args.text,
        "tokens": len(ids),
        "scored": scored,
        "cut": cut,
        "bos": ids[0] == model.token_bos() and ids[0] != model.tokenize(text, add_bos=False, special=False)[0],
        "mean_nll": total / scored,
        "perplexity": math.exp(total / scored),
        "top1": agreed / scored,
        "cache": args.cache,
        "seconds": time.perf_counter() - start,
    }


def speed(args):
    model = load(args, args.prefill + args.decode + 8, max(args.prefill, 8), False)
    context = model._ctx.ctx
    rng = random.Random(1)
    vocab = model.n_vocab()

    def run(count, step):
        """Seconds for `count` random ids, `step` in each call."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        ids = (llama_cpp.llama_token * count)(*(rng.randrange(vocab) for _ in range(count)))
        start = time.perf_counter()
        for at in range(0, count, step):
            part = ctypes.cast(
                ctypes.byref(ids, at * ctypes.sizeof(llama_cpp.llama_token)), ctypes.POINTER(llama_cpp.llama_token)
            )
            batch = llama_cpp.llama_batch_get_one(part, min(step, count - at))
            if llama_cpp.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")
            llama_cpp.llama_synchronize(context)
        return time.perf_counter() - start

    rates = {}
    for name, count, step in [("prefill", args.prefill, args.prefill), ("decode", args.decode, 1)]:
        run(count, step)
        seconds = [run(count, step) for _ in range(args.repeats)]
        rates[name] = {
            "tokens": count,
            "tokens_per_s": count / statistics.median(seconds),
            "best": count / min(seconds),
            "worst": count / max(seconds),
        }
    return rates


if __name__ == "__main__":
    main()
