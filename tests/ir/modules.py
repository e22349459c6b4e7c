"""Module texts that several tests read."""

from __future__ import annotations

CACHE = "kv_cache<layers = 1, kv_heads = 1, head_dim = 2, page = 4, f32>"

FULL = (
    """module @m at kernel {
  weight @w : tensor<2 x 3 x bf16> = file {tensor = "a \\"b\\" \\\\ c\\nd", encoding = "bf16"}
  weight @blocks : tensor<4 x 18 x u8> = file {tensor = "blocks", encoding = "q4_0"}
  weight @q : tensor<4 x 32 x i4> = block_quants @blocks {format = "q4_0"}
  weight @s : tensor<4 x 1 x f16> = block_scales @blocks {format = "q4_0"}
  weight @p : tensor<1 x 320 x u8> = pack @q, @s {format = "i4g32s16"}
  weight @d-1 : tensor<1 x f32> = data {hex = "0000803f"}
  graph @step(%ids: tensor<T x i32>, %x: tensor<T x 4 x f32>, %seq: tensor<T x i32>, %pages: tensor<S x N x i32>, """
    f"%cache: {CACHE}) -> (tensor<T x 2 x f32>, {CACHE}) {{\n"
    """    %0, %1 = rope_angles %ids, @d-1 : tensor<T x 1 x f32>, tensor<T x 1 x f32> in rope
    """
    f"%2, %3 = call %cache, %x, %0, %1, %ids, %seq, %pages "
    f'{{callee = "layer", carried = 2, layer = 0}} : {CACHE}, tensor<T x 4 x f32> in "layers.0 !"\n'
    "    %4 = embed_rows %ids, @p "
    '{buffers = [64], columns = 32, format = "i4g32s16", rows = 4} : tensor<T x 32 x f32> in embed\n'
    "    %5 = swiglu %3 : tensor<T x 2 x f32>\n"
    "    return %5, %2\n  }\n"
    f"  graph @layer(%c: {CACHE}, %x.y: tensor<T x 4 x f32>, %cos: tensor<T x 1 x f32>, %sin: tensor<T x 1 x f32>, "
    "%at: tensor<T x i32>, %seq: tensor<T x i32>, %pages: tensor<S x N x i32>) "
    f"-> ({CACHE}, tensor<T x 4 x f32>) {{\n"
    f"    %0 = concat %x.y {{axis = -1}} : tensor<T x 4 x f32>\n"
    f"    %1 = add %0, %x.y : tensor<T x 4 x f32> in layers.attn\n"
    f"    return %c, %1\n  }}\n}}\n"
)
"""A module with every source, a call, several graphs, a cache and odd names."""
