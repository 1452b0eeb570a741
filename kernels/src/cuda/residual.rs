//! What waits for the next operation: an `add`, as mostly the norm of its sum is what the next product takes, and then one kernel
//! does both; a product of few rows, as mostly it is added next, and then it adds itself; or a gate and what it gates, as mostly that
//! is what the next product takes, and then they make it; or, while a step is recorded, the rotation of heads, as mostly their attention
//! follows, which then turns them, and that attention, as mostly a product follows, whose rows it then makes. Everything else that is
//! asked for has it done first, so that it shows in nothing but time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Buffer, Cuda, count};
use super::driver::Driver;
use super::gated::Gating;
use super::params::{
    CacheLayer, FewParams, Heads, InputParams, InputRows, LinearParams, RopeStoreParams,
    TokenAttention,
};
use crate::device::{DeviceError, Input};

/// What waits, if anything does.
pub(super) struct Residual<D: Driver>(Mutex<Option<Waiting<D>>>);

enum Waiting<D: Driver> {
    Addition(Addition<D>),
    Product(Box<Product<D>>),
    Rotation(Rotation),
    Attention(Box<Attending>),
}

/// A launch of `rope_store`, as part of a record: that nothing it takes is given back, whoever starts the record makes sure of.
pub(super) struct Rotation {
    pub(super) grid: [u32; 3],
    pub(super) params: RopeStoreParams,
}

/// A launch of attention for a token at a time, likewise as part of a record.
pub(super) struct Attending {
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
    pub(super) params: TokenAttention,
}

/// `sum += input`, with the memory of both, which may be dropped in the meantime.
pub(super) struct Addition<D: Driver> {
    rows: usize,
    pub(super) input: InputParams,
    sum: Arc<D::Memory>,
    _input: Vec<Arc<D::Memory>>,
}

/// A launch for one matrix or two, with all memory that it reads and writes.
pub(super) struct Product<D: Driver> {
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
    pub(super) params: ProductParams,
    /// What is another where it makes a gate, if it can.
    pub(super) gating: Option<Gating>,
    pub(super) rows: usize,
    pub(super) outs: Vec<Arc<D::Memory>>,
    /// What it reads.
    pub(super) reads: Vec<Arc<D::Memory>>,
}

/// Arguments of `linear_few.cu`, or of a kernel for many rows.
pub(super) enum ProductParams {
    Few(FewParams),
    Many(LinearParams),
}

impl<D: Driver> Residual<D> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn replace(&self, waiting: Option<Waiting<D>>) -> Option<Waiting<D>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut slot, waiting)
    }

    /// False where no product waits.
    fn with_product(&self, then: impl FnOnce(&mut Product<D>) -> bool) -> bool {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(Waiting::Product(product)) => then(product),
            _ => false,
        }
    }
}

impl<D: Driver> Product<D> {
    /// Whether it writes so many rows of these, and nothing else.
    fn writes(&self, rows: usize, buffers: &[&Buffer<D>]) -> bool {
        let same = |(out, buffer): (&Arc<_>, &&Buffer<D>)| Arc::ptr_eq(out, &buffer.memory);
        self.rows == rows
            && self.outs.len() == buffers.len()
            && self.outs.iter().zip(buffers).all(same)
    }
}

impl<D: Driver> Cuda<D> {
    /// Keeps an addition for whoever comes next, or has the product that is added do it.
    pub(super) fn wait_to_add(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        sum: &Buffer<D>,
    ) -> Result<(), DeviceError> {
        let made = self.input(rows, input);
        assert_eq!(made.cols as usize, sum.cols, "width of a sum");
        assert!(rows <= sum.rows, "{rows} rows of {}", sum.rows);
        if self.product_adds(rows, input, sum) {
            return self.do_what_waits();
        }
        self.do_what_waits()?;
        if rows > 0 {
            let (sum, _input) = (sum.memory.clone(), memory_of(input));
            let waiting = Addition { rows, input: made, sum, _input };
            self.residual.replace(Some(Waiting::Addition(waiting)));
        }
        Ok(())
    }

    /// Whether the product that waits is what is added, and will add itself: where it reads nothing of the sum.
    fn product_adds(&self, rows: usize, input: Input<'_, Self>, sum: &Buffer<D>) -> bool {
        let Input::Rows(x) = input else { return false };
        self.residual.with_product(|product| {
            let reads_it = product.reads.iter().any(|memory| Arc::ptr_eq(memory, &sum.memory));
            if !product.writes(rows, &[x]) || reads_it {
                return false;
            }
            let ProductParams::Few(params) = &mut product.params else { return false };
            params.sums = sum.address(self.driver());
            product.reads.push(sum.memory.clone());
            true
        })
    }

    /// Whether the products that wait are a gate and what it gates, and make these rows of them, as tiles of f16 or bf16 at this
    /// address.
    pub(super) fn products_gate(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: InputParams,
        half: bool,
        tiles: u64,
    ) -> Result<bool, DeviceError> {
        let Input::Gated { gate, up, .. } = input else { return Ok(false) };
        let gates = self.residual.with_product(|product| {
            product.writes(rows, &[gate, up]) && product.make_gate(made.kind, half, tiles)
        });
        if gates {
            self.do_what_waits()?;
        }
        Ok(gates)
    }

    /// Keeps a product for what is done with it.
    pub(super) fn wait_to_multiply(&self, product: Product<D>) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        self.residual.replace(Some(Waiting::Product(Box::new(product))));
        Ok(())
    }

    /// What waits to be added to these rows, if their norm is what is asked for: the caller adds it. No gate, which a launch of more
    /// blocks makes.
    pub(super) fn take_added(&self, rows: usize, input: Input<'_, Self>) -> Option<Addition<D>> {
        let Input::Normed { x, .. } = input else { return None };
        match self.residual.replace(None) {
            Some(Waiting::Addition(waiting))
                if waiting.rows == rows
                    && waiting.input.kind <= 1
                    && Arc::ptr_eq(&waiting.sum, &x.memory) =>
            {
                Some(waiting)
            }
            other => {
                self.residual.replace(other);
                None
            }
        }
    }

    /// Keeps a rotation for the attention over its heads.
    pub(super) fn wait_to_turn(&self, rotation: Rotation) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        self.residual.replace(Some(Waiting::Rotation(rotation)));
        Ok(())
    }

    /// The heads that wait to be turned, if they are the queries at this address, of so many tokens, and K and V of this layer of a
    /// cache: their attention turns them.
    pub(super) fn take_heads(&self, q: u64, cache: &CacheLayer, tokens: usize) -> Option<Heads> {
        match self.residual.replace(None) {
            Some(Waiting::Rotation(Rotation { grid, params }))
                if (params.heads.q, params.cache.k) == (q, cache.k)
                    && grid[0] as usize == tokens =>
            {
                Some(params.heads)
            }
            other => {
                self.residual.replace(other);
                None
            }
        }
    }

    /// Keeps attention for the product that takes what comes out.
    pub(super) fn wait_to_attend(&self, attending: Attending) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        self.residual.replace(Some(Waiting::Attention(Box::new(attending))));
        Ok(())
    }

    pub(super) fn start_attention(&self, attending: &Attending) -> Result<(), DeviceError> {
        let Attending { kernel, grid, threads, shared, params } = attending;
        self.launch_shared(kernel, *grid, *threads, *shared, params)
    }

    /// Whether attention waits that makes these rows, of all its tokens, as tiles of f16 or bf16 at this address: then it writes nothing
    /// else.
    pub(super) fn attention_makes(
        &self,
        rows: usize,
        made: InputParams,
        half: bool,
        tiles: u64,
    ) -> Result<bool, DeviceError> {
        match self.residual.replace(None) {
            Some(Waiting::Attention(mut waiting))
                if made.kind == 0
                    && waiting.params.attention.out == made.x
                    && waiting.params.attention.end_token as usize == rows =>
            {
                let params = &mut waiting.params;
                (params.tiles, params.tile_rows, params.half) = (tiles, count(rows), half.into());
                self.start_attention(&waiting)?;
                Ok(true)
            }
            other => {
                self.residual.replace(other);
                Ok(false)
            }
        }
    }

    /// Before anything that does not take it along.
    pub(super) fn do_what_waits(&self) -> Result<(), DeviceError> {
        match self.residual.replace(None) {
            None => Ok(()),
            Some(Waiting::Addition(waiting)) => {
                let out = self.driver().address(&waiting.sum);
                let params = InputRows { input: waiting.input, out };
                self.launch("add_rows", waiting.input.grid(waiting.rows), 256, &params)
            }
            Some(Waiting::Rotation(waiting)) => {
                self.launch("rope_store", waiting.grid, 128, &waiting.params)
            }
            Some(Waiting::Attention(waiting)) => self.start_attention(&waiting),
            Some(Waiting::Product(waiting)) => {
                let Product { kernel, grid, threads, shared, params, .. } = &*waiting;
                match params {
                    ProductParams::Few(params) => {
                        self.launch_shared(kernel, *grid, *threads, *shared, params)
                    }
                    ProductParams::Many(params) => {
                        self.launch_shared(kernel, *grid, *threads, *shared, params)
                    }
                }
            }
        }
    }
}

/// What an input reads.
pub(super) fn memory_of<D: Driver>(input: Input<'_, Cuda<D>>) -> Vec<Arc<D::Memory>> {
    match input {
        Input::Rows(x) => vec![x.memory.clone()],
        Input::Normed { x, weight, .. } => vec![x.memory.clone(), weight.memory.clone()],
        Input::Gated { gate, up, .. } => vec![gate.memory.clone(), up.memory.clone()],
    }
}

impl<D: Driver> fmt::Debug for Residual<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Residual")
    }
}
