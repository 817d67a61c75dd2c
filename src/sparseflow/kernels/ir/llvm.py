"""LLVM IR of what TVM has no name for: the functions that kernels on slots call, on vectors of slots of 32 bits.

They are ``linkonce_odr``, as every kernel of a module brings its own copy, and always inlined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

PAIRS = r"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define linkonce_odr <16 x float> @sparseflow_dot_bfloat16(<16 x float> %sum, <16 x i32> %x, <16 x i32> %w)
    alwaysinline nounwind {
  %a = bitcast <16 x i32> %x to <32 x bfloat>
  %b = bitcast <16 x i32> %w to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}

define linkonce_odr <16 x i32> @sparseflow_pair_bfloat16(<16 x float> %low, <16 x float> %high)
    alwaysinline nounwind {
  %a = fptrunc <16 x float> %low to <16 x bfloat>
  %b = fptrunc <16 x float> %high to <16 x bfloat>
  %c = bitcast <16 x bfloat> %a to <16 x i16>
  %d = bitcast <16 x bfloat> %b to <16 x i16>
  %e = zext <16 x i16> %c to <16 x i32>
  %f = zext <16 x i16> %d to <16 x i32>
  %g = shl <16 x i32> %f, splat (i32 16)
  %h = or <16 x i32> %e, %g
  ret <16 x i32> %h
}
"""
"""Pairs of bfloat16: vdpbf16ps, and two roundings joined in one slot."""

EXPAND = """
declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)

define linkonce_odr <16 x i32> @sparseflow_expand_int8(ptr %start, i64 %at, i64 %mask) alwaysinline nounwind {
  %p = getelementptr i8, ptr %start, i64 %at
  %v = load <64 x i8>, ptr %p, align 1
  %m = bitcast i64 %mask to <64 x i1>
  %e = call <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8> %v, <64 x i8> zeroinitializer, <64 x i1> %m)
  %r = bitcast <64 x i8> %e to <16 x i32>
  ret <16 x i32> %r
}
"""
"""vpexpandb: bytes that lie behind each other, put where a mask of 64 bits has ones; zeros in between."""
DECODE = """
declare <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8>, <64 x i8>)
declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)

define linkonce_odr <16 x i32> @sparseflow_decode_int8(ptr %start, i64 %at, i64 %mask, <16 x i32> %table)
    alwaysinline nounwind {
  %p = getelementptr i8, ptr %start, i64 %at
  %v = load <32 x i8>, ptr %p, align 1
  %w = zext <32 x i8> %v to <32 x i16>
  %h = shl <32 x i16> %w, splat (i16 4)
  %o = or <32 x i16> %w, %h
  %n = and <32 x i16> %o, splat (i16 3855)
  %i = bitcast <32 x i16> %n to <64 x i8>
  %t = bitcast <16 x i32> %table to <64 x i8>
  %d = call <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8> %t, <64 x i8> %i)
  %m = bitcast i64 %mask to <64 x i1>
  %e = call <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8> %d, <64 x i8> zeroinitializer, <64 x i1> %m)
  %r = bitcast <64 x i8> %e to <16 x i32>
  ret <16 x i32> %r
}
"""
"""The same for codes of 4 bits, the first in the low half of a byte, whose bytes vpshufb finds in a table of 16."""


def quads(lanes: int, features: Collection[str] = ()) -> str:
    """Quads of bytes on vectors of ``lanes`` slots.

    ``sparseflow_quad_uint8`` joins four float vectors, each rounded to the nearest whole number, ties to even, and
    saturated to a byte. With the ``features`` of a processor ``sparseflow_dot_uint8`` adds the products of the four
    bytes of a slot, in the map unsigned and in the weight signed.
    """
    return JOIN[lanes] + (_dot(lanes, features) if features else "")


def turned(lanes: int) -> str:
    """Four vectors of slots turned in each four lanes, so that a slot holds one channel of all four.

    ``sparseflow_turned_N`` gives what becomes of lane N, channel by channel, ``sparseflow_turned_back`` of `quads`
    brings rounded results back; ``sparseflow_repeated`` reads four slots for each four lanes.
    """
    octets, words, i32 = f"<{4 * lanes} x i8>", f"<{2 * lanes} x i16>", f"<{lanes} x i32>"
    found = [
        f"""
define linkonce_odr {i32} @sparseflow_repeated(ptr %p) alwaysinline nounwind {{
  %q = load <4 x i32>, ptr %p, align 4
  %r = shufflevector <4 x i32> %q, <4 x i32> poison, {i32} <{_indices(i % 4 for i in range(lanes))}>
  ret {i32} %r
}}
"""
    ]

    def interleaved(each: int, half: int) -> str:
        """Indices that take turns between two vectors of parts of ``each``, in one ``half`` of each part."""
        size = each * lanes // 4
        starts = range(half * each // 2, size, each)
        return _indices(i + which * size for s in starts for i in range(s, s + each // 2) for which in (0, 1))

    for lane in range(4):
        found.append(f"""
define linkonce_odr {i32} @sparseflow_turned_{lane}({i32} %a, {i32} %b, {i32} %c, {i32} %d) alwaysinline nounwind {{
  %a8 = bitcast {i32} %a to {octets}
  %b8 = bitcast {i32} %b to {octets}
  %c8 = bitcast {i32} %c to {octets}
  %d8 = bitcast {i32} %d to {octets}
  %ab = shufflevector {octets} %a8, {octets} %b8, <{4 * lanes} x i32> <{interleaved(16, lane // 2)}>
  %cd = shufflevector {octets} %c8, {octets} %d8, <{4 * lanes} x i32> <{interleaved(16, lane // 2)}>
  %ab16 = bitcast {octets} %ab to {words}
  %cd16 = bitcast {octets} %cd to {words}
  %q = shufflevector {words} %ab16, {words} %cd16, <{2 * lanes} x i32> <{interleaved(8, lane % 2)}>
  %r = bitcast {words} %q to {i32}
  ret {i32} %r
}}
""")
    return "".join(found)


def _indices(values: Iterable[int]) -> str:
    return ", ".join(f"i32 {i}" for i in values)


def _dot(lanes: int, features: Collection[str]) -> str:
    if lanes == 4:
        return _neon("usdot", taken=0) if "i8mm" in features else _neon("sdot", taken=128)
    if lanes == 16 or "avxvnni" in features:
        return _vnni(lanes)
    return AVX2_DOT


def _vnni(lanes: int) -> str:
    bits, parts = 32 * lanes, 4 * lanes
    return f"""
declare <{lanes} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{lanes} x i32>, <{parts} x i8>, <{parts} x i8>)

define linkonce_odr <{lanes} x i32> @sparseflow_dot_uint8(<{lanes} x i32> %sum, <{lanes} x i32> %x, <{lanes} x i32> %w)
    alwaysinline nounwind {{
  %a = bitcast <{lanes} x i32> %x to <{parts} x i8>
  %b = bitcast <{lanes} x i32> %w to <{parts} x i8>
  %r = call <{lanes} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{lanes} x i32> %sum, <{parts} x i8> %a, <{parts} x i8> %b)
  ret <{lanes} x i32> %r
}}
"""


AVX2_DOT = r"""
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)

define linkonce_odr <8 x i32> @sparseflow_dot_uint8(<8 x i32> %sum, <8 x i32> %x, <8 x i32> %w)
    alwaysinline nounwind {
  %a = bitcast <8 x i32> %x to <16 x i16>
  %b = bitcast <8 x i32> %w to <16 x i16>
  %even = and <16 x i16> %a, splat (i16 255)
  %odd = lshr <16 x i16> %a, splat (i16 8)
  %up = shl <16 x i16> %b, splat (i16 8)
  %first = ashr <16 x i16> %up, splat (i16 8)
  %second = ashr <16 x i16> %b, splat (i16 8)
  %c = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %even, <16 x i16> %first)
  %d = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %odd, <16 x i16> %second)
  %e = add <8 x i32> %c, %d
  %r = add <8 x i32> %sum, %e
  ret <8 x i32> %r
}
"""
"""In 16 bits, the even bytes and the odd ones: vpmaddubsw would saturate."""


def _neon(instruction: str, taken: int) -> str:
    """One instruction of quads of bytes, those of the map less ``taken``, which `Target.taken_from_levels` tells."""
    return f"""
declare <4 x i32> @llvm.aarch64.neon.{instruction}.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)

define linkonce_odr <4 x i32> @sparseflow_dot_uint8(<4 x i32> %sum, <4 x i32> %x, <4 x i32> %w)
    alwaysinline nounwind {{
  %a = bitcast <4 x i32> %x to <16 x i8>
  %b = bitcast <4 x i32> %w to <16 x i8>
  %c = xor <16 x i8> %a, splat (i8 {taken})
  %r = call <4 x i32> @llvm.aarch64.neon.{instruction}.v4i32.v16i8(<4 x i32> %sum, <16 x i8> %c, <16 x i8> %b)
  ret <4 x i32> %r
}}
"""


def _x86_join(lanes: int, conversion: str, convert: str, family: str, size: str) -> str:
    """With the packing instructions, which work in parts of 128 bits: each then holds four slots by channel."""
    words, octets = f"@llvm.x86.{family}.packssdw{size}", f"@llvm.x86.{family}.packuswb{size}"
    parts = lanes // 4
    order = [
        part * 16 + channel * 4 + slot for part in range(parts) for slot in range(4) for channel in range(4)
    ]
    i32, i16, i8, real = (
        f"<{count} x {t}>" for count, t in zip((lanes, 2 * lanes, 4 * lanes, lanes), KINDS, strict=True)
    )
    return f"""
{conversion}
declare {i16} {words}({i32}, {i32})
declare {i8} {octets}({i16}, {i16})

define linkonce_odr {i16} @sparseflow_rounded({real} %a, {real} %b) alwaysinline nounwind {{
  %c = call {i32} {convert.format("%a")}
  %d = call {i32} {convert.format("%b")}
  %r = call {i16} {words}({i32} %c, {i32} %d)
  ret {i16} %r
}}

define linkonce_odr {i32} @sparseflow_turned_back({real} %a, {real} %b, {real} %c, {real} %d)
    alwaysinline nounwind {{
  %ab = call {i16} @sparseflow_rounded({real} %a, {real} %b)
  %cd = call {i16} @sparseflow_rounded({real} %c, {real} %d)
  %p = call {i8} {octets}({i16} %ab, {i16} %cd)
  %r = bitcast {i8} %p to {i32}
  ret {i32} %r
}}

define linkonce_odr {i32} @sparseflow_quad_uint8({real} %a, {real} %b, {real} %c, {real} %d)
    alwaysinline nounwind {{
  %s = call {i32} @sparseflow_turned_back({real} %a, {real} %b, {real} %c, {real} %d)
  %p = bitcast {i32} %s to {i8}
  %q = shufflevector {i8} %p, {i8} poison, <{4 * lanes} x i32> <{_indices(order)}>
  %r = bitcast {i8} %q to {i32}
  ret {i32} %r
}}
"""


KINDS = ("i32", "i16", "i8", "float")
NEON_JOIN = f"""
declare <4 x i32> @llvm.aarch64.neon.fcvtns.v4i32.v4f32(<4 x float>)
declare <4 x i16> @llvm.aarch64.neon.sqxtn.v4i16(<4 x i32>)
declare <8 x i8> @llvm.aarch64.neon.sqxtun.v8i8(<8 x i16>)

define linkonce_odr <8 x i8> @sparseflow_rounded(<4 x float> %a, <4 x float> %b) alwaysinline nounwind {{
  %c = call <4 x i32> @llvm.aarch64.neon.fcvtns.v4i32.v4f32(<4 x float> %a)
  %d = call <4 x i32> @llvm.aarch64.neon.fcvtns.v4i32.v4f32(<4 x float> %b)
  %e = call <4 x i16> @llvm.aarch64.neon.sqxtn.v4i16(<4 x i32> %c)
  %f = call <4 x i16> @llvm.aarch64.neon.sqxtn.v4i16(<4 x i32> %d)
  %g = shufflevector <4 x i16> %e, <4 x i16> %f, <8 x i32> <{_indices(range(8))}>
  %r = call <8 x i8> @llvm.aarch64.neon.sqxtun.v8i8(<8 x i16> %g)
  ret <8 x i8> %r
}}

define linkonce_odr <4 x i32> @sparseflow_turned_back(<4 x float> %a, <4 x float> %b, <4 x float> %c, <4 x float> %d)
    alwaysinline nounwind {{
  %ab = call <8 x i8> @sparseflow_rounded(<4 x float> %a, <4 x float> %b)
  %cd = call <8 x i8> @sparseflow_rounded(<4 x float> %c, <4 x float> %d)
  %q = shufflevector <8 x i8> %ab, <8 x i8> %cd, <16 x i32> <{_indices(range(16))}>
  %r = bitcast <16 x i8> %q to <4 x i32>
  ret <4 x i32> %r
}}

define linkonce_odr <4 x i32> @sparseflow_quad_uint8(<4 x float> %a, <4 x float> %b, <4 x float> %c, <4 x float> %d)
    alwaysinline nounwind {{
  %ab = call <8 x i8> @sparseflow_rounded(<4 x float> %a, <4 x float> %b)
  %cd = call <8 x i8> @sparseflow_rounded(<4 x float> %c, <4 x float> %d)
  %q = shufflevector <8 x i8> %ab, <8 x i8> %cd, <16 x i32>
      <{_indices(4 * channel + slot for slot in range(4) for channel in range(4))}>
  %r = bitcast <16 x i8> %q to <4 x i32>
  ret <4 x i32> %r
}}
"""
JOIN = {
    16: _x86_join(
        16,
        "declare <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float>, <16 x i32>, i16, i32)",
        "@llvm.x86.avx512.mask.cvtps2dq.512(<16 x float> {}, <16 x i32> zeroinitializer, i16 -1, i32 4)",
        "avx512",
        ".512",
    ),
    8: _x86_join(
        8,
        "declare <8 x i32> @llvm.x86.avx.cvt.ps2dq.256(<8 x float>)",
        "@llvm.x86.avx.cvt.ps2dq.256(<8 x float> {})",
        "avx2",
        "",
    ),
    4: NEON_JOIN,
}
"""By lanes: AVX-512, AVX2 and NEON."""
