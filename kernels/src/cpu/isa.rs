//! Instruction sets: what the CPU has, and the proof types that let kernels use it.

use super::amx::Amx;
use super::avx2::Avx2;
use super::avx512::Avx512;
use super::avx512_bf16::Avx512Bf16;
use super::scalar::Scalar;
use super::simd::Task;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every CPU has.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// The same, and BF16.
    Avx512Bf16,
    /// The same, and tiles of bytes and of bf16 (AMX-INT8, AMX-BF16).
    Amx,
}

impl Isa {
    /// The best one that this CPU has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// Those that this CPU has, slowest first.
    pub fn available() -> Vec<Self> {
        let all = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];
        all.into_iter().filter(|isa| Level::new(*isa).is_some()).collect()
    }
}

/// An instruction set together with the proof that the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    Scalar(Scalar),
    Avx2(Avx2),
    Avx512(Avx512),
    Avx512Bf16(Avx512, Avx512Bf16),
    Amx(Avx512, Avx512Bf16, Amx),
}

impl Level {
    /// The proof, where the CPU has the instruction set.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self::Scalar(Scalar)),
            Isa::Avx2 => Avx2::detect().map(Self::Avx2),
            Isa::Avx512 => Avx512::detect().map(Self::Avx512),
            Isa::Avx512Bf16 => {
                Avx512::detect().zip(Avx512Bf16::detect()).map(|(a, b)| Self::Avx512Bf16(a, b))
            }
            Isa::Amx => Some(Self::Amx(Avx512::detect()?, Avx512Bf16::detect()?, Amx::detect()?)),
        }
    }

    pub(super) fn isa(self) -> Isa {
        match self {
            Self::Scalar(_) => Isa::Scalar,
            Self::Avx2(_) => Isa::Avx2,
            Self::Avx512(_) => Isa::Avx512,
            Self::Avx512Bf16(..) => Isa::Avx512Bf16,
            Self::Amx(..) => Isa::Amx,
        }
    }

    /// The proof that sums of bf16 are to be used.
    pub(super) fn bf16(self) -> Option<Avx512Bf16> {
        match self {
            Self::Avx512Bf16(_, proof) | Self::Amx(_, proof, _) => Some(proof),
            Self::Scalar(_) | Self::Avx2(_) | Self::Avx512(_) => None,
        }
    }

    /// The proof that tiles are to be used.
    pub(super) fn amx(self) -> Option<Amx> {
        match self {
            Self::Amx(_, _, proof) => Some(proof),
            Self::Scalar(_) | Self::Avx2(_) | Self::Avx512(_) | Self::Avx512Bf16(..) => None,
        }
    }

    /// Runs the task, compiled for this instruction set.
    pub(super) fn run<T: Task>(self, task: T) {
        match self {
            Self::Scalar(simd) => task.run(simd),
            Self::Avx2(simd) => simd.run(task),
            Self::Avx512(simd) | Self::Avx512Bf16(simd, _) | Self::Amx(simd, ..) => simd.run(task),
        }
    }
}
