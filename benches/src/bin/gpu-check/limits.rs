//! The card's own limits, measured before anything is held to them, and the share that a run reaches.

use crate::report::Row;

/// What `bench/limits` measured.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// Bytes a second, read and written, of a copy within the card.
    copy: Option<f64>,
    /// Operations a second of a large product in bf16.
    matrix: Option<f64>,
}

impl Limits {
    /// Takes a limit from a row that has one, and gives a row with work its share.
    pub(crate) fn judge(&mut self, check: &str, row: &mut Row) {
        if check == "bench/limits" {
            match (&*row.what, row.value) {
                (COPY, Some(value)) => self.copy = Some(1e9 * value),
                (MATRIX, Some(value)) => self.matrix = Some(1e12 * value),
                _ => {}
            }
        }
        let (Some(work), Some(copy), Some(matrix)) = (row.work, self.copy, self.matrix) else {
            return;
        };
        let (memory, arithmetic) = (work.bytes / copy, work.operations / matrix);
        row.share = Some(memory.max(arithmetic) / work.seconds);
        row.detail += if memory < arithmetic { " [arithmetic]" } else { " [memory]" };
    }
}

/// The row of the copy, in GB/s.
pub(crate) const COPY: &str = "copy within the device";
/// The row of the product, in TFLOP/s.
pub(crate) const MATRIX: &str = "large product in bf16";
