"""Writes a Llama of Llama-3.2-1B's shape with random weights as a GGUF file: for speed only, it says nothing sensible.

The layout is that of the GGUF specification, version 3, and of its block Q4_K: f16 scale, f16 minimum, twelve bytes of
6-bit scales and minima, 128 bytes of 4-bit values; a weight is scale * s * q - minimum * m.
"""

import os
import pathlib
import random
import struct

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, FORWARD, VOCAB, CONTEXT = 2048, 16, 32, 8, 64, 8192, 128256, 131072
ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of metadata values
FORMATS = {"f32": 0, "q4_k": 12, "bf16": 30}  # GGML's numbers
FILE_TYPES = {"q4_k": 15, "bf16": 32}
POOL_BYTES = 9 << 20  # of random bytes, repeated: a multiple of a Q4_K block
Q4_K_WEIGHTS, Q4_K_BYTES = 256, 144
# The mean of q is 7.5 and s and m have one distribution, so this minimum makes the mean of the weights zero; their
# deviation is 0.03, which norms before every matrix keep finite.
Q4_K_SCALE, Q4_K_MINIMUM = 2.0**-13, 7.5 * 2.0**-13


def write_llama(path, kind):
    """Writes the file under another name first, so that one that is there is whole."""
    part = pathlib.Path(f"{path}.part")
    tensors = list(shapes(kind))
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata(kind))))
    for key, type_, value in metadata(kind):
        head += text(key) + struct.pack("<I", type_) + packed(type_, value)
    offset = 0
    for name, dims, format_ in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, FORMATS[format_], offset)
        offset += padded(bytes_of(dims, format_))
    head += bytes(padded(len(head)) - len(head))
    pool = random_pool(kind)
    with open(part, "wb") as file:
        file.write(head)
        for _, dims, format_ in tensors:
            size = bytes_of(dims, format_)
            write_values(file, format_, size, pool)
            file.write(bytes(padded(size) - size))
    os.replace(part, path)


def shapes(kind):
    """Name, dimensions (the innermost first) and format of each tensor. The output matrix is the embedding."""
    yield "token_embd.weight", (HIDDEN, VOCAB), kind
    yield "output_norm.weight", (HIDDEN,), "f32"
    for layer in range(LAYERS):
        for name, dims in (
            ("attn_norm", (HIDDEN,)), ("attn_q", (HIDDEN, HEADS * HEAD)), ("attn_k", (HIDDEN, KV_HEADS * HEAD)),
            ("attn_v", (HIDDEN, KV_HEADS * HEAD)), ("attn_output", (HEADS * HEAD, HIDDEN)), ("ffn_norm", (HIDDEN,)),
            ("ffn_gate", (HIDDEN, FORWARD)), ("ffn_up", (HIDDEN, FORWARD)), ("ffn_down", (FORWARD, HIDDEN)),
        ):
            yield f"blk.{layer}.{name}.weight", dims, kind if len(dims) == 2 else "f32"


def metadata(kind):
    tokens = vocabulary()
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, f"random 1B {kind}"),
        ("general.file_type", U32, FILE_TYPES[kind]),
        ("llama.block_count", U32, LAYERS),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, HIDDEN),
        ("llama.feed_forward_length", U32, FORWARD),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.dimension_count", U32, HEAD),
        ("llama.rope.freq_base", F32, 500000.0),
        ("llama.vocab_size", U32, VOCAB),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "llama-bpe"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * (VOCAB - 2) + [3, 3])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["t h"])),
        ("tokenizer.ggml.bos_token_id", U32, VOCAB - 2),
        ("tokenizer.ggml.eos_token_id", U32, VOCAB - 1),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
    ]


def vocabulary():
    """Every byte in the spelling of byte-level BPE, one merge, names that nothing merges to, begin and end."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(byte if byte in visible else next(spare)) for byte in range(256)] + ["th"]
    tokens += [f"unused{number}" for number in range(VOCAB - len(tokens) - 2)]
    return [*tokens, "<|begin|>", "<|end|>"]


def text(string):
    data = string.encode()
    return struct.pack("<Q", len(data)) + data


def packed(type_, value):
    if type_ == STRING:
        return text(value)
    if type_ == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(packed(element, one) for one in values)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[type_], value)


def bytes_of(dims, format_):
    count = 1
    for dim in dims:
        count *= dim
    return {"f32": count * 4, "bf16": count * 2, "q4_k": count // Q4_K_WEIGHTS * Q4_K_BYTES}[format_]


def padded(size):
    return -(-size // ALIGNMENT) * ALIGNMENT


def random_pool(kind):
    pool = bytearray(random.Random(1).randbytes(POOL_BYTES))
    if kind == "q4_k":
        scales = struct.pack("<ee", Q4_K_SCALE, Q4_K_MINIMUM)
        for at, byte in enumerate(scales):
            pool[at::Q4_K_BYTES] = bytes([byte]) * (POOL_BYTES // Q4_K_BYTES)
    else:
        # The upper byte of a bf16: the sign stays random, the exponent makes values of 1/128 to 1/32.
        pool[1::2] = bytes(pool[1::2]).translate(bytes(byte & 0x80 | 0x3C for byte in range(256)))
    return bytes(pool)


def write_values(file, format_, size, pool):
    if format_ == "f32":
        file.write(struct.pack("<f", 1.0) * (size // 4))
        return
    for at in range(0, size, POOL_BYTES):
        file.write(pool[: min(POOL_BYTES, size - at)])
