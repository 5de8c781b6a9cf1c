"""The command line: `attndsl show | check | plan | compile | export | cache`.

In: `.attn` files (`FILE`, or `FILE:name` where a file holds several attentions) and Python objects (`module:object`).
Out: text on standard output, coloured on a terminal and plain in a pipe; mistakes on standard error, exit status 1.
Reading text needs neither torch nor triton, so everything that does is imported where it is used.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attndsl.cli_cache import cache_commands
from attndsl.diagnostics import Diagnostic, DiagnosticError, ProgramError, fail
from attndsl.version import __version__

if TYPE_CHECKING:
    from attndsl.attention import Attention
    from attndsl.ir.variant import Variant

SUFFIX = ".attn"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
SHOWN_INSTRUCTIONS = 6

dtype_option = click.option("--dtype", type=click.Choice(list(DTYPES)), default="bf16", show_default=True)
head_dim_option = click.option("--head-dim", type=click.IntRange(1, 256), default=128, show_default=True)
v_head_dim_option = click.option("--v-head-dim", type=click.IntRange(1, 256), help="Where values are of another size.")


class Commands(click.Group):
    """The commands; a user's mistake in any of them ends in its diagnostics and exit status 1, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DiagnosticError as error:
            report(error.diagnostics)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Write an attention variant as mathematics over coordinates; look at what becomes of it."""


@main.command()
@click.argument("target", metavar="FILE|MODULE:OBJECT")
@click.option("--stage", type=click.Choice(["text", "ir", "plan", "triton", "cpp"]), default="text", show_default=True)
@click.option("--after", metavar="PASS", help="With --stage ir: the program after this pass instead of the last one.")
@click.option("--kernel", default="forward", show_default=True)
@dtype_option
@head_dim_option
@v_head_dim_option
def show(
    target: str, stage: str, after: str | None, kernel: str, dtype: str, head_dim: int, v_head_dim: int | None
) -> None:
    """Print a variant: its text, its IR after a pass, the kernel's plan, or the Triton or C++ it becomes."""
    from attndsl.codegen.plan import Target
    from attndsl.compiler import describe_plan, emit_source
    from attndsl.ir.printer import print_variant
    from attndsl.passes.pipeline import run_passes

    if after is not None and stage != "ir":
        raise click.UsageError("--after goes with --stage ir")
    if dtype == "fp64" and stage == "triton":
        raise click.UsageError("--dtype fp64 goes with --stage cpp: Triton kernels take bf16, fp16 and fp32")
    variant = variant_of(target)
    match stage:
        case "text":
            emit(print_variant(variant), "attn")
        case "ir":
            emit(print_variant(run_passes(variant, after)), "attn")
        case "plan":
            emit(describe_plan(variant, kernel, dtype, head_dim, v_head_dim), "attn")
        case _:
            language = "python" if stage == Target.TRITON.value else "cpp"
            emit(emit_source(variant, kernel, dtype, head_dim, v_head_dim, Target(stage)), language)


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def check(files: tuple[str, ...]) -> None:
    """Report every mistake in these files."""
    found: list[Diagnostic] = []
    for file in files:
        try:
            names = ", ".join(variant.name for variant in variants_in(Path(file)))
        except DiagnosticError as error:
            found.extend(error.diagnostics)
        else:
            click.echo(f"{file}: {names}")
    if found:
        raise ProgramError(found)


@main.command()
@click.argument("target", metavar="FILE|MODULE:OBJECT")
@click.option("--q-len", type=click.IntRange(min=0), required=True)
@click.option("--kv-len", type=click.IntRange(min=0), help="The same as --q-len unless given.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--heads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--block", default="128,128", show_default=True, metavar="Q,KV", callback=lambda _c, _p, v: tile(v))
@click.option("--q-offset", type=int, default=0, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter: a number or a JSON list.")
def plan(target: str, settings: tuple[str, ...], q_len: int, kv_len: int | None, **where: Any) -> None:
    """Draw which tiles are computed, which need their mask, and which are skipped."""
    attention = attention_of(target)
    if settings:
        attention = attention.bind(**dict(map(setting, settings)))
    click.echo(str(attention.plan(q_len, kv_len, **where)))


@main.command("compile")
@click.argument("spec", metavar="FILE|MODULE:OBJECT")
@click.option("--target", default="cuda:90", show_default=True, help="cuda:80, cuda:90, cuda:100, hip:gfx942 or cpu.")
@dtype_option
@head_dim_option
@v_head_dim_option
def compile_(spec: str, target: str, dtype: str, head_dim: int, v_head_dim: int | None) -> None:
    """Compile the kernels ahead of time, with no GPU at hand, and report what they use."""
    import torch
    from rich.console import Console
    from rich.table import Table

    built = attention_of(spec).compile_for(
        target, dtype=getattr(torch, DTYPES[dtype]), head_dim=head_dim, v_head_dim=v_head_dim
    )
    table = Table("kernel", "registers", "spilled bytes", "shared bytes", "instructions", title=f"{spec} on {target}")
    for kernel in built.kernels:
        usage = (kernel.registers, kernel.spilled_bytes, kernel.shared_bytes)
        table.add_row(kernel.name, *map(str, usage), commonest(kernel.instructions))
    Console().print(table)


@main.command()
@click.argument("target", metavar="FILE|MODULE:OBJECT")
@click.argument("path", metavar="PATH")
@dtype_option
@head_dim_option
@v_head_dim_option
def export(target: str, path: str, dtype: str, head_dim: int, v_head_dim: int | None) -> None:
    """Write one Python file that needs torch and triton alone: kernels, gradients, a reference, a test."""
    import torch

    try:
        attention_of(target).export(path, dtype=getattr(torch, DTYPES[dtype]), head_dim=head_dim, v_head_dim=v_head_dim)
    except OSError as error:
        raise fail(ProgramError, "unwritable-file", f"cannot write `{path}`: {error.strerror}") from error
    click.echo(f"{path}: run it to test it; on a machine without a GPU, with TRITON_INTERPRET=1")


main.add_command(cache_commands)


def file_of(target: str) -> tuple[Path, str | None] | None:
    """The file a target names, and the attention in it; nothing where it names a Python object."""
    path, _, name = target.rpartition(":")
    if target.endswith(SUFFIX) or Path(target).is_file():
        return Path(target), None
    if path.endswith(SUFFIX) or Path(path).is_file():
        return Path(path), name
    return None


def variants_in(path: Path) -> tuple[Variant, ...]:
    """The attentions of a file."""
    from attndsl.frontend.parse import read

    try:
        return read(path)
    except OSError as error:
        raise fail(ProgramError, "unreadable-file", f"cannot read `{path}`: {error.strerror}") from error


def variant_of(target: str) -> Variant:
    """The program a target names."""
    file = file_of(target)
    return object_at(target).variant if file is None else chosen(*file)


def chosen(path: Path, name: str | None) -> Variant:
    """The attention of that name in a file; the only one where none is named."""
    variants = variants_in(path)
    found = [variant for variant in variants if name in (None, variant.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"`{variant.name}`" for variant in variants)
    problem = "holds several attentions" if name is None else f"has no attention `{name}`"
    help_ = f"name one, e.g. `{path}:{variants[0].name}`"
    raise fail(ProgramError, "which-attention", f"`{path}` {problem}", None, f"it has {names}", help=help_)


def attention_of(target: str) -> Attention:
    """The attention a target names."""
    file = file_of(target)
    if file is None:
        return object_at(target)
    name = chosen(*file).name
    from attndsl.loading import load

    attention: Attention = getattr(load(file[0]), name)
    return attention


def object_at(target: str) -> Attention:
    """The attention a Python module holds, modules of the working directory included."""
    module_name, _, attribute = target.partition(":")
    if not attribute:
        help_ = f"give a file (`variant{SUFFIX}`) or a Python object (`package.module:attention`)"
        raise fail(ProgramError, "unknown-target", f"`{target}` is not a file", help=help_)
    from attndsl.attention import Attention

    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there but lacks one of its own imports is the module's affair.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise fail(ProgramError, "unknown-target", f"there is no module `{error.name}`") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise fail(ProgramError, "unknown-target", f"`{module_name}` has no `{attribute}`")
        found = getattr(found, part)
    if not isinstance(found, Attention):
        help_ = "wrap mods: `attn = attndsl.attention(mask_mod=..., score_mod=...)`"
        message = f"`{target}` is a {type(found).__name__}, expected an attention"
        raise fail(ProgramError, "not-an-attention", message, help=help_)
    return found


def tile(text: str) -> tuple[int, int]:
    """`64,128` as the sizes of a tile."""
    sizes = text.split(",")
    if len(sizes) != 2 or not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{text!r} is not two positive numbers, e.g. 128,64", param_hint="--block")
    return int(sizes[0]), int(sizes[1])


def setting(text: str) -> tuple[str, Any]:
    """`window=64` as a name and its value; a JSON list becomes a tensor."""
    name, equals, written = text.partition("=")
    try:
        value = json.loads(written)
    except json.JSONDecodeError:
        value = None
    if not equals or isinstance(value, bool) or not isinstance(value, int | float | list):
        raise click.BadParameter(f"{text!r} is not NAME=NUMBER or NAME=[...]", param_hint="--set")
    if isinstance(value, list):
        import torch

        value = torch.tensor(value)
    return name, value


def commonest(instructions: Mapping[str, int]) -> str:
    """The instructions a kernel has most of."""
    ranked = sorted(instructions.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ranked[:SHOWN_INSTRUCTIONS])


def emit(text: str, language: str) -> None:
    """Print source: with colour on a terminal, byte for byte in a pipe."""
    if sys.stdout.isatty():
        from attndsl.highlight import colour

        text = colour(text, language)
    click.echo(text, nl=not text.endswith("\n"))


def report(diagnostics: Iterable[Diagnostic]) -> None:
    """Print mistakes on standard error, one blank line between them."""
    first = True
    for diagnostic in diagnostics:
        headline, *rest = str(diagnostic).splitlines()
        click.echo(("" if first else "\n") + "\n".join([click.style(headline, fg="red", bold=True), *rest]), err=True)
        first = False
