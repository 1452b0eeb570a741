//! The header of a safetensors file: no panic, and every tensor lies inside the file.
#![no_main]

use std::io::Cursor;

use chrysalis_models::source::safetensors::Safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = Safetensors::read(Cursor::new(bytes)) {
        for (index, tensor) in file.tensors().iter().enumerate() {
            assert!(
                tensor.len <= bytes.len() as u64,
                "a tensor longer than its file"
            );
            let mut out = vec![0; tensor.len as usize];
            file.read_tensor(index, 0, &mut out)
                .expect("a tensor outside its file");
        }
    }
});
