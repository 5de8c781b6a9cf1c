"""Attentions from text: names, parameters with and without values, files that are not what they should be."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import CallError, ProgramError
from attndsl.loading import Declaration

TEXT = """\
# Two attentions.
attention causal {
    mask  kv_idx <= q_idx
}
attention gpt_oss(window: int = 3, cap: float = 30.0, sink: tensor[H]) {
    mask        kv_idx <= q_idx and q_idx - kv_idx < window
    score       cap * tanh(score / cap)
    normalizer  softmax(sink = sink[h])
}
"""


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in "qkv")
    return q, k, v


def test_a_file_is_its_text(tmp_path: Path) -> None:
    path = tmp_path / "two.attn"
    path.write_text(TEXT)
    for place in (path, str(path)):
        loaded = ad.load(place)
        assert [declared.name for declared in loaded] == ["causal", "gpt_oss"]
        assert loaded.gpt_oss.fingerprint == ad.parse(TEXT).gpt_oss.fingerprint
    assert dir(loaded) == ["causal", "gpt_oss"]
    assert repr(loaded) == f"<{path}: causal, gpt_oss>"
    assert repr(loaded.causal) == f"<attention causal {loaded.causal.fingerprint[:12]}>"


def test_a_declaration_with_values_is_an_attention_like_any_other() -> None:
    sink, tensors = torch.tensor([0.5, -1.0], dtype=torch.float64), qkv()
    attention = ad.parse(TEXT).gpt_oss(sink=sink)
    assert type(attention) is Attention
    q, k, v = tensors
    scores = 30 * (q @ k.transpose(-1, -2) / 8**0.5 / 30).tanh()
    distance = torch.arange(5)[:, None] - torch.arange(5)
    scores = scores.masked_fill((distance < 0) | (distance >= 3), -torch.inf)
    divisor = scores.exp().sum(-1) + sink.exp()[:, None]
    out, aux = attention(*tensors, return_aux=["lse"], backend="reference")
    torch.testing.assert_close(out, scores.exp() @ v / divisor[..., None])
    torch.testing.assert_close(aux.lse, divisor.log())


def test_a_declaration_without_parameters_is_called_as_it_is() -> None:
    q, k, v = qkv()
    causal = ad.parse(TEXT).causal
    assert isinstance(causal, Declaration)
    expected = causal().reference(q, k, v)
    assert torch.equal(causal(q, k, v, backend="reference"), expected)
    assert torch.equal(causal(q=q, k=k, v=v, backend="reference"), expected)
    assert torch.equal(causal.reference(q, k, v), expected)
    assert causal.plan(512).counts == {"full": 6, "partial": 4, "empty": 6}
    assert "kv_idx <= q_idx" in causal.text


def test_a_declaration_remembers_what_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from attndsl.runtime import facts

    learnt: list[object] = []
    original = facts.check_call
    monkeypatch.setattr(facts, "check_call", lambda *args: learnt.append(args) or original(*args))
    causal = ad.parse(TEXT).causal
    for _ in range(3):
        causal(*qkv(), backend="reference")
    assert len(learnt) == 1


def test_parameters_named_like_inputs() -> None:
    declared = ad.parse("attention a(q: int, k: int, v: int) {\n    mask  q_idx < q + k + v\n}").a
    attention = declared(q=1, k=1, v=1)
    assert attention.plan(128).counts["partial"] == 1


def test_missing_unknown_and_unfit_are_reported_together() -> None:
    with pytest.raises(CallError) as caught:
        ad.parse(TEXT).gpt_oss(window=1.5, sinks=torch.ones(2))
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["unknown-parameter", "parameter-type", "missing-parameter"]


@pytest.mark.parametrize("value", [True, 3.0, "3", None, torch.tensor(3), [3], 3j])
def test_what_is_no_int(value: object) -> None:
    code = "missing-parameter" if value is None else "parameter-type"
    with pytest.raises(CallError, match=code):
        ad.parse("attention a(n: int) {\n    mask  q_idx < n\n}").a(n=value)


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3), np.int64(3)])
def test_what_is_an_int(value: object) -> None:
    attention = ad.parse("attention a(n: int) {\n    mask  q_idx < n\n}").a(n=value)
    assert attention.plan(4, block=(1, 4)).counts == {"full": 3, "partial": 0, "empty": 1}


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2)])
def test_what_is_a_float(value: object) -> None:
    attention = ad.parse("attention a(c: float) {\n    score  c * tanh(score / c)\n}").a(c=value)
    q, k, v = qkv()
    expected = (2 * (q @ k.transpose(-1, -2) / 8**0.5 / 2).tanh()).softmax(-1) @ v
    torch.testing.assert_close(attention.reference(q, k, v), expected)


def test_defaults_are_those_of_the_text() -> None:
    declared = ad.parse(TEXT).gpt_oss
    sink = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(declared(sink=sink).reference(*qkv()), declared(sink=sink, window=3, cap=30).reference(*qkv()))
    assert not torch.equal(declared(sink=sink).reference(*qkv()), declared(sink=sink, window=2).reference(*qkv()))


def test_a_name_that_is_not_there() -> None:
    parsed = ad.parse(TEXT)
    assert not hasattr(parsed, "gptoss")
    with pytest.raises(AttributeError):
        parsed.gptoss  # noqa: B018
    with pytest.raises(ProgramError, match="unknown-attention"):
        parsed.gptoss  # noqa: B018


def test_names_that_are_words_of_python() -> None:
    parsed = ad.parse(
        "attention class(lambda: int, tl: tensor[H]) {\n    mask  q_idx < lambda\n    score  score + tl[h]\n}"
    )
    attention = getattr(parsed, "class")(**{"lambda": 3, "tl": torch.zeros(2)})
    assert attention.source().startswith('"""')
    compile(attention.source(), "class.py", "exec")


def test_copies_and_pickles() -> None:
    parsed = ad.parse(TEXT)
    for made in (copy.copy(parsed), copy.deepcopy(parsed), pickle.loads(pickle.dumps(parsed))):
        assert made.gpt_oss.fingerprint == parsed.gpt_oss.fingerprint
        assert torch.equal(made.causal.reference(*qkv()), parsed.causal.reference(*qkv()))
        assert type(made.causal) is Declaration


def test_text_never_runs_code(tmp_path: Path) -> None:
    """What would be calls, attributes and imports in Python are names that do not exist."""
    marker = tmp_path / "ran"
    for expression in (f"open('{marker}', 'w')", "__import__(os)", "q_idx.__class__", f"system(touch + {marker.name})"):
        with pytest.raises(ProgramError):
            ad.parse(f"attention a {{\n    mask  {expression}\n}}")
    assert not marker.exists()


# Files.


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ad.load(tmp_path / "missing.attn")
    with pytest.raises(IsADirectoryError):
        ad.load(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.attn"
    path.write_bytes(TEXT.encode() + b"\xff\xfe")
    with pytest.raises(ProgramError, match=r"byte 0xff at offset \d+"):
        ad.load(path)
    path.write_bytes(TEXT.encode().replace(b"q_idx", b"q\x00idx"))
    with pytest.raises(ProgramError, match="nul-byte"):
        ad.load(path)


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()], ids=["mark", "crlf"]
)
def test_files_of_other_systems(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "two.attn"
    path.write_bytes(data)
    assert ad.load(path).causal.fingerprint == ad.parse(TEXT).causal.fingerprint


def test_a_text_of_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "large.attn"
    path.write_text(TEXT + f"# {'comment ' * 12}\n" * 10_000)
    assert ad.load(path).causal.name == "causal"
    path.write_text(TEXT + f"# {'comment ' * 12}\n" * 11_000)
    with pytest.raises(ProgramError, match="text-too-large"):
        ad.load(path)


def test_errors_name_the_file_and_emitted_text_its_base_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.attn"
    path.write_text("attention a {\n    mask  q_idx\n}")
    with pytest.raises(ProgramError) as caught:
        ad.load(path)
    assert f"--> {path}:2:11" in str(caught.value)
    path.write_text(TEXT)
    source = ad.load(path).causal.source()
    assert "# mine.attn:3" in source
    assert os.fspath(tmp_path) not in source
