//! What the CUDA device needs of a driver: memory, copies, and launches on one queue.

use std::fmt::Debug;

use crate::device::{Crossings, DeviceError};

/// The one argument of a kernel.
///
/// # Safety
/// The implementor is `repr(C)`, has no padding, and is the struct of the same name in the kernel's source.
#[expect(unsafe_code, reason = "a kernel reads its arguments as its source lays them out")]
pub unsafe trait Params: Copy {}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Its name in the image.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block, as its source says.
    pub threads: u32,
    /// Bytes of shared memory for each block, beside what its source declares.
    pub shared: u32,
}

/// A driver with one queue: what is asked for happens in this order. Only [`Driver::read`] and [`Driver::finish`] wait.
pub trait Driver: Send + Sync + Debug + 'static {
    /// Memory of the device, 256 bytes aligned; wiped and given back on drop, after all that was asked for before.
    type Memory: Send + Sync + Debug;

    /// Launches that were recorded, with their arguments.
    type Graph: Send + Debug;

    /// Human name.
    fn describe(&self) -> String;

    /// Ten times the compute capability: 80, 89, 90. Some kernels are for one alone.
    fn architecture(&self) -> u32;

    /// Multiprocessors: how many blocks keep the card busy is a multiple of it. No bit may depend on it.
    fn multiprocessors(&self) -> usize;

    /// Reserves memory. Its contents are anything.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn reserve(&self, what: &'static str, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// How often memory was given back. While it stays, every address that was ever good still is.
    fn given_back(&self) -> u64;

    /// Where it lies, as kernels know it.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Copies to the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter or a record is being made.
    fn write(&self, memory: &Self::Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Zeroes the first bytes.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter.
    fn zero(&self, memory: &Self::Memory, bytes: usize) -> Result<(), DeviceError>;

    /// Waits for everything asked for, and copies from the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also when the memory is shorter or a record is being made.
    fn read(&self, memory: &Self::Memory, offset: usize, out: &mut [u8])
    -> Result<(), DeviceError>;

    /// Finds a kernel whose arguments have `params` bytes, so that a launch of it needs nothing but the queue.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when there is none, or not for such blocks.
    fn find(&self, launch: &Launch<'_>, params: usize) -> Result<(), DeviceError>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    ///
    /// # Safety
    /// Every address in `params` is that of memory of this driver which is alive and as large as the kernel's contract says.
    #[expect(unsafe_code, reason = "a kernel writes wherever its arguments say")]
    unsafe fn launch<P: Params>(&self, launch: &Launch<'_>, params: &P) -> Result<(), DeviceError>;

    /// From here on launches are recorded and do not happen.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn begin_record(&self) -> Result<(), DeviceError>;

    /// To here.
    ///
    /// # Errors
    /// [`DeviceError::Failed`]; nothing is being recorded then.
    fn end_record(&self) -> Result<Self::Graph, DeviceError>;

    /// Starts all that was recorded, in its order.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    ///
    /// # Safety
    /// [`Driver::given_back`] is what it was when the record began: the addresses in it are still those of the same memory.
    #[expect(unsafe_code, reason = "a kernel writes wherever its arguments say")]
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<(), DeviceError>;

    /// Waits for everything asked for.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn finish(&self) -> Result<(), DeviceError>;

    /// What it was asked for so far.
    fn crossings(&self) -> Crossings;
}
