#!/usr/bin/env python3
"""Keeps the likeliest tokens of recorded logits, so that a reference of a real model is small enough for the repository.

    compact-logits.py LOGITS.f32 VOCAB_SIZE OUT.top [K]

Reads what record-logits.py wrote: raw little-endian f32, [tokens, VOCAB_SIZE]. Writes, little-endian: the magic
CHRYTOP1, rows u32, K u32, then for each row K pairs of token id u32 and log probability f32, likeliest first.
Needs numpy.
"""

import sys

import numpy


def main():
    source, vocab_size, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    top = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    logits = numpy.memmap(source, dtype="<f4", mode="r").reshape(-1, vocab_size)
    with open(target, "wb") as out:
        out.write(b"CHRYTOP1")
        numpy.array([len(logits), top], dtype="<u4").tofile(out)
        for row in logits:
            row = row.astype(numpy.float64)
            row -= row.max()
            log_p = row - numpy.log(numpy.exp(row).sum())
            # A stable sort: the lowest id among equals comes first, as greedy sampling has it.
            ids = numpy.argsort(-log_p, kind="stable")[:top]
            pairs = numpy.zeros(top, dtype=[("id", "<u4"), ("log_p", "<f4")])
            pairs["id"], pairs["log_p"] = ids, log_p[ids]
            pairs.tofile(out)


if __name__ == "__main__":
    main()
