//! What is checked: a device, and what only some devices know of themselves.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions};
#[cfg(feature = "cuda-host")]
use chrysalis_kernels::cuda::Emulated;
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
use chrysalis_kernels::cuda::{Card, CardOptions, Cuda, Driver as _, ProductLimits};
use chrysalis_kernels::device::{CacheDtype, Device, DeviceError};

use crate::report::Row;

/// A device that can be checked.
pub(crate) trait Subject: Device {
    /// Caches of 16 bits or fewer that it has.
    const CACHES: &'static [CacheDtype] = &[CacheDtype::F16, CacheDtype::I8];

    /// The device, with all its memory to give away.
    fn open() -> Result<Self, DeviceError>;

    /// The ways in which it can compute a product, by name; the first is its own choice. All give the same bits.
    fn ways(&self) -> Vec<&'static str> {
        vec![OWN_WAY]
    }

    /// The device, held to one of its ways.
    fn open_way(_way: &str) -> Result<Self, DeviceError> {
        Self::open()
    }

    /// Most that products with such weights may differ from the reference, relative to its root mean square.
    fn product_error(dtype: Dtype) -> f64;

    /// Whether a row of a product with such weights may hold what is not finite.
    fn takes_anything(_dtype: Dtype) -> bool {
        true
    }

    /// Most that attention over such a cache may.
    fn attention_error(dtype: CacheDtype) -> f64 {
        crate::kernels::cache_error(dtype)
    }

    /// Most that its logits may differ from those of f32 arithmetic.
    fn logits_error() -> f64;

    /// What it knows of its card.
    fn facts(&self) -> Result<Vec<Row>, DeviceError> {
        Ok(Vec::new())
    }

    /// Seconds of a copy of so many bytes within the device, the median of several, where there is such a copy.
    fn copy(&self, _bytes: usize) -> Result<Option<f64>, DeviceError> {
        Ok(None)
    }
}

/// SHA-256 of the kernels' image in this binary.
pub(crate) fn image_digest() -> Option<String> {
    #[cfg(feature = "cuda")]
    {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, chrysalis_kernels::cuda::IMAGE);
        Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// The oracle of what is too large for the reference: sixteen bits of every activation, all threads.
pub(crate) fn oracle() -> Result<Cpu, DeviceError> {
    let activation_bits = ActivationBits::Sixteen;
    Cpu::new(CpuOptions { activation_bits, ..CpuOptions::default() })
}

impl Subject for Cpu {
    fn open() -> Result<Self, DeviceError> {
        oracle()
    }

    /// Sixteen bits of every activation, one column in the least of shapes.
    fn product_error(_dtype: Dtype) -> f64 {
        2.5e-4
    }

    /// Quantised activations are of finite values.
    fn takes_anything(dtype: Dtype) -> bool {
        dtype.group_len() == 1
    }

    fn logits_error() -> f64 {
        1e-2
    }
}

#[cfg(any(feature = "cuda", feature = "cuda-host"))]
fn card() -> Result<Card, DeviceError> {
    #[cfg(feature = "cuda")]
    let (image, memory) = (chrysalis_kernels::cuda::IMAGE, None);
    #[cfg(not(feature = "cuda"))]
    let (image, memory) = (chrysalis_kernels::cuda::FAKE_IMAGE, Some(64 << 20));
    #[cfg(not(feature = "cuda"))]
    chrysalis_kernels::cuda::load_fake_driver();
    Ok(Card::open(image, CardOptions { number: 0, memory })?)
}

#[cfg(any(feature = "cuda", feature = "cuda-host"))]
impl Subject for Cuda<Card> {
    const CACHES: &'static [CacheDtype] = &CARD_CACHES;

    fn open() -> Result<Self, DeviceError> {
        Ok(Self::new(card()?))
    }

    fn ways(&self) -> Vec<&'static str> {
        let hopper = ProductLimits::of(self.driver().architecture()).wgmma;
        let fits = |way: &&str| hopper || !way.starts_with("wgmma");
        [OWN_WAY].into_iter().chain(WAYS.into_iter().filter(fits)).collect()
    }

    fn open_way(way: &str) -> Result<Self, DeviceError> {
        let card = card()?;
        let limits = limits(way, card.architecture());
        Ok(Self::with_limits(card, limits))
    }

    fn product_error(dtype: Dtype) -> f64 {
        rounded_error(dtype)
    }

    fn logits_error() -> f64 {
        1e-2
    }

    fn facts(&self) -> Result<Vec<Row>, DeviceError> {
        let (info, (left, all)) = (self.driver().info(), self.driver().left());
        let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let driver =
            format!("CUDA {}; {}", info.driver, version.lines().next().unwrap_or_default());
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        Ok(vec![
            Row::text("card", format!("{}, {:?}", info.name, info.capability)),
            Row::text("driver", driver),
            Row::figure("memory of the card", gib(info.memory), "GiB"),
            Row::figure("planned for weights, cache and workspace", gib(all), "GiB"),
            Row::holds("nothing of it is reserved before it is asked for", left == all),
        ])
    }

    fn copy(&self, bytes: usize) -> Result<Option<f64>, DeviceError> {
        let mut times =
            (0..5).map(|_| self.driver().copy_seconds(bytes, 5)).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times.get(2).copied())
    }
}

#[cfg(feature = "cuda-host")]
impl Subject for Cuda<Emulated> {
    const CACHES: &'static [CacheDtype] = &CARD_CACHES;

    fn open() -> Result<Self, DeviceError> {
        Ok(Self::new(Emulated::default()))
    }

    /// It has the kernels of every card.
    fn ways(&self) -> Vec<&'static str> {
        [OWN_WAY].into_iter().chain(WAYS).collect()
    }

    fn open_way(way: &str) -> Result<Self, DeviceError> {
        Ok(Self::with_limits(Emulated::default(), limits(way, 80)))
    }

    fn product_error(dtype: Dtype) -> f64 {
        rounded_error(dtype)
    }

    fn logits_error() -> f64 {
        1e-2
    }
}

/// Weights and activations each rounded: to bf16, or to f16, which has three bits more, and then maybe their scales as well.
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
fn rounded_error(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => crate::linear::FLOAT_ERROR,
        Dtype::Bf16 => 2.0 * crate::linear::ONE_BF16_ERROR,
        _ => crate::linear::ONE_BF16_ERROR / 2.0,
    }
}

#[cfg(any(feature = "cuda", feature = "cuda-host"))]
const CARD_CACHES: [CacheDtype; 4] =
    [CacheDtype::F16, CacheDtype::Bf16, CacheDtype::I8, CacheDtype::F8];

/// Both families of kernels, each for every number of rows, with sums in parts and whole.
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
const WAYS: [&str; 12] = [
    "few rows, together",
    "mma, few rows",
    "mma, some rows",
    "mma, many rows",
    "mma, many rows, in parts",
    "wgmma, few rows",
    "wgmma, some rows",
    "wgmma, narrow, in parts",
    "wgmma",
    "wgmma, in parts",
    "wgmma, wide",
    "wgmma, wide, in parts",
];

/// What a card of this architecture does, but for the way.
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
fn limits(way: &str, architecture: u32) -> ProductLimits {
    let all = usize::MAX;
    let own = ProductLimits::of(architecture);
    let (few_rows, some_rows) = (0, 0);
    let mma = ProductLimits { few_rows, some_rows, wgmma: false, whole_blocks: 0, ..own };
    let (wide_blocks, wide_parts) = (all, 0);
    let wgmma = ProductLimits { wgmma: true, narrow_rows: 0, wide_blocks, wide_parts, ..mma };
    match way {
        "few rows, together" => ProductLimits { few_rows: 8, ..mma },
        "mma, few rows" => ProductLimits { few_rows: all, shared: 0, ..mma },
        "mma, some rows" => ProductLimits { some_rows: all, ..mma },
        "mma, many rows" => mma,
        "mma, many rows, in parts" => ProductLimits { whole_blocks: all, ..mma },
        "wgmma, few rows" => ProductLimits { few_rows: all, shared: 0, ..wgmma },
        "wgmma, some rows" => ProductLimits { some_rows: all, ..wgmma },
        "wgmma, narrow, in parts" => ProductLimits { narrow_rows: all, whole_blocks: all, ..wgmma },
        "wgmma" => wgmma,
        "wgmma, in parts" => ProductLimits { whole_blocks: all, ..wgmma },
        "wgmma, wide" => ProductLimits { wide_blocks: 0, wide_chunks: 0, ..wgmma },
        "wgmma, wide, in parts" => ProductLimits { wide_parts: all, whole_blocks: all, ..wgmma },
        _ => own,
    }
}

/// What a device chooses where nobody holds it to a way.
pub(crate) const OWN_WAY: &str = "its own choice";
