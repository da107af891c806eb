//! Attention of a decode step on NVIDIA GPUs. MLX's own kernel for one query leaves its fast path when there
//! is an attention mask, and a compiled step, which attends over a whole buffer, cannot do without one. The
//! kernel here reads the position instead and attends over the filled entries alone. MLX's kernel for Metal
//! takes masks, so it stays there.

use crate::{
    error::Result,
    mlx::{
        cuda::uses_cuda,
        ffi::{CudaKernel, Launch, Template, apply_cuda_kernel},
    },
};
use mlx_rs::{Array, Dtype};

/// Reads elements 16 bytes at a time.
const HEADER: &str = r"
template <int N, typename T>
__device__ void read_elements(const T* from, float (&to)[N]) {
  constexpr int PACK = 16 / sizeof(T);
  static_assert(N % PACK == 0);
  for (int i = 0; i < N / PACK; ++i) {
    const uint4 bits = reinterpret_cast<const uint4*>(from)[i];
    const T* elements = reinterpret_cast<const T*>(&bits);
    for (int j = 0; j < PACK; ++j) to[i * PACK + j] = float(elements[j]);
  }
}
";
const ATTEND: CudaKernel = CudaKernel {
    name: "decode_attention",
    inputs: &["queries", "keys", "values", "sinks", "position"],
    source: include_str!("decode_attention.cu"),
    header: HEADER,
};
const JOIN: CudaKernel = CudaKernel {
    name: "join_parts",
    inputs: &["parts"],
    source: include_str!("join_parts.cu"),
    header: "",
};

/// Elements of a head that one thread holds at most where a block has 16 warps, for which a multiprocessor has
/// registers then, and where it has 8.
const MOST_ELEMENTS_OF_WIDE_BLOCKS: i32 = 8;
const MOST_ELEMENTS: i32 = 40;
/// The capacity of a KV cache that one thread block attends over. A larger cache is split between blocks, whose
/// partial results are joined.
const ENTRIES_OF_A_PART: i32 = 1024;
const MOST_PARTS: i32 = 32;

/// One query of each row and head over the first entries of a buffer.
pub(crate) struct DecodeAttention<'a> {
    /// `[batch, heads, 1, head_dim]`.
    pub queries: &'a Array,
    /// `[batch, kv_heads, capacity, head_dim]`.
    pub keys: &'a Array,
    /// `[batch, kv_heads, capacity, value_dim]`.
    pub values: &'a Array,
    pub scale: f32,
    /// A score of each head that no value follows, `[heads]`.
    pub sinks: Option<&'a Array>,
    /// The position of the query, `[1]` or `[batch]`: it sees that many entries and one more, or all.
    pub position: &'a Array,
}

impl DecodeAttention<'_> {
    /// The result `[batch, heads, 1, value_dim]`; none where MLX's kernels serve as well or the shapes do
    /// not fit this one.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::error::Error::Mlx).
    pub(crate) fn run(&self) -> Result<Option<Array>> {
        let Some(lanes) = self.lanes().filter(|_| uses_cuda()) else {
            return Ok(None);
        };
        let (queries, keys) = (self.queries, self.keys);
        let (batch, heads, value_dim) = (queries.dim(0), queries.dim(1), self.values.dim(3));
        let warps = match keys.dim(3).max(value_dim) / lanes {
            ..=MOST_ELEMENTS_OF_WIDE_BLOCKS => 16,
            _ => 8,
        };
        let parts = (keys.dim(2) / ENTRIES_OF_A_PART).clamp(1, MOST_PARTS);
        let position = self.position.as_dtype(Dtype::Int32)?;
        let inputs = [queries, keys, self.values, self.sinks.unwrap_or(&position), &position];
        let templates = [
            Template::Type("T", queries.dtype()),
            Template::Integer("D", keys.dim(3)),
            Template::Integer("DV", value_dim),
            Template::Integer("SCALE", self.scale.to_bits() as i32),
            Template::Integer("LANES", lanes),
            Template::Integer("WARPS", warps),
            Template::Boolean("HAS_SINKS", self.sinks.is_some()),
            Template::Boolean("IS_PART", parts > 1),
        ];
        let shape = [batch, heads, 1, value_dim];
        let threads = 32 * warps;
        let grid = [heads * threads, parts, batch];
        if parts == 1 {
            let launch = Launch { shape: &shape, dtype: queries.dtype(), grid, threads };
            return Ok(Some(apply_cuda_kernel(&ATTEND, &inputs, &templates, &launch)?));
        }
        let found = &[batch, heads, parts, value_dim + 2];
        let launch = Launch { shape: found, dtype: Dtype::Float32, grid, threads };
        let found = apply_cuda_kernel(&ATTEND, &inputs, &templates, &launch)?;
        let templates = [Template::Type("T", queries.dtype()), Template::Integer("DV", value_dim)];
        let threads = value_dim.clamp(32, threads);
        let grid = [batch * heads * threads, 1, 1];
        let launch = Launch { shape: &shape, dtype: queries.dtype(), grid, threads };
        Ok(Some(apply_cuda_kernel(&JOIN, &[&found], &templates, &launch)?))
    }

    /// How many threads share a key.
    fn lanes(&self) -> Option<i32> {
        let (queries, keys, values) = (self.queries, self.keys, self.values);
        let dtype = queries.dtype();
        let pack = match dtype {
            Dtype::Float16 | Dtype::Bfloat16 => 8,
            Dtype::Float32 => 4,
            _ => return None,
        };
        let dims = [keys.dim(3), values.dim(3)];
        // The bits of a negative scale would be a negative number, which no name of a kernel can have.
        let is_fit = self.scale.is_sign_positive()
            && keys.dtype() == dtype
            && values.dtype() == dtype
            && queries.dim(3) == keys.dim(3)
            && dims.iter().all(|dim| dim % pack == 0);
        let packs = dims.map(|dim| dim / pack);
        let lanes = 1 << (packs[0] | packs[1]).trailing_zeros().min(5);
        (is_fit && dims.iter().all(|dim| dim / lanes <= MOST_ELEMENTS)).then_some(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;
    use mlx_rs::{
        fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention},
        ops, random,
    };

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn the_kernel_attends_as_mlx_does_under_a_mask() {
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            for (dims, value_dims) in
                [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (512, 512)]
            {
                for (capacity, positions) in
                    [(256, vec![0]), (256, vec![255]), (1024, vec![700]), (512, vec![600, 3, 17])]
                {
                    let batch = positions.len() as i32;
                    let normal = |shape: &[i32]| {
                        let x = random::normal::<f32>(shape, None, None, None).unwrap();
                        x.as_dtype(dtype).unwrap()
                    };
                    let queries = normal(&[batch, 8, 1, dims]);
                    let keys = normal(&[batch, 2, capacity, dims]);
                    let values = normal(&[batch, 2, capacity, value_dims]);
                    let position = Array::from_slice(&positions, &[batch]);
                    for sinks in [None, Some(normal(&[8]))] {
                        let own = DecodeAttention {
                            queries: &queries,
                            keys: &keys,
                            values: &values,
                            scale: 0.3,
                            sinks: sinks.as_ref(),
                            position: &position,
                        };
                        let own = own.run().unwrap().unwrap().as_dtype(Dtype::Float32).unwrap();
                        let slots = ops::arange::<_, i32>(0, capacity, None).unwrap();
                        let mask = slots.le(position.reshape(&[-1, 1, 1, 1]).unwrap()).unwrap();
                        let wide = |x: &Array| x.as_dtype(Dtype::Float32).unwrap();
                        let expected = scaled_dot_product_attention(
                            wide(&queries),
                            wide(&keys),
                            wide(&values),
                            0.3,
                            Some(Mask::Array(&mask)),
                            sinks.as_ref().map(wide).as_ref(),
                        )
                        .unwrap();
                        let difference = own.subtract(&expected).unwrap().abs().unwrap();
                        let difference: Vec<f32> =
                            mlx::to_vec(&difference.max(None).unwrap()).unwrap();
                        let limit = if dtype == Dtype::Float32 { 1e-5 } else { 2e-2 };
                        assert!(
                            difference[0] < limit,
                            "{} {dtype:?} {dims} {positions:?}",
                            difference[0]
                        );
                    }
                }
            }
        }
    }
}
