"""What the kernels of every gallery entry use on cuda:90 at the system's usual head dim, bf16, with no GPU at hand.

Target: no spilled bytes, but for the entries of `tests/gallery/test_compiled.py` that say why.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.harness import MISSED, Row, publish
from examples.gallery.entry import SIZES, Draw, Entry, entries
from examples.gallery.recorded import Recorded, recorded

TARGET = "cuda:90"


def compiled(entry: Entry) -> list[Recorded]:
    """Each attention an entry calls once, on short tensors of the usual head dim."""
    with recorded(backend="reference") as calls, torch.no_grad():
        entry.run(**entry.inputs(replace(SIZES[0], head_dim=entry.usual.head_dim), Draw(0)))
    return list({(call.attention.fingerprint, call.q.shape[-1], call.v.shape[-1]): call for call in calls}.values())


def reports(name: str, entry: Entry) -> Iterator[Row]:
    """One row for each kernel of each attention."""
    for call in compiled(entry):
        dims = {"head_dim": call.q.shape[-1], "v_head_dim": call.v.shape[-1]}
        for kernel in call.attention.compile_for(TARGET, dtype=torch.bfloat16, **dims).kernels:
            yield {
                "entry": name,
                "attention": call.attention.name,
                "kernel": kernel.name,
                "head dim": dims["head_dim"],
                "v head dim": dims["v_head_dim"],
                "registers": kernel.registers,
                "spilled bytes": kernel.spilled_bytes,
                "shared bytes": kernel.shared_bytes,
                MISSED: kernel.spilled_bytes != 0,
            }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", nargs="+", help="only these, by the name of their file; nothing is written down")
    chosen = parser.parse_args(arguments).entries
    rows: list[Row] = []
    for name, entry in entries().items():
        if chosen is None or name in chosen:
            rows.extend(reports(name, entry))
            print(name, max((row["spilled bytes"] for row in rows if row["entry"] == name), default=0), flush=True)
    if chosen is None:
        publish("gallery_compile", f"Gallery kernels on {TARGET}, bf16", rows)


if __name__ == "__main__":
    main()
