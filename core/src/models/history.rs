//! The tokens of a cache whose model rotates long sequences otherwise than short ones (LongRoPE). A
//! sequence that crosses the original context, in either direction, has other keys from its first
//! token on; then its cache is computed anew from these tokens.

use crate::{error::Result, mlx};
use mlx_rs::{Array, ops, transforms::async_eval};

/// From this number of pieces on they become one.
const PIECES: usize = 256;

/// The tokens of one row of a cache.
#[derive(Clone)]
pub(super) struct History {
    /// Ids `[1, length]`, in the order of the sequence.
    pieces: Vec<Array>,
    /// Whether the entries of the cache are those of a sequence beyond the original context; nothing
    /// when they are of both kinds.
    pub is_long: Option<bool>,
}

impl History {
    /// Of an empty cache.
    pub fn new(is_long: bool) -> Self {
        History { pieces: Vec::new(), is_long: Some(is_long) }
    }

    /// Of a cache that was read from a file.
    pub fn of(tokens: Array, is_long: Option<bool>) -> Self {
        History { pieces: vec![tokens], is_long }
    }

    /// Adds ids `[1, length]`, which may still be on their way through the device.
    pub fn push(&mut self, ids: Array) -> Result<()> {
        self.pieces.push(ids);
        if self.pieces.len() >= PIECES {
            let whole = ops::concatenate(&self.pieces, 1)?;
            async_eval([&whole])?;
            self.pieces = vec![whole];
        }
        Ok(())
    }

    /// Keeps the first `count` tokens.
    pub fn truncate(&mut self, count: i32) -> Result<()> {
        let mut length: i32 = self.pieces.iter().map(|piece| piece.dim(1)).sum();
        while length > count {
            let Some(piece) = self.pieces.pop() else { break };
            length -= piece.dim(1);
            if length < count {
                self.pieces.push(mlx::slice(&piece, 1, 0, count - length)?.contiguous()?);
                break;
            }
        }
        Ok(())
    }

    /// All tokens, `[1, length]`.
    pub fn tokens(&self) -> Result<Array> {
        Ok(match &self.pieces[..] {
            [whole] => whole.clone(),
            pieces => ops::concatenate(pieces, 1)?,
        })
    }
}
