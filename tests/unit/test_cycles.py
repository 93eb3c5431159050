"""The compiler's cycles are read as it means them: turns of loops, kinds, lines, padding."""

import pytest

from shortcut_tpu.compiled import sources
from shortcut_tpu.compiled.collectives import Collective
from shortcut_tpu.compiled.cycles import (
    ATTENTION,
    COPIES,
    NORMS,
    OPTIMIZER,
    PRODUCTS,
    REST,
    STACKS,
    operations,
    totals,
)
from shortcut_tpu.compiled.estimate import Estimate, estimate_lines, explain_lines
from shortcut_tpu.compiled.hlo import Program
from shortcut_tpu.compiled.roofline import Roofline
from shortcut_tpu.pod.topologies import CHIPS

CHIP = CHIPS["v5e"]


def told(cycles):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


# 5 outer turns of a slice and an inner loop of 7; what is fused carries no cycles of its own.
NESTED = f"""HloModule jit_step, is_scheduled=true

FileNames
1 "{sources._PACKAGE}/models/dit.py"
2 "{sources._PACKAGE}/train_step.py"
3 "/elsewhere/site-packages/optax/transform.py"

FunctionNames
1 "Network.__call__.<locals>.layer"
2 "attention"
3 "layer_norm"
4 "make_train_step.<locals>.train_step"
5 "update"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}}
2 {{file_name_id=1 function_name_id=2 line=20 end_line=20 column=1 end_column=2}}
3 {{file_name_id=1 function_name_id=3 line=30 end_line=30 column=1 end_column=2}}
4 {{file_name_id=2 function_name_id=4 line=40 end_line=40 column=1 end_column=2}}
5 {{file_name_id=3 function_name_id=5 line=50 end_line=50 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=2}}
4 {{file_location_id=4 parent_frame_id=1}}
5 {{file_location_id=5 parent_frame_id=5}}


%sliced (p: bf16[5,16,72], i: s32[]) -> bf16[16,72] {{
  %p = bf16[5,16,72]{{2,1,0}} parameter(0)
  %i = s32[] parameter(1)
  %s = bf16[1,16,72]{{2,1,0}} dynamic-slice(%p, %i), dynamic_slice_sizes={{1,16,72}}
  ROOT %b = bf16[16,72]{{1,0}} bitcast(%s)
}}
%multiplied (a: bf16[16,72], w: bf16[72,128]) -> bf16[16,128] {{
  %a = bf16[16,72]{{1,0}} parameter(0)
  %w = bf16[72,128]{{1,0}} parameter(1)
  ROOT %c = bf16[16,128]{{1,0}} convolution(%a, %w), dim_labels=bf_io->bf
}}
%inner (x: bf16[16,72]) -> bf16[16,72] {{
  %x = bf16[16,72]{{1,0}} parameter(0)
  %p1 = bf16[16,128]{{1,0}} fusion(%x, %x), calls=%multiplied, \
metadata={{op_name="jit(step)/jvp()/dot_general" stack_frame_id=1}}, {told(100)}
  %p2 = bf16[16,128]{{1,0}} fusion(%x, %x), calls=%multiplied, \
metadata={{op_name="jit(step)/jvp()/dot_general" stack_frame_id=2}}, {told(200)}
  %n = f32[16]{{0}} reduce(%x, %x), \
metadata={{op_name="jit(step)/transpose(jvp())/reduce_sum" stack_frame_id=3}}, {told(30)}
  ROOT %y = bf16[16,72]{{1,0}} negate(%x), {told(7)}
}}
%outer (x: bf16[16,72]) -> bf16[16,72] {{
  %x = bf16[16,72]{{1,0}} parameter(0)
  %s = bf16[16,72]{{1,0}} fusion(%x, %x), calls=%sliced, \
metadata={{op_name="jit(step)/while/body/dynamic_slice" stack_frame_id=1}}, {told(4000)}
  ROOT %w = bf16[16,72]{{1,0}} while(%s), body=%inner, \
backend_config={{"known_trip_count":{{"n":"7"}}}}
}}
ENTRY %main (x: bf16[16,72]) -> bf16[16,72] {{
  %x = bf16[16,72]{{1,0}} parameter(0)
  %k = bf16[16,72]{{0,1}} copy(%x), {told(500000)}
  %w = bf16[16,72]{{1,0}} while(%k), body=%outer, backend_config={{"known_trip_count":{{"n":"5"}}}}
  ROOT %u = bf16[16,72]{{1,0}} add(%w, %x), \
metadata={{op_name="jit(step)/add" stack_frame_id=5}}, {told(1000000)}
}}
"""


@pytest.fixture(scope="module")
def found():
    return operations(Program.parse(NESTED), CHIP)


def test_cycles_count_as_often_as_nested_loops_turn(found):
    """Each operation once a turn of every loop around it: 5 outer, 5 x 7 inner."""
    assert totals(found, lambda operation: operation.kind) == {
        OPTIMIZER: 1000000,
        COPIES: 500000,
        STACKS: 5 * 4000,
        ATTENTION: 5 * 7 * 200,
        PRODUCTS: 5 * 7 * 100,
        NORMS: 5 * 7 * 30,
        REST: 5 * 7 * 7,
    }
    assert [o.total for o in found] == sorted((o.total for o in found), reverse=True)


def test_an_operation_s_line_is_the_innermost_of_ours(found):
    """An update of optax is the step's that asked for it."""
    lines = {operation.name: (operation.source, operation.function) for operation in found}
    assert lines["p2"] == ("models/dit.py:20", "attention")
    assert lines["s"] == ("models/dit.py:10", "Network.__call__.<locals>.layer")
    assert lines["u"] == ("train_step.py:40", "make_train_step.<locals>.train_step")
    assert lines["k"] == ("", "")


def test_padding_is_what_whole_tiles_take_beyond_the_product(found):
    """72 of 128 rows of the unit are used; the result's 128 columns fill its lanes."""
    product = next(operation for operation in found if operation.name == "p1")
    assert product.padding == round(2 * 16 * (128 - 72) * 128 / CHIP.bf16_flops * CHIP.clock)
    wider = NESTED.replace("bf16[16,128]{1,0} convolution", "bf16[16,128]{0,1} convolution")
    [product] = [o for o in operations(Program.parse(wider), CHIP) if o.name == "p1"]
    # Its 16 rows now lie along 128 lanes; no operation wastes more than it costs.
    assert product.padding == min(
        round(2 * 16 * (128 * 8 - 72) * 128 / CHIP.bf16_flops * CHIP.clock), product.cycles
    )


def test_the_estimate_is_cycles_and_transfers_that_nothing_hides(found):
    """And no less than any part of the chip needs by itself."""
    one_second = round(CHIP.link_bandwidth)
    alone = Collective("all-gather", "data", one_second, 1, False, 2, "")
    beside = Collective("all-gather", "data", one_second, 2, True, 2, "")
    mesh = ring_of_two()
    roofline = Roofline(CHIP, mxu=0.1, hbm=0.2, ici=1.5, dcn=0.0)
    estimate = Estimate.of(found, [alone, beside], roofline, mesh)
    assert (estimate.waiting, estimate.hidden) == (0.5, 1.0)
    # Milliseconds of computing and half a second of waiting are less than the network needs.
    assert estimate.seconds == 1.5
    faster = Estimate.of(found, [alone, beside], Roofline(CHIP, 0.1, 0.2, 0.3, 0.0), mesh)
    assert faster.seconds == pytest.approx(estimate.cycles / 1.5e9 + 0.5)
    assert faster.mfu(CHIP.bf16_flops * faster.seconds / 4) == pytest.approx(0.25)


def ring_of_two():
    import types

    import numpy as np

    devices = np.array([types.SimpleNamespace(coords=(n, 0)) for n in range(2)])
    return types.SimpleNamespace(axis_names=("data",), devices=devices)


def test_what_people_read_of_it(found):
    roofline = Roofline(CHIP, mxu=1e-4, hbm=1e-4, ici=0.0, dcn=0.0)
    figures = Estimate.of(found, [], roofline, ring_of_two()).figures(CHIP.bf16_flops * 1e-4)
    lines = estimate_lines(figures | {"batch_size": 8, "chips": 2})
    milliseconds = sum(o.total for o in found) / 1.5e6
    assert f"{milliseconds:.4g} ms a call" in lines[0]
    assert f"MFU {10 / milliseconds:.0f} %" in lines[0]
    _, first, *rest = explain_lines(figures)
    assert first.split()[:3] == ["0.667", "65.3%", "1"]
    assert "optimizer and averages; train_step.py:40 add; bf16[16,72]{1,0}" in first
    assert any("models/dit.py:30 backward reduce_sum" in line for line in rest)
    assert len(rest) == len(found) - 1


def test_a_program_of_another_compiler_has_no_estimate(found):
    silent = Program.parse(NESTED.replace("estimated_cycles", "something_else"))
    estimate = Estimate.of(operations(silent, CHIP), [], Roofline(CHIP, 1, 1, 1, 1), ring_of_two())
    assert estimate.figures(1.0) == {}
