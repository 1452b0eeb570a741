//! What the CUDA device needs of a driver: memory, copies, and launches on one queue.

use std::fmt::Debug;

use crate::device::DeviceError;

/// The one argument of a kernel.
///
/// # Safety
/// The implementor is `repr(C)`, has no padding, and is the struct of the same name in the kernel's source.
#[expect(unsafe_code, reason = "a kernel reads its arguments as its source lays them out")]
pub unsafe trait Params: Copy {}

/// A driver with one queue: what is asked for happens in this order. Only [`Driver::read`] and [`Driver::finish`] wait.
pub trait Driver: Send + Sync + Debug + 'static {
    /// Memory of the device, 256 bytes aligned; wiped and given back on drop, after all that was asked for before.
    type Memory: Send + Sync + Debug;

    /// Human name.
    fn describe(&self) -> String;

    /// Reserves memory. Its contents are anything.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn reserve(&self, what: &'static str, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// Where it lies, as kernels know it.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Copies to the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter.
    fn write(&self, memory: &Self::Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Zeroes the first bytes.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter.
    fn zero(&self, memory: &Self::Memory, bytes: usize) -> Result<(), DeviceError>;

    /// Waits for everything asked for, and copies from the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter.
    fn read(&self, memory: &Self::Memory, offset: usize, out: &mut [u8])
    -> Result<(), DeviceError>;

    /// Starts a kernel, with `shared` bytes of shared memory for each block beside what its source declares.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    ///
    /// # Safety
    /// Every address in `params` is that of memory of this driver which is alive and as large as the kernel's contract says.
    #[expect(unsafe_code, reason = "a kernel writes wherever its arguments say")]
    unsafe fn launch<P: Params>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Result<(), DeviceError>;

    /// Waits for everything asked for.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn finish(&self) -> Result<(), DeviceError>;
}
