"""Collectives are counted once, as often as they run: in real programs, and in the forms that TPUs' compilers write."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cmjax.system.collectives import Collective, read_collectives, summarize
from cmjax.system.mesh import make_mesh

TPU = """
HloModule step, is_scheduled=true

%async_computation (param: bf16[48,384]) -> bf16[384,384] {
  %param = bf16[48,384]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[384,384]{1,0:T(8,128)(2,1)} all-gather(%param), frontend_attributes={chain_id="0"}
}

%meanwhile (param.1: bf16[48,384]) -> bf16[384,384] {
  %param.1 = bf16[48,384]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[384,384]{1,0:T(8,128)(2,1)} all-gather(%param.1), frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.6 (input: f32[384,384]) -> f32[48,384] {
  %input = f32[384,384]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[384,384]{1,0:T(8,128)} all-reduce(%input), channel_id=1, to_apply=%add
  ROOT %slice = f32[48,384]{1,0:T(8,128)} dynamic-slice(%all-reduce.3, %index), dynamic_slice_sizes={48,384}
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0:T(128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]{0:T(128)}) parameter(0)
  %sum = (f32[8]{0:T(128)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %permute = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=3
  ROOT %done = f32[8]{0} collective-permute-done(%permute)
}

ENTRY %main (x: bf16[48,384]) -> f32[48,384] {
  %x = bf16[48,384]{1,0:T(8,128)(2,1)} parameter(0)
  %gather = (bf16[48,384], bf16[384,384]) fusion(%x), kind=kCustom, calls=%async_computation
  %more = bf16[384,384] fusion(%x), kind=kOutput, calls=%meanwhile
  %scattered = f32[48,384]{1,0:T(8,128)} fusion(%more), kind=kCustom, calls=%all-reduce-scatter.6
  %loop = (s32[], f32[8]{0:T(128)}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[48,384]{1,0:T(8,128)} copy(%scattered)
}
"""


def test_forms_of_a_tpus_compiler():
    assert summarize(read_collectives(TPU)) == {
        "all-reduce": {"count": 5, "bytes": 5 * 36, "bytes_by_type": {"f32": 5 * 36}},
        "all-gather": {"count": 1, "bytes": 2 * 384**2, "bytes_by_type": {"bf16": 2 * 384**2}},
        "reduce-scatter": {"count": 1, "bytes": 4 * 48 * 384, "bytes_by_type": {"f32": 4 * 48 * 384}},
        "collective-permute": {"count": 5, "bytes": 5 * 32, "bytes_by_type": {"f32": 5 * 32}},
    }


def test_every_kind_in_a_real_program_and_a_loop():
    mesh, rows = make_mesh(fsdp=2), PartitionSpec("data")

    def exchange(x):
        gathered = jax.lax.all_gather(x, "data")
        scattered = jax.lax.psum_scatter(gathered, "data", tiled=True)
        turned = jax.lax.all_to_all(scattered, "data", 1, 1, tiled=True)
        passed = jax.lax.ppermute(turned, "data", [(0, 1), (1, 0)])
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, "fsdp") / 2, None), passed, None, length=7)[0]

    spread = jax.shard_map(exchange, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    text = jax.jit(spread).lower(jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile().as_text()
    one = {"f32": 32 * 32 * 4}
    assert sorted(read_collectives(text), key=lambda one: one.kind) == [
        Collective("all-gather", {"f32": 2 * 32 * 32 * 4}, 1),
        Collective("all-reduce", one, 7),
        Collective("all-to-all", one, 1),
        Collective("collective-permute", one, 1),
        Collective("reduce-scatter", one, 1),
    ]
