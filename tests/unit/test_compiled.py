"""What the compiled HLO says is read as it is meant: loops, groups, products, overlap."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from configs import common
from shortcut_tpu.compiled.analysis import batch_fields
from shortcut_tpu.compiled.collectives import collectives, replica_groups
from shortcut_tpu.compiled.cost import executed_flops, hbm_bytes
from shortcut_tpu.compiled.hlo import Program, arrays
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import Kernel, count_flops, layer_passes

LAYERS, WIDTH, ROWS = 5, 64, 16
MESH = {"data": 4, "tensor": 2}


def program(function, *arguments, **jit):
    return Program.parse(jax.jit(function, **jit).lower(*arguments).compile().as_text())


def shape(dims, mesh=None, spec=None):
    sharding = NamedSharding(mesh, spec or P()) if mesh else None
    return jax.ShapeDtypeStruct(dims, "float32", sharding=sharding)


@pytest.fixture(scope="module")
def mesh(devices):
    return jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * 2)


def network(weights, x):
    return jnp.square(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]).mean()


def test_products_count_as_often_as_the_loop_turns():
    """2 m k n a product, one forward and two backward a layer but the first layer's input."""
    weights, x = shape((LAYERS, WIDTH, WIDTH)), shape((ROWS, WIDTH))
    compiled = program(jax.grad(network), weights, x)
    product = 2 * ROWS * WIDTH * WIDTH
    assert executed_flops(compiled) == pytest.approx(3 * LAYERS * product, rel=0.07)
    assert executed_flops(compiled) == count_flops(jax.grad(network), weights, x)


@pytest.mark.parametrize("method", ["flow_matching", "shortcut", "meanflow"])
def test_an_unrolled_train_step_costs_what_the_shapes_say(method, devices):
    """The compiler's own count, where no loop hides anything from it, to 2 %.

    It counts what is no product, too: little, at DiT-B's width.
    """
    config = common.get_config()
    config.objective.name = method
    config.data.image_size = 8
    config.model.update({"depth": 2, "unroll": 2, "dtype": "float32"})
    experiment = Experiment.from_config(config, devices[:1])
    fields = batch_fields(config)
    counted = experiment.model_flops(fields)
    arguments = (experiment.abstract_state, experiment.abstract_batch(fields))
    compiled = experiment.train_step.lower(*arguments).compile()
    assert compiled.cost_analysis()["flops"] == pytest.approx(counted, rel=0.02)
    assert executed_flops(Program.parse(compiled.as_text())) == pytest.approx(counted, rel=0.02)


def test_the_model_flops_are_those_of_one_device_that_recomputes_nothing(tiny_config, devices):
    fields = batch_fields(tiny_config)
    with tiny_config.unlocked():
        tiny_config.model.remat = "none"
    plain = Experiment.from_config(tiny_config, devices[:1])
    arguments = (plain.abstract_state, plain.abstract_batch(fields))
    expected = count_flops(plain.train_step, *arguments)
    with tiny_config.unlocked():
        tiny_config.model.remat = "full"
        tiny_config.mesh.stride = 2
    other = Experiment.from_config(tiny_config, devices)
    arguments = (other.abstract_state, other.abstract_batch(fields))
    assert count_flops(other.train_step, *arguments) > 1.1 * expected
    assert other.model_flops(fields) == expected


def test_a_layer_gathered_in_a_loop_counts_once_a_turn(mesh):
    weights = shape((LAYERS, WIDTH, WIDTH), mesh, P(None, "data"))
    x = shape((ROWS, WIDTH), mesh, P("data"))

    def gathered(weights, x):
        def layer(h, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            h = jax.lax.with_sharding_constraint(h @ w, NamedSharding(mesh, P("data")))
            return jnp.tanh(h), None

        return jax.lax.scan(layer, x, weights)[0]

    [found] = collectives(program(gathered, weights, x), MESH)
    assert (found.op, found.axis, found.count) == ("all-gather", "data", LAYERS)
    assert found.bytes == WIDTH * WIDTH * 4
    assert found.total_bytes == LAYERS * WIDTH * WIDTH * 4
    assert found.wire_bytes == found.total_bytes * 3 / 4
    assert not found.overlapped


def test_gradients_are_summed_over_the_axes_of_the_rows(mesh):
    weights = shape((LAYERS, WIDTH, WIDTH), mesh)
    x = shape((ROWS, WIDTH), mesh, P(("data", "tensor")))
    compiled = program(jax.grad(network), weights, x, out_shardings=NamedSharding(mesh, P()))
    found = collectives(compiled, MESH)
    assert {(c.op, c.axis, c.group) for c in found} == {("all-reduce", "data+tensor", 8)}
    assert sum(c.total_bytes for c in found) == LAYERS * WIDTH * WIDTH * 4


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=4,'b'=2] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_every_way_of_writing_groups(text, groups):
    line = f"  %r = f32[4]{{0}} all-reduce(%x), channel_id=1, replica_groups={text}, to_apply=%add"
    compiled = Program.parse(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n")
    [instruction] = compiled.computations["main"].instructions
    assert replica_groups(instruction, 8) == groups


OVERLAPPED = """
%start (p: bf16[8,4]) -> (bf16[8,4], bf16[8,16]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %g.1 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %c = (bf16[8,4], bf16[8,16]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}
%step (p: bf16[8,4]) -> bf16[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %g.2 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8]
}
%done (p: bf16[8,4]) -> bf16[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  %g.3 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %c = bf16[8,16]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.1 (p: f32[8,8]) -> f32[2,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %r = f32[8,8]{1,0} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %s = f32[2,8]{1,0} dynamic-slice(%r)
}
ENTRY %main (a: bf16[8,4], b: f32[8,8]) -> f32[2,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %f.1 = (bf16[8,4], bf16[8,16]) fusion(%a), kind=kCustom, calls=%start
  %f.2 = bf16[8,16]{1,0} fusion(%a), kind=kOutput, calls=%step
  %f.3 = bf16[8,16]{1,0} fusion(%a), kind=kCustom, calls=%done
  %q = (f32[8,8]{1,0}, f32[8,8]{1,0}, u32[]) collective-permute-start(%b), channel_id=3, \
source_target_pairs={{0,4},{4,0}}
  %q.1 = f32[8,8]{1,0} collective-permute-done(%q)
  ROOT %f.4 = f32[2,8]{1,0} fusion(%q.1), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_what_the_tpu_compiler_fuses_is_told_apart():
    """A gather spread over three fusions is one; a fused sum of which a part is kept scatters."""
    found = collectives(Program.parse(OVERLAPPED), {"data": 2, "tensor": 4})
    assert [(c.op, c.axis, c.bytes, c.count, c.overlapped) for c in found] == [
        ("all-gather", "tensor", 8 * 16 * 2, 1, True),
        ("collective-permute", "data", 8 * 8 * 4, 1, False),
        ("reduce-scatter", "tensor", 8 * 8 * 4, 1, False),
    ]


SPREAD = """
%start (p: bf16[8,4]) -> (bf16[8,4], bf16[8,16], u32[]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %g.1 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %c = (bf16[8,4], bf16[8,16], u32[]) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}
%step (p: bf16[8,4], q: bf16[8,16], h: f32[8,8]) -> (f32[8,8], bf16[8,4], bf16[8,16]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[8,16]{1,0} parameter(1)
  %h = f32[8,8]{1,0} parameter(2)
  %s = f32[8,8]{1,0} multiply(%h, %h)
  %g.2 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (f32[8,8], bf16[8,4], bf16[8,16]) tuple(%s, %p, %g.2)
}
%done (p: bf16[8,4], q: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[8,16]{1,0} parameter(1)
  %g.3 = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %c = bf16[8,16]{1,0} custom-call(%p, %q, %g.3), custom_call_target="AsyncCollectiveDone"
}
%body (c: (f32[8,8], bf16[8,4], bf16[8,16])) -> (f32[8,8], bf16[8,4], bf16[8,16]) {
  %c = (f32[8,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %h = f32[8,8]{1,0} get-tuple-element(%c), index=0
  %p = bf16[8,4]{1,0} get-tuple-element(%c), index=1
  %q = bf16[8,16]{1,0} get-tuple-element(%c), index=2
  ROOT %f = (f32[8,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) fusion(%p, %q, %h), calls=%step
}
ENTRY %main (a: bf16[8,4], b: f32[8,8]) -> bf16[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %f.1 = (bf16[8,4]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)}) fusion(%a), calls=%start
  %p.1 = bf16[8,4]{1,0} get-tuple-element(%f.1), index=0
  %q.1 = bf16[8,16]{1,0} get-tuple-element(%f.1), index=1
  %i = (f32[8,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) tuple(%b, %p.1, %q.1)
  %w = (f32[8,8]{1,0}, bf16[8,4]{1,0}, bf16[8,16]{1,0}) while(%i), body=%body, \
backend_config={"known_trip_count":{"n":"28"}}
  %p.2 = bf16[8,4]{1,0} get-tuple-element(%w), index=1
  %q.2 = bf16[8,16]{1,0} get-tuple-element(%w), index=2
  ROOT %f.3 = bf16[8,16]{1,0} fusion(%p.2, %q.2), calls=%done
}
"""


def test_a_transfer_that_a_loop_carries_on_is_one():
    """The TPU compiler hides a gather behind all turns of a loop; only the products turn."""
    spread = Program.parse(SPREAD)
    [found] = collectives(spread, {"data": 2, "tensor": 4})
    gathered, part, product = 8 * 16 * 2, 8 * 4 * 2, 8 * 8 * 4
    assert (found.op, found.bytes, found.count, found.overlapped) == (
        "all-gather",
        gathered,
        1,
        True,
    )
    # The part is read and, as the start's result, handed on; the whole is written once.
    assert hbm_bytes(spread) == 2 * part + gathered + 28 * 2 * product


def test_memory_that_is_only_named_is_no_traffic():
    """A buffer is set aside, joined parts are renamed, and of a large array one part is fetched."""
    text = """
ENTRY %main (a: s8[64]) -> s8[64] {
  %a = s8[64]{0} parameter(0)
  %b = f32[12,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %s = ((s8[64]{0}), s8[16]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:16]}
  %d = s8[16]{0:S(1)} slice-done(%s)
  %j = s8[64]{0} custom-call(%d, %d, %d, %d), custom_call_target="ConcatBitcast"
  %c = (s8[64]{0:S(1)}, s8[64]{0}, u32[]) copy-start(%a)
  ROOT %e = s8[64]{0:S(1)} copy-done(%c)
}
"""
    assert hbm_bytes(Program.parse(text)) == 16 + 64


def test_batched_products_written_as_convolutions():
    """The TPU's attention: 4 heads side by side in a padded window, each met by its own kernel."""
    text = """
ENTRY %main (q: f32[2,4,8,16], k: f32[2,4,8,16]) -> f32[2,4,8,8] {
  %q = f32[2,4,8,16]{3,2,1,0} parameter(0)
  %k = f32[2,4,8,16]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,4,8,8]{3,2,1,0} convolution(%q, %k), window={size=2x4 stride=1x3 pad=0_0x0_0 \
lhs_dilate=2x4}, dim_labels=01bf_01oi->01bf
}
"""
    compiled = Program.parse(text)
    assert executed_flops(compiled) == 2 * (2 * 4) * 8 * 8 * 16


WITH_KERNEL = """
%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %attend.1 = bf16[4,8]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"tiles":"{\\"query\\": 4}"
}}, metadata={op_name="jit(step)/while/body/attend/pallas_call"}, backend_config={"body":"TUzv"}
  %y = bf16[4,8]{1,0} add(%attend.1, %x)
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %y)
}
%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %l = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  ROOT %w = (s32[], bf16[4,8]) while(%p), condition=%condition, body=%body
}
"""


def test_kernels_cost_what_their_source_says_or_nothing_is_said():
    """A TPU kernel is opaque, and its metadata runs over several lines of the text."""
    compiled = Program.parse(WITH_KERNEL)
    kernel = Kernel("attend", ((4, 8), (4, 8)))
    assert executed_flops(compiled, {kernel: 100}) == 3 * 100
    # In each turn the kernel reads x twice and writes, and so does the addition behind it.
    assert hbm_bytes(compiled) == 3 * 2 * 3 * (4 * 8 * 2)
    for unknown in ({}, {kernel._replace(operands=((4, 8),)): 100}):
        with pytest.raises(ValueError, match="kernel of unknown cost: Kernel.name='attend'"):
            executed_flops(compiled, unknown)


def test_memory_traffic_counts_the_slices_of_a_loop():
    """A scan reads each layer's weights once, not the whole stack in every turn."""
    weights, x = shape((LAYERS, 256, 256)), shape((8, 256))

    def scanned(weights, x):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0]

    moved = hbm_bytes(program(scanned, weights, x))
    stack = LAYERS * 256 * 256 * 4
    assert stack < moved < 4 * stack


def test_memory_spaces_and_tuples():
    found = arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[]{:T(128)}, pred[4]{0})")
    assert [(a.dims, a.bytes, a.in_hbm) for a in found] == [
        ((2, 3), 12, False),
        ((), 4, True),
        ((4,), 4, True),
    ]


def test_passes_through_the_layers():
    weights, x = shape((LAYERS, WIDTH, WIDTH)), shape((ROWS, WIDTH))
    assert layer_passes([LAYERS], network, weights, x) == 1
    assert layer_passes([LAYERS], jax.jit(jax.grad(network)), weights, x) == 2
    twice = lambda w, x: jax.lax.scan(lambda c, _: (network(w, x) + c, None), 0.0, None, 3)[0]  # noqa: E731
    assert layer_passes([LAYERS], twice, weights, x) == 3
