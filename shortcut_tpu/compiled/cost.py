"""Counts operations and memory traffic of a compiled program, loops included.

`compiled.cost_analysis()` counts the body of a loop once; these count it as often as it turns.

Usage:
  program = Program.parse(compiled.as_text())
  flops = executed_flops(program, kernel_flops(function, *arguments))
  bytes_moved = hbm_bytes(program)
"""

from collections.abc import Mapping, Set
import math
import re

from shortcut_tpu.compiled import transfers
from shortcut_tpu.compiled.hlo import Array, Computation, Instruction, Program
from shortcut_tpu.training.flops import Kernel

# They name or order what is there already, or stand for what is counted inside them.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
}

_KERNEL_TARGET = 'custom_call_target="tpu_custom_call"'
# The compiler's own calls that only name memory.
_NAMING_TARGETS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')


def executed_flops(program: Program, kernels: Mapping[Kernel, int] | None = None) -> int:
    """Operations of matrix products and convolutions on one device, two a multiply-add.

    What the compiler adds is in it: recomputation, and work done on several devices alike.

    Args:
      program: compiled.
      kernels: what one execution of each Pallas kernel in it costs, from `kernel_flops`.

    Raises:
      ValueError: the program has a kernel of unknown cost.
    """
    total, known = 0, kernels or {}
    for computation, instruction, times in program.executed():
        if instruction.op in ("convolution", "dot"):
            total += times * product_flops(computation, instruction)
        else:
            total += times * (kernel_cost(computation, instruction, known) or 0)
    return total


def kernel_cost(
    computation: Computation, instruction: Instruction, known: Mapping[Kernel, int]
) -> int | None:
    """Operations of a Pallas kernel, None of what is none.

    Raises:
      ValueError: the kernel is of unknown cost.
    """
    if instruction.op != "custom-call" or _KERNEL_TARGET not in instruction.attributes:
        return None
    kernel = _kernel(computation, instruction)
    if kernel not in known:
        raise ValueError(f"the program has a kernel of unknown cost: {kernel}")
    return known[kernel]


def _kernel(computation: Computation, call: Instruction) -> Kernel:
    scopes = re.search(r'op_name="([^"]*)/pallas_call"', call.attributes)
    name = scopes[1].rpartition("/")[2] if scopes else call.name
    operands = (computation.by_name[operand].results for operand in call.operands)
    return Kernel(name, tuple(results[0].dims for results in operands))


def product_flops(computation: Computation, product: Instruction) -> int:
    """Operations of one matrix product or convolution, two a multiply-add."""
    left, right = (computation.by_name[name].results[0] for name in product.operands[:2])
    out = product.results[0]
    if product.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        dims = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * out.size * math.prod(left.dims[n] for n in dims)
    return _convolution_flops(product, left, right, out)


def _convolution_flops(product: Instruction, left: Array, right: Array, out: Array) -> int:
    """Only products that meet data count: the TPU writes batched ones as padded convolutions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    assert labels is not None, product.text
    in_labels, kernel_labels, out_labels = labels.groups()
    spatial = sorted(label for label in kernel_labels if label.isdigit())
    meetings = 1
    for position, label in enumerate(spatial):
        meetings *= _meetings(
            _window(product, position),
            left.dims[in_labels.index(label)],
            right.dims[kernel_labels.index(label)],
            out.dims[out_labels.index(label)],
        )
    features_in = right.dims[kernel_labels.index("i")]
    rows = out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    return 2 * meetings * features_in * rows


def _window(product: Instruction, position: int) -> dict[str, int]:
    """stride, low padding and dilations of one spatial dimension."""
    text = product.attribute("window") or ""

    def field(name: str, default: str) -> str:
        match = re.search(rf"\b{name}=([\d_x\-]+)", text)
        return match[1].split("x")[position] if match else default

    return {
        "stride": int(field("stride", "1")),
        "pad": int(field("pad", "0_0").split("_")[0]),
        "lhs_dilate": int(field("lhs_dilate", "1")),
        "rhs_dilate": int(field("rhs_dilate", "1")),
    }


def _meetings(window: dict[str, int], size_in: int, size_kernel: int, size_out: int) -> int:
    """Pairs of kernel and output positions that meet an entry, not padding or a dilation's gap."""
    dilation = window["lhs_dilate"]
    last = (size_in - 1) * dilation
    count = 0
    for kernel in range(size_kernel):
        for out in range(size_out):
            at = out * window["stride"] + kernel * window["rhs_dilate"] - window["pad"]
            count += 0 <= at <= last and at % dilation == 0
    return count


def hbm_bytes(program: Program) -> int:
    """Bytes that one device reads from HBM and writes to it.

    Of an operand that is only sliced the slices count, of a result that is updated in place the
    update. What lies in VMEM does not count. A Pallas kernel counts with each operand once, though
    it may read a block again.
    """
    total = 0
    begun = transfers.started(program)
    for name, times in program.sequential().items():
        computation = program.computations[name]
        for instruction in computation.instructions:
            if instruction.op not in _FREE and not instruction.op.endswith("-done"):
                total += times * _traffic(program, computation, instruction, begun)
    return total


def _traffic(
    program: Program, computation: Computation, instruction: Instruction, begun: Set[str]
) -> int:
    operands = [computation.by_name.get(name) for name in instruction.operands]
    read = [_bytes(operand.results) if operand else 0 for operand in operands]
    if instruction.op == "dynamic-slice":
        return 2 * _bytes(instruction.results)
    if instruction.op == "dynamic-update-slice":
        return 2 * read[1]
    if instruction.op == "custom-call" and any(
        target in instruction.attributes for target in _NAMING_TARGETS
    ):
        return 0
    if instruction.op == "slice-start":
        source, target = instruction.results[:2]
        return target.bytes * (source.in_hbm + target.in_hbm)
    if instruction.op.endswith("-start"):
        return sum(read) + _bytes(_begun(instruction))
    if instruction.op != "fusion":
        return sum(read) + _bytes(instruction.results)
    fused = program.computations[instruction.called[0]]
    parameters = {
        int(re.search(r"parameter\((\d+)\)", i.text)[1]): i  # type: ignore[index]
        for i in fused.instructions
        if i.op == "parameter"
    }
    handed_on = transfers.carried_on(fused, begun)
    total = 0
    for number, size in enumerate(read):
        parameter = parameters.get(number)
        if parameter is not None:
            size = min(size, _read_of(program, fused, parameter, handed_on))
        total += size
    return total + _written_by(fused, instruction, handed_on)


def _begun(start: Instruction) -> tuple[Array, ...]:
    """What an asynchronous operation will have made; a start's results list operands, too."""
    results, operands = start.results, len(start.operands)
    if start.op == "copy-start":
        return results[:1]
    return results[operands : 2 * operands] or results


def _read_of(
    program: Program, fused: Computation, parameter: Instruction, handed_on: Set[str]
) -> int:
    total = 0
    for user in fused.users[parameter.name]:
        if user.name in handed_on:
            continue
        if user.op == "dynamic-slice":
            total += sum(a.bytes for a in user.results)
        elif user.op == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.op == "bitcast":
            total += _read_of(program, fused, user, handed_on)
        elif user.op == "fusion":
            inner = program.computations[user.called[0]]
            position = user.operands.index(parameter.name)
            total += next(
                _read_of(program, inner, i, handed_on)
                for i in inner.instructions
                if i.op == "parameter" and f"parameter({position})" in i.text
            )
        else:
            return sum(a.bytes for a in parameter.results)
    return total


def _written_by(fused: Computation, instruction: Instruction, handed_on: Set[str]) -> int:
    root = fused.root
    if root.name in handed_on and root.op != "tuple":
        return 0
    outputs = [fused.by_name[name] for name in root.operands] if root.op == "tuple" else [root]
    if len(outputs) != len(instruction.results):
        return _bytes(instruction.results)
    total = 0
    for output, result in zip(outputs, instruction.results, strict=True):
        while output.op == "bitcast" and output.operands[0] in fused.by_name:
            output = fused.by_name[output.operands[0]]
        if handed_on and (output.name in handed_on or output.op == "parameter"):
            continue
        size = result.bytes if result.in_hbm else 0
        if output.op == "dynamic-update-slice":
            update = fused.by_name[output.operands[1]]
            size = min(size, sum(a.bytes for a in update.results))
        total += size
    return total


def _bytes(results: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in results if array.in_hbm)
