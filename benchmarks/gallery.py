"""Every gallery entry at about 4k tokens on a CPU, against its own dense formula in plain torch.

Time of a whole forward, what is composed around the attention included, float32, four heads of the system's usual head
dim; results are checked against the formula first. Where the formula is itself sparse or tiny it is no dense peer, and
a gain below 1 is no surprise; the table shows all of them. Where FlexAttention can express every attention an entry
calls, its attentions alone are timed against the compiled peer on the same tensors, block masks made beforehand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attndsl as ad
from benchmarks.cpu.timing import THREADS, ratio, turns
from benchmarks.flex_mods import NoSuchProgram, mods_of
from benchmarks.harness import MISSED, Row, check, largest_row_error, publish
from examples.gallery.entry import Draw, Entry, Results, entries
from examples.gallery.recorded import Recorded, recorded

LENGTH, HEADS = 4096, 4
TOLERANCE = 1e-3
POOLING = "Of one query the formula is as small as the call, and most of both is what is computed before."
SLOWER = {
    "aem": POOLING,
    "attention_at": f"{POOLING} The gradient it takes of one query keeps one core and one lane of a vector busy.",
    "conditioned_pooling": POOLING,
    "efficient_probing": POOLING,
    "lean_attention": "Half a millisecond of reading keys and values once, which FlexAttention does too.",
    "pyramid_broadcast": "The formula regroups tokens by their place in a frame; in the order they are kept in, every "
    "tile of the temporal attention has one live pair in sixteen.",
    "ref_atom_net": "Maps of tokens and few agents are as small as the calls, and both make them.",
    "relation_detr": "Nearly all of both is the bias of pairs, made in plain torch.",
    "seem": "Few queries, and a flag read for every pair: the formula is as small as the call.",
    "style_diffusion": "Maps of weights come out through as many identity columns as there are words, a product that "
    "the formula does without.",
    "tkl": "The documents of a call are new and are planned anew; the formula folds them into chunks first.",
}
"""Where the formula or FlexAttention was found faster, and why."""


def measure(name: str, entry: Entry, length: int) -> Row:
    """One row of the table."""
    size = replace(entry.usual, batch=1, heads=HEADS, length=min(length, entry.usual.length))
    inputs = {key: _single(value) for key, value in entry.inputs(size, Draw(0)).items()}
    runs: dict[str, Callable[[], Results]] = {
        "attndsl": lambda: entry.run(**inputs),
        "formula": lambda: entry.formula(**inputs),
    }
    found, wanted = (result if isinstance(result, tuple) else (result,) for result in (run() for run in runs.values()))
    for one, other in zip(found, wanted, strict=True):
        check(name, torch.atleast_1d(one), torch.atleast_1d(other), TOLERANCE)
    times = turns(runs)
    gain = ratio(times["formula"], times["attndsl"])
    over_flex, why = _over_flex(lambda: entry.run(**inputs))
    missed = gain < 1 or (over_flex is not None and over_flex < 1)
    return {
        "entry": name,
        "length": size.length,
        "head dim": size.head_dim,
        **{f"{contender} ms": min(each) for contender, each in times.items()},
        "over the formula": gain,
        "over flex": over_flex,
        "no flex": why,
        "why slower": SLOWER.get(name, "") if missed else "",
        MISSED: missed,
    }


def _over_flex(run: Callable[[], Results]) -> tuple[float | None, str]:
    """How many times faster the attentions of an entry are than FlexAttention's, or why it has none."""
    torch._dynamo.reset()
    try:
        with recorded() as calls, patch.object(ad, "paged", _paged):
            run()
        peers = [_peer(call) for call in calls]
        error = max(largest_row_error(peer(), _alone(call)) for call, peer in zip(calls, peers, strict=True))
    except NoSuchProgram as reason:
        return None, str(reason)
    except Exception as refusal:  # the peer's own refusals have many types
        return None, f"it fails with {type(refusal).__name__}"
    if error > TOLERANCE:
        return None, f"its results differ by {error:.0e}"
    times = turns({"attndsl": lambda: [_alone(call) for call in calls], "flex": lambda: [peer() for peer in peers]})
    return ratio(times["flex"], times["attndsl"]), ""


def _paged(*_: Any, **__: Any) -> None:
    raise NoSuchProgram("keys in pages")


def _alone(call: Recorded) -> torch.Tensor:
    found = call.attention(call.q, call.k, call.v, **{**call.how, "return_aux": False})
    assert isinstance(found, torch.Tensor)
    return found


def _peer(call: Recorded) -> Callable[[], torch.Tensor]:
    q_len, kv_len, batch, heads, offset = call.shape.values()
    if not isinstance(offset, int) or offset:
        raise NoSuchProgram("an offset of the queries")
    score_mod, mask_mod = mods_of(call.attention, call.attention._values(), q_len, kv_len)
    blocks = None
    if mask_mod is not None:
        blocks = create_block_mask(mask_mod, batch, heads, q_len, kv_len, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    how = {"scale": call.how.get("scale"), "enable_gqa": call.how.get("enable_gqa", False)}
    return lambda: compiled(call.q, call.k, call.v, score_mod=score_mod, block_mask=blocks, **how)


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", nargs="+", help="only these, by the name of their file; nothing is written down")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    with torch.no_grad():
        for name, entry in entries().items():
            if chosen.entries is None or name in chosen.entries:
                rows.append(measure(name, entry, chosen.length))
                print(rows[-1], flush=True)
    if chosen.entries is None:
        publish("gallery", f"Gallery entries at {chosen.length} tokens, float32, {HEADS} heads", rows)


if __name__ == "__main__":
    main()
