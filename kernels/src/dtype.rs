//! Storage types of weights: ggml's, with its names and numbers, and one of our own; and the size of their groups.

/// How the values of a weight tensor are stored: rows of groups, each group laid out as ggml's
/// block of the same name (little-endian, `ggml-common.h`). Numbers from [`Dtype::OURS`] on are not ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Dtype {
    /// IEEE single.
    F32 = 0,
    /// IEEE half.
    F16 = 1,
    /// Groups of 32: f16 scale, 4-bit values minus 8.
    Q4_0 = 2,
    /// Groups of 32: f16 scale and minimum, 4-bit values.
    Q4_1 = 3,
    /// Groups of 32: f16 scale, 5-bit values minus 16.
    Q5_0 = 6,
    /// Groups of 32: f16 scale and minimum, 5-bit values.
    Q5_1 = 7,
    /// Groups of 32: f16 scale, 8-bit signed values.
    Q8_0 = 8,
    /// Groups of 256 in 8 sub-groups with 6-bit scales and minima, 4-bit values.
    Q4K = 12,
    /// Groups of 256 in 8 sub-groups with 6-bit scales and minima, 5-bit values.
    Q5K = 13,
    /// Groups of 256 in 16 sub-groups with 8-bit scales, 6-bit values minus 32.
    Q6K = 14,
    /// The upper half of an IEEE single.
    Bf16 = 30,
    /// Groups of 128: an f32 scale, then [`e4m3`](crate::quant::e4m3) codes. What models with blocks of 128 by 128 are stored in.
    F8E4M3 = 0x8000,
}

impl Dtype {
    /// Every storage type.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Bf16,
        Self::F8E4M3,
    ];

    /// The first number that can be none of ggml's.
    pub const OURS: u16 = 0x8000;

    /// The type with this number, if it is one of ours.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u16 == code)
    }

    /// ggml's name; that of safetensors for a type of our own.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Bf16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
        }
    }

    /// Values in a group.
    pub const fn group_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::F8E4M3 => 128,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a group.
    pub const fn group_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::F8E4M3 => 132,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` values, or nothing when they do not divide into groups.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.group_len()) {
            (cols / self.group_len()).checked_mul(self.group_bytes())
        } else {
            None
        }
    }
}
