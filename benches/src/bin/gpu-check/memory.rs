//! Memory: what does not fit is refused by name, and freed pages of the cache are zero.

use chrysalis_kernels::DeviceError;
use chrysalis_kernels::device::{CacheDtype, CacheShape};

use crate::checks::{Check, Context, Outcome};
use crate::common::bits;
use crate::operations::cases;
use crate::report::Row;
use crate::subject::Subject;

pub(crate) fn checks<D: Subject>() -> Vec<Check> {
    vec![
        Check::new("memory/refusal", 30, refusal::<D>),
        Check::new("memory/cleared", 30, cleared::<D>),
    ]
}

/// A cache of a petabyte is refused, by a message that says how much; and then there is still room for a small one.
fn refusal<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let device = &*context.device;
    // Of heads the kernels count four thousand million in a layer.
    let shape = |num_layers, num_blocks| CacheShape {
        num_layers,
        num_blocks,
        block_size: 16,
        num_kv_heads: 8,
        head_dim: 128,
        dtype: CacheDtype::F16,
    };
    let refused = device.cache(shape(1 << 10, 1 << 24));
    let said = refused.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let ok = matches!(refused, Err(DeviceError::OutOfMemory { .. }));
    drop(refused);
    context.note(&Row { detail: said, ..Row::holds("a cache of a petabyte is refused", ok) })?;
    context.note(&Row::holds("and a small one is not", device.cache(shape(32, 4)).is_ok()))?;
    Ok(())
}

/// After its blocks were cleared, a sequence's last token sees what it sees in a cache that nobody wrote to: the same bits. So
/// K and V of every position are zero; and clearing a block of nobody's changes nothing.
fn cleared<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let device = &*context.device;
    let tokens = context.size.pick(40, 75, 75);
    for (n, case) in cases()
        .into_iter()
        .enumerate()
        .filter(|(_, case)| case.tokens == tokens && case.window.is_none())
    {
        let last = |blocks: &[u32]| {
            let all = case.chunks_after(device, &[case.tokens - 1, 1], |cache| {
                device.clear_blocks(cache, blocks);
            });
            bits(&all[all.len() - case.num_heads * case.cache.head_dim..])
        };
        let kept = last(&[]);
        context.note(&Row::holds(format!("case {n}: a block of nobody's"), last(&[0]) == kept))?;
        let zero = last(&case.table());
        context.note(&Row::holds(
            format!("case {n}: cleared blocks"),
            zero != kept && zero == bits(&case.last_alone(device)),
        ))?;
    }
    Ok(())
}
