"""What the C++ of every kernel has in common: names, statements, the mask and the walk, over one key and a vector of
queries.

In: a `KernelPlan`. Out: lines, for the printers of kernels (`cpp_kernel`, `cpp_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from attndsl.codegen.cpp_expr import CppPrinter
from attndsl.codegen.cpp_names import cpp_name
from attndsl.codegen.cpp_signature import ELEMENTS, arguments, integer_type, real_type, symbols
from attndsl.codegen.cpp_text import HEADERS, PRODUCTS, template_text
from attndsl.codegen.cpp_tiles import block_of
from attndsl.codegen.cpp_walk import CppWalk
from attndsl.codegen.heads import head
from attndsl.codegen.placement import Placement, Statement
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Scalar
from attndsl.ir.rewrite import postorder


@dataclass(frozen=True, slots=True)
class ModuleText:
    """What every template sees: finished lines, nothing to decide. `terms` are the accumulators of the products."""

    header: str
    defines: tuple[str, ...]
    block_m: int
    block_n: int
    before: str
    products: str
    sums: str
    element: str
    head_dim: int
    v_head_dim: int
    terms: int
    members: tuple[str, ...]
    locals: tuple[str, ...]
    row_members: tuple[str, ...]
    row_names: tuple[str, ...]
    row_lines: tuple[str, ...]
    column_members: tuple[str, ...]
    column_names: tuple[str, ...]
    column_lines: tuple[str, ...]
    program_lines: tuple[str, ...]
    walk: tuple[str, ...]
    live_lines: tuple[str, ...]
    live: str
    hides_keys: bool


class CppLines:
    """Prints the parts of a plan that every template arranges.

    `roots` are all expressions of the kernel, `stages` where their values are computed, `leaves` further names,
    `fixed` the values whose names stay as they are, `given` those of row values every vector of queries has.
    """

    PRINTER = CppPrinter

    def __init__(
        self,
        plan: KernelPlan,
        roots: Iterable[Expr],
        stages: Iterable[Placement],
        leaves: Mapping[Expr, str],
        fixed: Iterable[Expr] = (),
        given: Iterable[str] = (),
    ) -> None:
        names, stages = symbols(plan), tuple(stages)
        self.plan = replace(plan, symbols=names)
        self.fixed = frozenset(fixed)
        own: dict[Expr, str] = {build.B: "b", build.H: "h", build.Q: "q_idx", build.K: "kv_idx"}
        own |= {build.Q_LEN: "q_len", build.KV_LEN: "kv_len"}
        own |= {node: names[node.name] for node in postorder(*roots) if isinstance(node, Scalar)}
        self.printer = self.PRINTER(real_type(plan), {**own, **leaves}, names, plan.cheap_division)
        self.loads = LoadStyle(clamped=not plan.spec.fast)
        self.program = self.renamed(line for stage in stages for line in stage.program)
        self.row = self.renamed(line for stage in stages for line in stage.own)
        self.column = self.renamed(line for stage in stages for line in stage.walked)
        self.tile = self.renamed(plan.placement.tile)
        full = {line.value for line in plan.placement.full_tile}
        self.full_tile = tuple(line for line in self.tile if line.value in full)
        self.program_names = names_of(self.program)
        self.row_names = self.program_names | names_of(self.row)
        self.key_names = self.row_names | names_of(self.column)
        self.given = tuple(given)

    def module(self, *, headers: Iterable[str] = (), sums: Iterable[str] = (), terms: int = 1) -> ModuleText:
        """A module but for its functions; `headers` come after the usual ones, `sums` after the products."""
        plan, spec = self.plan, self.plan.spec
        products = PRODUCTS if spec.dtype == "bf16" else PRODUCTS[:1]
        block_m, block_n = block_of(plan)
        return ModuleText(
            header="/* " + head(plan).replace("*/", "* /") + "\n*/",
            defines=(f"#define ATTNDSL_REAL {real_type(plan)}", f"#define ATTNDSL_INTEGER {integer_type(plan)}"),
            block_m=block_m,
            block_n=block_n,
            before=_texts(*HEADERS, *headers),
            products=_texts(*products),
            sums=_texts(*sums),
            element=ELEMENTS[spec.dtype],
            head_dim=spec.head_dim,
            v_head_dim=spec.v_head_dim,
            terms=terms,
            members=tuple(f"{argument.type} {argument.name};" for argument in arguments(plan)),
            locals=tuple(self.locals()),
            row_members=("vint q_idx;", *(f"vreal {name};" for name in self.given), *self.members(self.row)),
            row_names=("q_idx", *self.given, *(line.name for line in self.row)),
            row_lines=tuple(self.statements(self.row, self.program_names)),
            column_members=self.members(self.column),
            column_names=tuple(line.name for line in self.column),
            column_lines=tuple(self.statements(self.column, self.program_names)),
            program_lines=tuple(self.statements(self.program, {})),
            walk=tuple(self.walk()),
            live_lines=tuple(self.live_lines()),
            live=self.live(),
            hides_keys=plan.hides_keys,
        )

    def locals(self) -> Iterator[str]:
        """The arguments the text reads by name."""
        for argument in arguments(self.plan):
            if argument.name == "Q_offset":
                yield "const integer q_offset = args.Q_offset[b];"
            elif argument.local:
                yield f"const {argument.local} {argument.name} = args.{argument.name};".replace("const const", "const")

    def renamed(self, statements: Iterable[Statement]) -> tuple[Statement, ...]:
        """Statements under names nothing else has."""
        names = self.plan.symbols
        return tuple(
            line if line.value in self.fixed else replace(line, name=cpp_name(line.name, names)) for line in statements
        )

    def statements(self, statements: Iterable[Statement], names: Mapping[Expr, str]) -> Iterator[str]:
        known = dict(names)
        for line in statements:
            comment = "" if line.origin is None else f"  // {line.origin}"
            value = self.printer.text(line.value, known, self.loads)
            yield f"const {self.printer.type_of(line.value)} {line.name} = {value};{comment}"
            known[line.value] = line.name

    def members(self, statements: Iterable[Statement]) -> tuple[str, ...]:
        """The members of a record of these values."""
        return tuple(f"{self.printer.type_of(line.value)} {line.name};" for line in statements)

    def live_lines(self) -> Iterator[str]:
        """What a mask is made of, pair by pair."""
        needed = set(postorder(self.plan.mask))
        yield from self.statements((line for line in self.tile if line.value in needed), self.key_names)
        if self.plan.mask is not build.TRUE and self.plan.mask_origin is not None:
            yield f"// {self.plan.mask_origin}"

    def live(self) -> str:
        """The lanes at which a pair is live."""
        if self.plan.mask is build.TRUE:
            return "ALL_LANES"
        names = self.key_names | names_of(self.tile)
        return f"bits_of(vbool({self.printer.named(self.plan.mask, names, self.loads)}))"

    def walk(self) -> Iterator[str]:
        """The walk over the keys."""
        plan = self.plan
        if plan.never:
            return
        guards_ranges = plan.guards_rows or len(plan.walk.ranges) > 1
        row = f"const auto [{', '.join(('q_idx', *self.given, *(line.name for line in self.row)))}] = row; "
        printer = CppWalk(self.printer, self.program_names, self.row_names, row, self.loads, guards_ranges)
        yield from printer.lines(plan.walk)


def _texts(*files: str) -> str:
    return "\n".join(map(template_text, files))


def names_of(statements: Iterable[Statement]) -> dict[Expr, str]:
    """The names of values."""
    return {line.value: line.name for line in statements}
