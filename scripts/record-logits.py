#!/usr/bin/env python3
"""Records float reference logits of a GGUF model over a text, for `compare_logits`.

The weights are dequantised to f32 and run by transformers, so what the comparison shows is our
arithmetic (8-bit activations, 16-bit KV cache), not the quantisation of the weights.

    python3 scripts/record-logits.py MODEL.gguf models/tests/data/text.txt OUT_FOLDER

writes OUT_FOLDER/tokens.txt (ids) and OUT_FOLDER/logits.f32 (little-endian, [tokens, vocab]; a
gigabyte for a large vocabulary: it is not committed), and prints the perplexity.

Run with Python 3.11, torch 2.15.0 (CPU), transformers 5.23.0, gguf 0.19; Llama, Qwen and Gemma 3.
"""

import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def perplexity(logits, tokens):
    rows = torch.log_softmax(logits[:-1].double(), dim=-1)
    return math.exp(-rows.gather(1, tokens[1:, None]).mean().item())


@torch.no_grad()
def main():
    model_path, text_path, out = (pathlib.Path(argument) for argument in sys.argv[1:4])
    source = dict(pretrained_model_name_or_path=str(model_path.parent), gguf_file=model_path.name)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    print(model.config)
    tokens = tokenizer(text_path.read_text(), return_tensors="pt").input_ids[0]
    bos = tokenizer.bos_token_id
    if "gemma" in model.config.model_type and tokens[0] != bos:
        tokens = torch.cat([torch.tensor([bos]), tokens])
    logits = model(tokens[None]).logits[0].float()
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokens.txt").write_text(" ".join(map(str, tokens.tolist())) + "\n")
    with open(out / "logits.f32", "wb") as file:
        for row in logits:
            file.write(row.numpy().astype("<f4").tobytes())
    print(f"{len(tokens)} tokens, vocabulary {logits.shape[1]}, perplexity {perplexity(logits, tokens):.4f}")


if __name__ == "__main__":
    main()
