"""Kernels, bytes and collectives counted by hand in small programs."""

import jax
import jax.numpy as jnp
import pytest

from dpa_jax.compiling import counting


def counted(entry, *computations):
    """Returns the cost of a program of some instructions and further computations."""
    body = "\n".join(f"  {line}" for line in entry.strip().splitlines())
    program = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}"
    return counting.count("\n\n".join(["HloModule made", *computations, program]))


ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def test_a_kernel_reads_its_operands_and_writes_its_result():
    found = counted("""
%x = f32[8]{0} parameter(0)
%y = bf16[8]{0} convert(%x)
%z = (bf16[8]{0}, pred[8]{0}) sort(%y, %x), dimensions={0}, to_apply=%add
ROOT %out = bf16[8]{0} get-tuple-element(%z), index=0
""", ADD)  # fmt: skip
    assert found.kernels == 2
    assert found.bytes == (32 + 16) + (16 + 32 + 16 + 8)
    assert found.names == {"y": 1, "z": 1}


LOOP = """
%body.1 (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = f32[8]{0} get-tuple-element(%s), index=1
  %double.7 = f32[8]{0} add(%v, %v)
  ROOT %next = (s32[], f32[8]{0}) tuple(%i, %double.7)
}
"""


def test_a_loop_counts_as_often_as_it_turns():
    found = counted("""
%x = f32[8]{0} parameter(0)
%zero = s32[] constant(0)
%start = (s32[], f32[8]{0}) tuple(%zero, %x)
%loop = (s32[], /*index=1*/f32[8]{0}) while(%start), condition=%c, body=%body.1, \
backend_config={"known_init_step":{"init":"0"},"known_trip_count":{"n":"5"}}
ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
""", LOOP)  # fmt: skip
    assert found.kernels == 5 and found.names == {"double": 5}
    assert found.bytes == 5 * (32 + 32 + 32)


def test_the_condition_of_a_scan_tells_how_often_it_turns():
    condition = """
%below (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
"""
    loop = """
%x = f32[8]{0} parameter(0)
%zero = s32[] constant(0)
%start = (s32[], f32[8]{0}) tuple(%zero, %x)
%loop = (s32[], f32[8]{0}) while(%start), condition=%below, body=%body.1
ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
"""
    assert counted(loop, LOOP, condition).kernels == 12
    unknown = condition.replace("constant(12)", "get-tuple-element(%s), index=0")
    assert counted(loop, LOOP, unknown).kernels == 1


def test_of_a_conditional_the_branch_of_most_kernels_counts():
    branch = """
%{name} (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
{lines}
}}
"""
    short = branch.format(name="short", lines="  ROOT %n = f32[8]{0} negate(%p)")
    lines = "  %a = f32[8]{0} abs(%p)\n  ROOT %n = f32[8]{0} negate(%a)"
    found = counted("""
%x = f32[8]{0} parameter(0)
%i = s32[] parameter(1)
ROOT %out = f32[8]{0} conditional(%i, %x, %x), branch_computations={%short, %long}
""", short, branch.format(name="long", lines=lines))  # fmt: skip
    assert (found.kernels, found.bytes) == (2, 4 * 32)


FUSED = """
%fused (p0: u8[100,64], p1: s32[4], p2: f32[7,4]) -> f32[7,4] {
  %p0 = u8[100,64]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %p2 = f32[7,4]{1,0} parameter(2)
  %all = u8[100,64]{1,0} bitcast(%p0)
  %rows = u8[4,64]{1,0} gather(%all, %p1), offset_dims={1}, slice_sizes={1,64}
  %wide = f32[4,64]{1,0} convert(%rows)
  %zero = f32[] constant(0)
  %sums = f32[4]{0} reduce(%wide, %zero), dimensions={1}, to_apply=%add
  %row = f32[1,4]{1,0} bitcast(%sums)
  %place = s32[] constant(3)
  ROOT %put = f32[7,4]{1,0} dynamic-update-slice(%p2, %row, %place, %place)
}
"""


def test_what_a_fusion_reads_or_writes_a_part_of_counts_by_that_part():
    found = counted("""
%x = u8[100,64]{1,0} parameter(0)
%i = s32[4]{0} parameter(1)
%y = f32[7,4]{1,0} parameter(2)
ROOT %gather_fusion.2 = f32[7,4]{1,0} fusion(%x, %i, %y), kind=kLoop, calls=%fused
""", FUSED, ADD)  # fmt: skip
    # four rows and their numbers read, one row of four numbers written in place
    assert (found.kernels, found.bytes) == (1, 4 * 64 + 16 + 16)
    assert found.names == {"gather_fusion": 1}


def test_a_slice_outside_a_fusion_counts_by_its_part():
    found = counted("""
%x = f32[100]{0} parameter(0)
%i = s32[] parameter(1)
%part = f32[10]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={10}
ROOT %out = f32[100]{0} dynamic-update-slice(%x, %part, %i)
""")
    assert found.bytes == (40 + 4 + 40) + (40 + 4 + 40)


def test_a_part_is_read_and_written_wherever_it_is_kept_meanwhile():
    found = counted("""
%x = f32[100]{0} parameter(0)
%i = s32[] parameter(1)
%part = f32[10]{0:S(1)} dynamic-slice(%x, %i), dynamic_slice_sizes={10}
ROOT %out = f32[100]{0} dynamic-update-slice(%x, %part, %i)
""")
    assert found.bytes == (40 + 4) + (4 + 40)


def test_several_results_of_a_fusion_are_all_written():
    fused = """
%two (p: f32[8]) -> (f32[8], bf16[8]) {
  %p = f32[8]{0} parameter(0)
  %n = f32[8]{0} negate(%p)
  %c = bf16[8]{0} convert(%n)
  ROOT %both = (f32[8]{0}, bf16[8]{0}) tuple(%n, %c)
}
"""
    found = counted("""
%x = f32[8]{0} parameter(0)
%f = (f32[8]{0}, bf16[8]{0}) fusion(%x), kind=kLoop, calls=%two
ROOT %out = f32[8]{0} get-tuple-element(%f), index=0
""", fused)  # fmt: skip
    assert (found.kernels, found.bytes) == (1, 32 + 32 + 16)


def test_tiles_are_filled_up_and_other_memories_are_free():
    found = counted("""
%x = bf16[3,130]{1,0:T(8,128)(2,1)} parameter(0)
%near = bf16[3,130]{1,0:T(8,128)(2,1)S(1)} negate(%x)
ROOT %out = bf16[3,130]{0,1:T(8,128)(2,1)} negate(%near)
""")
    # 8 rows of 256, then 136 columns of 128, read and written once each
    assert (found.kernels, found.bytes) == (2, 2 * 8 * 256 + 2 * 136 * 128)


def test_what_starts_and_ends_apart_counts_once():
    found = counted("""
%x = f32[8]{0} parameter(0)
%begun = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%x)
%near = f32[8]{0:S(1)} copy-done(%begun)
%sent = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%add
%mean = f32[8]{0} all-reduce-done(%sent)
%asked = (f32[8]{0}, f32[16]{0}) all-gather-start(%mean), dimensions={0}
ROOT %out = f32[16]{0} all-gather-done(%asked)
""", ADD)  # fmt: skip
    assert found.kernels == 3
    assert found.bytes == 32 + (32 + 32) + (32 + 64)
    assert found.collectives == {"all-reduce": 1, "all-gather": 1}
    assert found.collective_bytes == 32 + 64


def test_convolutions_are_counted_wherever_they_are():
    fused = """
%inner (p: f32[1,4,4,2], k: f32[3,3,2,2]) -> f32[1,4,4,2] {
  %p = f32[1,4,4,2]{3,2,1,0} parameter(0)
  %k = f32[3,3,2,2]{3,2,1,0} parameter(1)
  ROOT %c = f32[1,4,4,2]{3,2,1,0} convolution(%p, %k), window={size=3x3 pad=1_1x1_1}
}
"""
    found = counted("""
%x = f32[1,4,4,2]{3,2,1,0} parameter(0)
%k = f32[3,3,2,2]{3,2,1,0} parameter(1)
%a = f32[1,4,4,2]{3,2,1,0} fusion(%x, %k), kind=kOutput, calls=%inner
%b = (f32[1,4,4,2]{3,2,1,0}, u8[0]{0}) custom-call(%a, %k), \
custom_call_target="__cudnn$convForward"
%c = f32[1,4,4,2]{3,2,1,0} get-tuple-element(%b), index=0
%space = f32[4]{0} custom-call(), custom_call_target="AllocateBuffer"
ROOT %d = f32[1,4,4,2]{3,2,1,0} convolution(%c, %k), window={size=3x3 pad=1_1x1_1}
""", fused)  # fmt: skip
    assert (found.kernels, found.convolutions) == (3, 3)
    assert found.names == {"a": 1, "__cudnn$convForward": 1, "d": 1}


def test_a_share_of_a_cost_and_the_sum_of_two():
    one = counting.Cost(4, 2, 100, {"all-reduce": 2}, 10, {"a": 4})
    other = counting.Cost(1, 0, 5, {"all-gather": 1}, 5, {"a": 1, "b": 2})
    assert one.times(0.5) + other == counting.Cost(
        3, 1, 55, {"all-reduce": 1, "all-gather": 1}, 10, {"a": 3, "b": 2}
    )


def test_a_program_of_this_xla_is_read():
    def steps(x, index):
        def body(carry, i):
            return jnp.tanh(carry @ carry) + x[i], carry.sum()

        return jax.lax.scan(body, x[0], index)

    given = jax.ShapeDtypeStruct((9, 16, 16), jnp.float32), jnp.zeros(7, jnp.int32)
    found = counting.count(jax.jit(steps).lower(*given).compile().as_text())
    # each of the seven turns at least multiplies two matrices of 1 KiB, and adds one
    assert found.kernels >= 7 * 2
    assert 7 * 6 * 1024 <= found.bytes < 7 * 20 * 1024


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        counting.count("HloModule empty")
