"""Single machine operations that Python has no word for, as LLVM writes them for any little-endian machine; numba
inlines them.

Places are (contiguous array, index of an element), or for records, which are read where their owner keeps them,
(address, bytes from there); nothing here checks a bound. Whoever calls must know that the bytes are there.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_PREFETCH = [ir.Constant(_I32, value) for value in (0, 2, 1)]
"""To be read, into the second-level cache, data."""
_LANES = ir.VectorType(_I64, 8)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, pointee: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def _splat(builder: Any, value: Any, lanes: Any = _LANES) -> Any:
    nothing = ir.Constant(lanes, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, lanes.count), [0] * lanes.count))


@intrinsic
def load64(typing: Any, source: Any, at: Any) -> Any:
    """The 8 bytes `at` bytes from the address `source` on, as a little-endian uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(builder.add(*arguments), _I64.as_pointer()), align=1)

    return types.uint64(types.uint64, types.int64), generate


@intrinsic
def load8(typing: Any, source: Any, at: Any) -> Any:
    """The byte `at` bytes from the address `source` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(builder.add(*arguments), _I8.as_pointer()))

    return types.uint8(types.uint64, types.int64), generate


@intrinsic
def prefetch128(typing: Any, source: Any, at: Any) -> Any:
    """Ask for the 128 bytes `at` bytes from the address `source` on, to be read soon. A hint: it never faults."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _prefetch(builder, builder.inttoptr(builder.add(*arguments), _I8.as_pointer()), 128)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), generate


@intrinsic
def at_least(typing: Any, array: Any, index: Any, threshold: Any) -> Any:
    """uint64: bit i is set if the magnitude of element `index` + i of an fp32 array, as its bits without the sign,
    is at least the int32 `threshold`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_I32, 64)
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], lanes)
        bits = builder.and_(builder.load(address, align=4), ir.Constant(lanes, [0x7FFFFFFF] * 64))
        return builder.bitcast(builder.icmp_signed(">=", bits, _splat(builder, arguments[2], lanes)), _I64)

    return types.uint64(array, types.intp, types.int32), generate


@intrinsic
def put_ones(typing: Any, target: Any, index: Any, ones_at: Any, base: Any) -> Any:
    """Write eight int64 from `index` of `target` on: `base` plus each byte of the uint64 `ones_at`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, word, base = arguments
        offsets = builder.zext(builder.bitcast(word, ir.VectorType(ir.IntType(8), 8)), _LANES)
        address = _address(context, builder, signature.args[0], array, index, _LANES)
        builder.store(builder.add(offsets, _splat(builder, base)), address, align=8)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint64, types.int64), generate


@intrinsic
def put_positions(typing: Any, target: Any, index: Any, places: Any, word: Any, low_width: Any) -> Any:
    """Eight Elias–Fano positions at once: with i = `index` + t for t in 0..7, target[i] = (places[i] − i) ·
    2^low_width + the t-th field of `low_width` ≤ 8 bits of the uint64 `word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, index, places, word, low_width = arguments
        steps = ir.Constant(_LANES, list(range(8)))
        width = _splat(builder, low_width)
        ranks = builder.add(_splat(builder, index), steps)
        source = _address(context, builder, signature.args[2], places, index, _LANES)
        high = builder.shl(builder.sub(builder.load(source, align=8), ranks), width)
        mask = builder.sub(builder.shl(ir.Constant(_I64, 1), low_width), ir.Constant(_I64, 1))
        low = builder.and_(builder.lshr(_splat(builder, word), builder.mul(width, steps)), _splat(builder, mask))
        address = _address(context, builder, signature.args[0], target, index, _LANES)
        builder.store(builder.or_(high, low), address, align=8)
        return context.get_dummy_value()

    return types.void(target, types.intp, places, types.uint64, types.int64), generate


@intrinsic
def negative(typing: Any, array: Any, index: Any) -> Any:
    """uint64: bit i is set if element `index` + i of an fp32 array has its sign set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_I32, 64)
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], lanes)
        zeros = ir.Constant(lanes, [0] * 64)
        return builder.bitcast(builder.icmp_signed("<", builder.load(address, align=4), zeros), _I64)

    return types.uint64(array, types.intp), generate


@intrinsic
def accumulate64(typing: Any, error: Any, delta: Any, index: Any, beta: Any, maxima: Any, column: Any) -> Any:
    """error = beta · error + delta for 64 elements of fp32 arrays from `index` on, each product and sum rounded, and
    maxima = max(maxima, magnitude as bits) for 64 of an int32 array from `column` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        error, delta, index, beta, maxima, column = arguments
        floats, lanes = ir.VectorType(ir.FloatType(), 64), ir.VectorType(_I32, 64)
        at = _address(context, builder, signature.args[0], error, index, floats)
        change = builder.load(_address(context, builder, signature.args[1], delta, index, floats), align=4)
        product = builder.fmul(_splat(builder, beta, floats), builder.load(at, align=4))
        result = builder.fadd(product, change)
        builder.store(result, at, align=4)
        bits = builder.and_(builder.bitcast(result, lanes), ir.Constant(lanes, [0x7FFFFFFF] * 64))
        most = _address(context, builder, signature.args[4], maxima, column, lanes)
        before = builder.load(most, align=4)
        builder.store(builder.select(builder.icmp_signed(">", bits, before), bits, before), most, align=4)
        return context.get_dummy_value()

    return types.void(error, delta, types.intp, types.float32, maxima, types.intp), generate


@intrinsic
def take_fields(typing: Any, positions: Any, index: Any, low_width: Any) -> Any:
    """uint64: the lowest `low_width` ≤ 8 bits of eight uint64 from `index` on, one after the other."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        positions, index, low_width = arguments
        address = _address(context, builder, signature.args[0], positions, index, _LANES)
        mask = builder.sub(builder.shl(ir.Constant(_I64, 1), low_width), ir.Constant(_I64, 1))
        low = builder.and_(builder.load(address, align=8), _splat(builder, mask))
        shifts = builder.mul(_splat(builder, low_width), ir.Constant(_LANES, list(range(8))))
        kind = ir.FunctionType(_I64, [_LANES])
        join = builder.module.declare_intrinsic("llvm.vector.reduce.or.v8i64", (), kind)
        return builder.call(join, [builder.shl(low, shifts)])

    return types.uint64(positions, types.intp, types.int64), generate


@intrinsic
def magnitude_bits(typing: Any, value: Any) -> Any:
    """The bits of an fp32 number without its sign, as an int32: ordered like the magnitude; NaN above infinity."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.and_(builder.bitcast(arguments[0], _I32), ir.Constant(_I32, 0x7FFFFFFF))

    return types.int32(types.float32), generate


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The fp32 number with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits_of_float(typing: Any, value: Any) -> Any:
    """The 32 bits of an fp32 number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.uint32(types.float32), generate


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """Zeros below the lowest one of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), generate


@intrinsic
def leading_zeros(typing: Any, word: Any) -> Any:
    """Zeros above the highest one of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), generate


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def prefetch256(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the 64 elements of an fp32 array from `index` on, to be changed soon. A hint: it never faults."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _prefetch(builder, _address(context, builder, signature.args[0], arguments[0], arguments[1], _I8), 256)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _prefetch(builder: Any, address: Any, size_bytes: int) -> None:
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    hint = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    for line in range(0, size_bytes, 64):
        builder.call(hint, [builder.gep(address, [ir.Constant(_I64, line)]), *_PREFETCH])


@intrinsic
def put_fields(typing: Any, target: Any, index: Any, word: Any, width: Any) -> Any:
    """Eight uint8 from `index` of `target` on: the eight fields of `width` ≤ 8 bits of the uint64 `word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, index, word, width = arguments
        mask = builder.sub(builder.shl(ir.Constant(_I64, 1), width), ir.Constant(_I64, 1))
        shifts = builder.mul(_splat(builder, width), ir.Constant(_LANES, list(range(8))))
        fields = builder.and_(builder.lshr(_splat(builder, word), shifts), _splat(builder, mask))
        lanes = ir.VectorType(_I8, 8)
        address = _address(context, builder, signature.args[0], target, index, lanes)
        builder.store(builder.trunc(fields, lanes), address, align=1)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.uint64, types.int64), generate


@intrinsic
def not_rising(typing: Any, array: Any, index: Any) -> Any:
    """uint64: bit i is set if element `index` + i of a uint8 array is not smaller than the next one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, kind = ir.VectorType(_I8, 64), signature.args[0]
        array, index = arguments
        after = builder.add(index, ir.Constant(_I64, 1))
        here, following = (
            builder.load(_address(context, builder, kind, array, place, lanes), align=1) for place in (index, after)
        )
        return builder.bitcast(builder.icmp_unsigned(">=", here, following), _I64)

    return types.uint64(array, types.intp), generate


@intrinsic
def _extract_at_once(typing: Any, word: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, _I64])
        return builder.call(builder.module.declare_intrinsic("llvm.x86.bmi.pext.64", (), kind), arguments)

    return types.uint64(types.uint64, types.uint64), generate


def extract_bit_by_bit(word: Any, mask: Any) -> Any:
    """The bits of `word` where `mask` has ones, side by side from the lowest; both uint64."""
    found, place = np.uint64(0), np.uint64(0)
    while mask:
        lowest = mask & (~mask + np.uint64(1))
        if word & lowest:
            found |= np.uint64(1) << place
        place += np.uint64(1)
        mask ^= lowest
    return found


def _has_extract() -> bool:
    """Whether the machine does it in one operation. The first Zens have the operation, and take a loop for it."""
    cpu = binding.get_host_cpu_name()
    return bool(binding.get_host_cpu_features().get("bmi2")) and cpu not in ("znver1", "znver2")


extract = _extract_at_once if _has_extract() else numba.njit(inline="always")(extract_bit_by_bit)
"""`extract_bit_by_bit`, as fast as the machine can."""
