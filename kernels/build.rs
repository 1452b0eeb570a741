//! Compiles the CUDA kernels where a feature asks for them: `cuda` with nvcc, for cards; `cuda-host` with the host's C++
//! compiler, for tests. Without either it does nothing.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let sources = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("cuda");
    if cfg!(feature = "cuda") || cfg!(feature = "cuda-host") {
        println!("cargo::rerun-if-changed={}", sources.display());
        fs::write(out.join("kernels.cu"), all_kernels(&sources)?)?;
    }
    #[cfg(feature = "cuda-host")]
    emulator(&sources, &out)?;
    if cfg!(feature = "cuda") {
        fat_binary(&sources, &out)?;
    }
    Ok(())
}

/// One unit of all kernels, in the order of their names. Paths are relative: they show in nothing that is built.
fn all_kernels(sources: &Path) -> Result<String, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(sources)? {
        let name = entry?.file_name().into_string().map_err(|_| "a kernel's name is not UTF-8")?;
        if name.ends_with(".cu") {
            names.push(format!("#include \"{name}\"\n"));
        }
    }
    names.sort();
    Ok(names.concat())
}

/// The kernels and the emulator, as a library that tests link.
#[cfg(feature = "cuda-host")]
fn emulator(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let unit = out.join("emulated.cc");
    let parts = [
        "kernels.cu",
        "host/emulate.cc",
        "host/hopper.cc",
        "host/checks.cc",
        "host/hopper_checks.cc",
        "host/tile_checks.cc",
    ];
    fs::write(&unit, parts.map(|part| format!("#include \"{part}\"\n")).concat())?;
    // As on a card, nothing is contracted; `longjmp` between stacks is what a fortified one refuses.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("CHRYSALIS_EMULATE", None)
        .flag("-ffp-contract=off")
        .flag("-U_FORTIFY_SOURCE")
        .flag("-Wno-unknown-pragmas")
        .flag("-Wno-unused-function")
        .include(sources)
        .include(out)
        .file(unit)
        .try_compile("chrysalis_emulated")?;
    driver_library(sources, out)
}

/// A driver library over the emulator, which tests load in the place of NVIDIA's.
#[cfg(feature = "cuda-host")]
fn driver_library(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let library = out.join("libcuda.so");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1).define("CHRYSALIS_EMULATE", None).include(sources);
    let mut command = build.try_get_compiler()?.to_command();
    command.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic", "-o"]);
    command.arg(&library).arg(sources.join("host/libcuda.cc"));
    command.arg("-Wl,--whole-archive").arg(out.join("libchrysalis_emulated.a"));
    let output = command.arg("-Wl,--no-whole-archive").output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    println!("cargo::rustc-env=CHRYSALIS_FAKE_CUDA={}", library.display());
    Ok(())
}

/// `kernels.fatbin`: machine code for each architecture and PTX for what comes later.
fn fat_binary(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    for name in ["CHRYSALIS_NVCC", "CHRYSALIS_CUDA_ARCHS", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let archs = env::var("CHRYSALIS_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let nvcc = find_nvcc()?;
    let mut command = Command::new(&nvcc);
    command.current_dir(out).args(FLAGS).arg("-I").arg(sources);
    for arch in archs.split(',') {
        let digits = arch.trim_end_matches(|c: char| c.is_ascii_lowercase());
        if digits.len() < 2 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!(
                "CHRYSALIS_CUDA_ARCHS: {arch:?} in {archs:?} is no architecture, as 80 or 90a"
            )
            .into());
        }
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
    let output = command.args(["-o", "kernels.fatbin", "kernels.cu"]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    // That the assembler waits for every wgmma before the next is no warning to it.
    let waits = ["wgmma.", "warpgroup."].iter().any(|name| text.contains(name));
    if !output.status.success() || waits {
        return Err(format!("{} failed:\n{text}", nvcc.display()).into());
    }
    println!("cargo::rerun-if-changed={}", nvcc.display());
    println!("cargo::rustc-env=CHRYSALIS_CUDA_ARCHS={archs}");
    Ok(())
}

/// The compiler: where the environment says, else the one that `scripts/install-nvcc` left.
fn find_nvcc() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = env::var_os("CHRYSALIS_NVCC").map(PathBuf::from) {
        if path.is_file() {
            return Ok(path);
        }
        return Err(format!("CHRYSALIS_NVCC: there is no {}", path.display()).into());
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin")));
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    folders.push(manifest.join("../target/cuda/nvidia/cu13/bin"));
    let found = folders.into_iter().map(|folder| folder.join("nvcc")).find(|path| path.is_file());
    found.ok_or_else(|| {
        "the feature `cuda` needs nvcc 13.0, which is neither in CHRYSALIS_NVCC, nor in CUDA_HOME, nor on PATH, nor in \
         target/cuda: run scripts/install-nvcc (115 MB)"
            .into()
    })
}

/// Ampere, Ada, Hopper, Blackwell.
const ARCHS: &str = "80,89,90a,100";
/// What cards of later architectures compile from.
const PTX: &str = "80";
/// Nothing is contracted but what the sources contract: a card computes what the emulator computes.
const FLAGS: [&str; 7] = [
    "-O3",
    "-std=c++17",
    "--fatbin",
    "-fmad=false",
    "--threads=0",
    "-Xfatbin=-compress-all",
    "-Werror=all-warnings",
];
