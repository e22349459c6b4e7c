"""Generates readable C from a kernel-level module: one function a kernel shape, one a distinct layer, one step.

Every thread of the pool runs the same step function; kernels split their work by thread number, and a barrier stands
between an op and the first later op that touches the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llamac.analysis.weight_plan import PlacedWeight
from llamac.errors import LlamacError
from llamac.ir.graph import Graph, Module, Op, Weight
from llamac.ir.kv_groups import kv_groups
from llamac.ir.layouts import format_of
from llamac.ir.types import CacheType

from . import abi, group_abi, head_abi, memory_abi, profile_abi, trace_abi
from .emitters import FunctionEmitter
from .encoder_emitters import attention_function, biased_function
from .image_abi import image_declarations, image_exports
from .literals import C_TYPES, c_float, c_format
from .op_table import ProfiledOp
from .qkv_function import qkv_function
from .toolchain import kernel_source

LARGEST_HEAD = 256
"""LLAMAC_MOST_HEAD_DIM of the kernel library."""

MOST_TOKENS = 65536
"""LLAMAC_MOST_TOKEN_PAGES of 256 tokens."""


@dataclass(frozen=True)
class Limits:
    """The sizes that the step function checks its input against."""

    vocab: int
    context: int
    max_tokens: int
    arena_bytes: int
    weight_bytes: int


def generate(
    module: Module,
    placed: list[PlacedWeight],
    limits: Limits,
    title: str,
    trace: bool = False,
    image: Module | None = None,
) -> str:
    """The C source of one self-contained code member; with `trace` it hands out every intermediate value of the step.

    `image` is the image encoder of the model, where it has one.
    """
    return Generator(module, placed, limits, title, trace, image).run()


@dataclass
class Generator:
    """A code member being written: its kernels by name, then a function a graph."""

    module: Module
    placed: list[PlacedWeight]
    limits: Limits
    title: str
    trace: bool = False
    image: Module | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    profiled: list[ProfiledOp] = field(default_factory=list)

    def run(self) -> str:
        self.caches = [g.type for g in kv_groups(self.module.step)]
        widest = max(cache.head_dim for cache in self.caches)
        if widest > LARGEST_HEAD:
            reason = f"heads of {widest} are wider than the attention kernel's {LARGEST_HEAD}"
            raise LlamacError("LLC0605", "attention", reason, "this architecture needs another backend")
        bodies = []
        for name, graph in self.module.graphs.items():
            if name != "step":
                bodies.append(self.function(graph))
        step, encoder = self.function(self.module.step), self.image_functions()
        parts = [
            abi.banner(self.title),
            kernel_source(),
            profile_abi.table(self.profiled),
            group_abi.declarations(self.ranks()),
            abi.declarations(self.limits, self.caches, self.experts(), self.token_ids(), self.merged_width()),
            *([image_declarations(self.image)] if self.image is not None else []),
            *([trace_abi.declarations()] if self.trace else []),
            "/* Kernels of this model: shapes and formats are constants, so the compiler specializes each. */\n",
            *self.kernels.values(),
            *bodies,
            step,
            *encoder,
            abi.exports(),
            head_abi.exports(self.most_top()),
            profile_abi.exports(),
            memory_abi.exports(),
            *([group_abi.exports()] if self.ranks() > 1 else []),
            *([image_exports(self.image)] if self.image is not None else []),
        ]
        return "\n".join(parts)

    def experts(self) -> int:
        """The most experts that a layer chooses from; 0 without mixtures."""
        widths = [op.operands[0].tensor.shape[1] for _, op in self.module.ops() if op.opcode == "route"]
        return max((width for width in widths if isinstance(width, int)), default=0)

    def ranks(self) -> int:
        """Among how many processes the model is divided."""
        found = [op.attributes["ranks"] for _, op in self.module.ops() if op.opcode in ("all_reduce", "all_gather")]
        return max((n for n in found if isinstance(n, int)), default=1)

    def token_ids(self) -> int:
        """How many token ids may be fed: rows of the embedding table. Some may have no logit."""
        rows = [op.attributes["rows"] for _, op in self.module.ops() if op.opcode == "embed_rows"]
        return min((n for n in rows if isinstance(n, int)), default=self.limits.vocab)

    def merged_width(self) -> int:
        """Width of the image embeddings that may stand among the tokens; 0 where none may."""
        widths = [op.result.tensor.shape[1] for _, op in self.module.ops() if op.opcode == "merge_rows"]
        return max((width for width in widths if isinstance(width, int)), default=0)

    def function(self, graph: Graph, module: Module | None = None) -> str:
        return FunctionEmitter(self, module or self.module, graph).run()

    def image_functions(self) -> list[str]:
        """The encoder's functions, the main one last; none for a model without an encoder."""
        image = self.image
        if image is None:
            return []
        graphs = sorted(image.graphs.values(), key=lambda graph: graph is image.main)
        return [self.function(graph, image) for graph in graphs]

    def most_top(self) -> int:
        """How many of a row's best logits the ranking head gives at most; 0 without such a head."""
        counts = [op.attributes["count"] for _, op in self.module.ops() if op.opcode in ("head_dense", "head_grouped")]
        return max((count for count in counts if isinstance(count, int)), default=0)

    def offset(self, weight: Weight) -> int:
        if not hasattr(self, "_offsets"):
            self._offsets = {p.weight: p.offset for p in self.placed}
        return self._offsets[weight]

    def linear(self, op: Op) -> str:
        """The name of the function for this linear's shape and format."""
        fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
        name = f"linear_{fmt.name}_{rows}x{columns}"
        if name not in self.kernels:
            x = "const float *x, size_t ldx" if fmt.is_dense else "llamac_quantized x"
            given = "x, ldx" if fmt.is_dense else "x"
            call = "llamac_linear_dense" if fmt.is_dense else "llamac_linear_grouped"
            self.kernels[name] = (
                f"static __attribute__((noinline)) void {name}(const llamac_thread *th, float *y, size_t ldy, {x}, "
                f"uint32_t rows,\n    const uint8_t *w, const float *residual)\n{{\n"
                f"  {call}(th, y, ldy, {given}, rows, w, {rows}, {columns}, {c_format(fmt)}, residual);\n}}\n"
            )
        return name

    def gated_linear(self, op: Op, out_group: int = 0) -> str:
        """The function for gate, up and their activation; `out_group` is the group of the weight that follows."""
        fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
        assert isinstance(rows, int)
        name = f"gated_{fmt.name}_{rows // 2}x{columns}" + (f"_g{out_group}" if out_group else "")
        if fmt.is_dense:
            given, call, passed = "float *y, size_t ldy, const float *x, size_t ldx", "dense", "y, ldy, x, ldx"
        else:
            given, call, passed = "llamac_quantized y, llamac_quantized x", "grouped", "y, x"
        last = "" if fmt.is_dense else f", {out_group}"
        self.kernels[name] = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, {given},\n"
            f"    uint32_t rows, const uint8_t *w)\n{{\n"
            f"  llamac_gated_{call}(th, {passed}, rows, w, {rows // 2}, {columns}, {c_format(fmt)}{last});\n}}\n"
        )
        return name

    def linear_biased(self, op: Op) -> str:
        """The name of the function for the shape and format of a linear with a bias."""
        name = f"biased_{op.attributes['format']}_{op.attributes['rows']}x{op.attributes['columns']}"
        self.kernels[name] = biased_function(op, name)
        return name

    def attend_tokens(self, op: Op) -> str:
        """The name of the function for the heads and scale of attention to all tokens."""
        width, tokens = op.attributes["head_dim"], op.result.tensor.shape[0]
        assert isinstance(width, int) and isinstance(tokens, int)
        if width > LARGEST_HEAD or tokens > MOST_TOKENS:
            reason = f"{tokens} tokens in heads of {width}, at most {MOST_TOKENS} in heads of {LARGEST_HEAD} can be"
            raise LlamacError("LLC0605", op.location, reason, "this architecture needs another backend")
        name = f"tokens_{op.attributes['heads']}x{width}"
        body = attention_function(op, name)
        if self.kernels.setdefault(name, body) != body:
            raise LlamacError("LLC0605", op.location, "layers scale their attention differently")
        return name

    def group(self, cache: CacheType) -> int:
        """The number of the group of layers that a cache belongs to: groups differ in what their rows see."""
        return [(c.chunk, c.cross) for c in self.caches].index((cache.chunk, cache.cross))

    def expert_linear(self, op: Op) -> str:
        """The name of the function for the experts' shape and format."""
        fmt, rows, columns = format_of(str(op.attributes["format"])), op.attributes["rows"], op.attributes["columns"]
        experts = op.attributes["experts"]
        name = f"experts_{fmt.name}_{experts}x{rows}x{columns}"
        x = "const float *x, size_t ldx" if fmt.is_dense else "llamac_quantized x"
        given = "x, ldx" if fmt.is_dense else "x"
        call = "llamac_expert_dense" if fmt.is_dense else "llamac_expert_grouped"
        self.kernels[name] = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, float *y, size_t ldy, {x},\n"
            f"    const int32_t *offsets, const uint8_t *w)\n{{\n"
            f"  {call}(th, y, ldy, {given}, offsets, w, {rows}, {columns}, {experts}, {c_format(fmt)});\n}}\n"
        )
        return name

    def qkv(self, op: Op) -> str:
        """The name of the function for this projection of q, k and v and what becomes of its heads."""
        body = qkv_function(op, self.group(op.operands[0].cache))
        named = next((name for name, text in self.kernels.items() if text == body.replace("NAME", name)), None)
        if named is None:
            stem = (
                f"qkv_{format_of(str(op.attributes['format'])).name}_{op.attributes['rows']}x{op.attributes['columns']}"
            )
            taken = sum(name.startswith(stem) for name in self.kernels)
            named = f"{stem}_{taken + 1}" if taken else stem
            self.kernels[named] = body.replace("NAME", named)
        return named

    def attention(self, op: Op) -> str:
        """The name of the attention function for this head count, scale and group of layers."""
        heads, scale, cache = op.attributes["heads"], op.attributes["scale"], op.operands[1].cache
        name = f"attention_{heads}x{cache.head_dim}{f'_chunk{cache.chunk}' if cache.chunk else ''}"
        assert isinstance(scale, float)
        body = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, const step_args *s, float *out, "
            f"size_t ld_out,\n    const float *q, size_t ldq, uint32_t layer)\n{{\n"
            f"  llamac_attention(th, out, ld_out, q, ldq, s->tokens, cache_of(s, {self.group(cache)}), layer, {heads}, "
            f"{cache.kv_heads}, {cache.head_dim},\n      {C_TYPES[cache.dtype.name]}, "
            f"{c_float(scale)}, {cache.chunk}, s->positions, s->sequence_of_token);\n}}\n"
        )
        if self.kernels.setdefault(name, body) != body:
            raise LlamacError("LLC0605", op.location, "layers scale their attention differently")
        return name

    def attention_range(self, op: Op) -> str:
        """The name of the function for attention to vision tokens with this head count and scale."""
        heads, scale, cache = op.attributes["heads"], op.attributes["scale"], op.operands[1].cache
        name = f"cross_attention_{heads}x{cache.head_dim}"
        assert isinstance(scale, float)
        body = (
            f"static __attribute__((noinline)) void {name}(const llamac_thread *th, const step_args *s, float *out, "
            f"size_t ld_out,\n    const float *q, size_t ldq, uint32_t layer)\n{{\n"
            f"  llamac_attention_range(th, out, ld_out, q, ldq, s->tokens, cache_of(s, {self.group(cache)}), layer, "
            f"{heads}, {cache.kv_heads}, {cache.head_dim},\n      {C_TYPES[cache.dtype.name]}, "
            f"{c_float(scale)}, s->vision_start, s->vision_stop, s->sequence_of_token);\n}}\n"
        )
        if self.kernels.setdefault(name, body) != body:
            raise LlamacError("LLC0605", op.location, "layers scale their attention differently")
        return name
