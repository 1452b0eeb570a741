//! A matrix on its way to the device: its memory is there from the beginning, stored bytes go to a staging area of the device, and
//! kernels pack them from there (`cuda/pack.cu`). The host keeps nothing but what it has of strips that are not whole.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::device::{count, start};
use super::driver::{Driver, Launch};
use super::params::Pack;
use super::weights::{Form, Matrix};
use crate::arrived::Strips;
use crate::device::{DeviceError, Upload};
use crate::dtype::Dtype;

/// The upload of a [`Matrix`].
pub struct Pending<D: Driver> {
    staging: Arc<Staging<D>>,
    kernel: &'static str,
    matrix: Matrix<D>,
    strips: Strips,
}

/// Where stored bytes lie until they are packed: a few areas for all matrices of a load, so that as many threads copy at the same
/// time. What comes next may take the place of what was there at once, as the driver copies and computes in the order in which it
/// was asked.
pub(super) struct Staging<D: Driver> {
    driver: Arc<D>,
    /// Nobody may write between a copy and the kernel that takes it.
    areas: [Mutex<Area<D>>; AREAS],
    next: AtomicUsize,
}

struct Area<D: Driver> {
    memory: D::Memory,
    bytes: usize,
}

impl<D: Driver> Staging<D> {
    /// The area of the load that is under way, with room for `least` bytes; a new one, when it is the first matrix. It is wiped
    /// and given back when the last upload has ended.
    pub(super) fn of(
        current: &Mutex<Weak<Self>>,
        driver: &Arc<D>,
        least: usize,
    ) -> Result<Arc<Self>, DeviceError> {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = least.max(STAGING);
        if let Some(staging) = current.upgrade() {
            for area in &staging.areas {
                let mut area = area.lock().unwrap_or_else(PoisonError::into_inner);
                if area.bytes < bytes {
                    *area = Area::new(&**driver, bytes)?;
                }
            }
            return Ok(staging);
        }
        let area = || Area::new(&**driver, bytes).map(Mutex::new);
        let areas = [area()?, area()?, area()?, area()?];
        let next = AtomicUsize::new(0);
        let staging = Arc::new(Self { driver: driver.clone(), areas, next });
        *current = Arc::downgrade(&staging);
        Ok(staging)
    }

    /// Packs whole strips, as many at a time as there is room for.
    fn pack(&self, upload: &Pending<D>, first: usize, stored: &[u8]) -> Result<(), DeviceError> {
        let (driver, matrix) = (&*self.driver, &upload.matrix);
        let strip_bytes = upload.strips.strip_bytes();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % AREAS;
        let area = self.areas[turn].lock().unwrap_or_else(PoisonError::into_inner);
        let together = area.bytes / strip_bytes * strip_bytes;
        for (n, part) in stored.chunks(together).enumerate() {
            driver.write(&area.memory, 0, part)?;
            let first = first + n * (together / strip_bytes);
            let mut end = first + part.len() / strip_bytes;
            if end == matrix.rows.div_ceil(STRIP) {
                end = end.next_multiple_of(BLOCK / STRIP);
            }
            let params = Pack {
                stored: driver.address(&area.memory),
                records: driver.address(matrix.memory()),
                rows: count(matrix.rows),
                cols: count(matrix.cols),
                first_tile: count(first),
                unused: 0,
            };
            let grid = [count(end - first), count(matrix.cols.div_ceil(256)), 1];
            let launch = Launch { kernel: upload.kernel, grid, threads: 128, shared: 0 };
            start(driver, &launch, &params)?;
        }
        Ok(())
    }
}

impl<D: Driver> Area<D> {
    fn new(driver: &D, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self { memory: driver.reserve("weights on their way", bytes)?, bytes })
    }
}

impl<D: Driver> Pending<D> {
    pub(super) fn new(
        current: &Mutex<Weak<Staging<D>>>,
        driver: &Arc<D>,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self, DeviceError> {
        let strips = Strips::new(dtype, rows, cols, STRIP)?;
        let matrix = Matrix::new(&**driver, Form::of(dtype), rows, cols)?;
        let staging = Staging::of(current, driver, strips.strip_bytes())?;
        Ok(Self { staging, kernel: kernel(dtype), matrix, strips })
    }
}

impl<D: Driver> Upload for Pending<D> {
    type Matrix = Matrix<D>;

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.strips.write(offset, bytes, |first, stored| self.staging.pack(self, first, stored))
    }

    /// Waits: products begin to read weights before the kernels in front of them have ended.
    fn finish(self) -> Result<Matrix<D>, DeviceError> {
        self.strips.finish()?;
        self.staging.driver.finish()?;
        Ok(self.matrix)
    }
}

fn kernel(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "pack_f32",
        Dtype::F16 => "pack_f16",
        Dtype::Bf16 => "pack_bf16",
        Dtype::Q8_0 => "pack_q8_0",
        Dtype::Q4_0 => "pack_q4_0",
        Dtype::Q4_1 => "pack_q4_1",
        Dtype::Q5_0 => "pack_q5_0",
        Dtype::Q5_1 => "pack_q5_1",
        Dtype::Q4K => "pack_q4_k",
        Dtype::Q5K => "pack_q5_k",
        Dtype::Q6K => "pack_q6_k",
        Dtype::F8E4M3 => "pack_f8_e4m3",
    }
}

/// Rows that are packed together: of a record.
const STRIP: usize = 16;
/// Rows up to whose next multiple there are records.
const BLOCK: usize = 64;
/// The largest piece that a load comes in, a segment of a package.
const STAGING: usize = 1 << 20;
/// As many as there are pinned buffers.
const AREAS: usize = 4;

impl<D: Driver> fmt::Debug for Pending<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({:?})", self.matrix)
    }
}

#[cfg(all(test, feature = "cuda-host"))]
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
mod tests {
    use std::thread;

    use super::super::layout::{self, stored};
    use super::super::{Cuda, Emulated};
    use super::*;
    use crate::device::Device as _;

    fn read(device: &Cuda<Emulated>, matrix: &Matrix<Emulated>, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        device.driver().read(matrix.memory(), 0, &mut found).unwrap();
        // There is nothing behind it.
        device.driver().read(matrix.memory(), 0, &mut vec![0; bytes + 1]).unwrap_err();
        found
    }

    #[test]
    fn every_type_is_packed_to_the_byte_in_pieces_of_any_length() {
        for dtype in Dtype::ALL {
            let group = dtype.group_len();
            for (rows, cols) in [(1, 1), (37, 3), (64, 2), (65, 5), (130, 9), (16, 4)] {
                let cols = if group == 1 { cols * 37 } else { cols * group };
                let bytes = stored(dtype, rows, cols);
                let expected = layout::packed(dtype, rows, cols, &bytes);
                assert_eq!(Some(expected.len()), Form::of(dtype).bytes(rows, cols));
                for len in [bytes.len(), 1013, 4096] {
                    let device = Cuda::new(Emulated::default());
                    let upload = device.begin_matrix(dtype, rows, cols).unwrap();
                    // The last piece first.
                    for at in (0..bytes.len()).step_by(len).rev() {
                        upload.write(at, &bytes[at..bytes.len().min(at + len)]).unwrap();
                    }
                    let matrix = upload.finish().unwrap();
                    let found = read(&device, &matrix, expected.len());
                    let same = found == expected;
                    assert!(same, "{dtype:?} {rows} x {cols}, pieces of {len}");
                }
            }
        }
    }

    #[test]
    fn threads_load_many_matrices_through_one_area_which_is_given_back() {
        let device = Cuda::new(Emulated::default());
        let shapes: Vec<_> =
            Dtype::ALL.iter().map(|dtype| (*dtype, 100, 2 * dtype.group_len())).collect();
        let all: Vec<_> =
            shapes.iter().map(|(dtype, rows, cols)| stored(*dtype, *rows, *cols)).collect();
        let uploads: Vec<_> = shapes
            .iter()
            .map(|(dtype, rows, cols)| device.begin_matrix(*dtype, *rows, *cols).unwrap())
            .collect();
        let areas = uploads.iter().map(|upload| Arc::as_ptr(&upload.staging));
        assert!(areas.clone().all(|area| area == Arc::as_ptr(&uploads[0].staging)));
        thread::scope(|scope| {
            for thread in 0..4 {
                let (uploads, all) = (&uploads, &all);
                scope.spawn(move || {
                    for (upload, bytes) in uploads.iter().zip(all) {
                        for (n, piece) in bytes.chunks(977).enumerate().skip(thread).step_by(4) {
                            upload.write(977 * n, piece).unwrap();
                        }
                    }
                });
            }
        });
        let last = Arc::downgrade(&uploads[0].staging);
        let matrices: Vec<_> = uploads.into_iter().map(|upload| upload.finish().unwrap()).collect();
        assert!(last.upgrade().is_none(), "the area outlives the load");
        for (((dtype, rows, cols), bytes), matrix) in shapes.iter().zip(&all).zip(&matrices) {
            let expected = layout::packed(*dtype, *rows, *cols, bytes);
            assert!(read(&device, matrix, expected.len()) == expected, "{dtype:?}");
        }
    }

    #[test]
    fn an_area_grows_to_the_longest_strip_and_takes_more_than_it_holds() {
        let device = Cuda::new(Emulated::default());
        let narrow = device.begin_matrix(Dtype::Bf16, 16, 64).unwrap();
        assert_eq!(narrow.staging.areas[3].lock().unwrap().bytes, STAGING);
        // A strip of more than that, twice, in one piece.
        let cols = 70_001;
        let bytes = stored(Dtype::F32, 32, cols);
        let wide = device.begin_matrix(Dtype::F32, 32, cols).unwrap();
        assert_eq!(narrow.staging.areas[3].lock().unwrap().bytes, 16 * 4 * cols);
        wide.write(0, &bytes).unwrap();
        let matrix = wide.finish().unwrap();
        let expected = layout::packed(Dtype::F32, 32, cols, &bytes);
        assert!(read(&device, &matrix, expected.len()) == expected);
    }

    #[test]
    fn what_no_memory_holds_is_refused_by_its_name() {
        let (rows, cols) = (u32::MAX as usize, u32::MAX as usize / 256 * 256);
        for dtype in [Dtype::Q5K, Dtype::Q4_0] {
            let error = Cuda::new(Emulated::default()).begin_matrix(dtype, rows, cols).unwrap_err();
            assert!(matches!(error, DeviceError::OutOfMemory { what: "weights", .. }), "{error}");
        }
    }

    #[test]
    fn what_has_no_rows_or_columns_is_a_matrix_too() {
        for (rows, cols) in [(0, 256), (5, 0), (0, 0)] {
            for dtype in Dtype::ALL {
                let upload =
                    Cuda::new(Emulated::default()).begin_matrix(dtype, rows, cols).unwrap();
                upload.write(0, &[]).unwrap();
                let matrix = upload.finish().unwrap();
                assert_eq!((matrix.rows, matrix.cols), (rows, cols));
            }
        }
    }
}
