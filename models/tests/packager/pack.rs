//! Packages: whole or not there, and what is kept is kept to the byte.

use std::fs;
use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::dequantize;
use chrysalis_models::pack::{FileError, PackDtype, PackError, PackOptions, pack};
use chrysalis_models::source::{self, Source};
use chrysalis_protocol::package::{ClientBundle, Package, PackageKey, PackageOptions};
use chrysalis_protocol::secret::Secret;

use super::files::Model;
use super::gguf_writer::llama;

#[test]
fn keep_preserves_every_byte() {
    for dtype in [Dtype::Q4_1, Dtype::Q4K, Dtype::Q6K, Dtype::Bf16] {
        let (folder, source) = gguf_source(dtype);
        let publisher = Ed25519KeyPair::generate().unwrap();
        let key = PackageKey::new(Secret::take(&mut [9; 32]));
        let mut options = options(&publisher);
        options.package.key = Some(&key);
        let summary = pack(&source, &folder.path().join("m.chry"), &options, |_| ()).unwrap();
        assert_eq!(summary.num_tensors, source.tensors().len());
        assert_eq!(names(folder.path()), ["m.b0000", "m.chry", "model.gguf"]);
        assert_eq!(summary.files[0], folder.path().join("m.chry"));
        let sizes = summary.files.iter().map(|file| fs::metadata(file).unwrap().len());
        assert_eq!(summary.bytes, sizes.sum::<u64>());

        let (package, tensors) = unpack(folder.path(), Some(&key));
        assert_eq!(package.public().content_digest(), summary.content_digest);
        assert_eq!(package.public().package_digest(), summary.package_digest);
        assert_eq!(package.meta().architecture, *source.architecture());
        assert_eq!(
            (&package.meta().name[..], &package.meta().licence[..]),
            ("tiny llama", "apache-2.0")
        );
        let mut expected = Vec::new();
        for (index, tensor) in source.tensors().iter().enumerate() {
            source.read(index, &mut expected).unwrap();
            assert_eq!(package.meta().tensors[index].name, tensor.name);
            assert_eq!(tensors[index], expected, "{}", tensor.name);
        }
    }
}

#[test]
fn matrices_are_converted_as_asked_and_norms_are_not() {
    let (folder, source) = gguf_source(Dtype::F32);
    let publisher = Ed25519KeyPair::generate().unwrap();
    let cases = [
        (PackDtype::Bf16, Dtype::Bf16, Dtype::Bf16, 0.003),
        (PackDtype::Fp8, Dtype::F8E4M3, Dtype::Bf16, 0.04),
        (PackDtype::Q8, Dtype::Q8_0, Dtype::Q8_0, 0.003),
        (PackDtype::Q4, Dtype::Q4_1, Dtype::Q8_0, 0.04),
    ];
    for (dtype, inner, embedding, tolerance) in cases {
        let mut options = options(&publisher);
        (options.dtype, options.force) = (dtype, true);
        pack(&source, &folder.path().join("m.chry"), &options, |_| ()).unwrap();
        let (package, tensors) = unpack(folder.path(), None);
        let mut original = Vec::new();
        for (index, record) in package.meta().tensors.iter().enumerate() {
            let expected = match record.name.as_str() {
                "token_embd.weight" => embedding,
                _ if record.dims.len() == 1 => Dtype::F32,
                _ => inner,
            };
            assert_eq!(record.dtype, expected as u16, "{}", record.name);
            source.read(index, &mut original).unwrap();
            let mut values = vec![0.0; original.len() / 4];
            dequantize(expected, &tensors[index], &mut values).unwrap();
            for (value, original) in values.iter().zip(original.as_chunks::<4>().0) {
                assert!((value - f32::from_le_bytes(*original)).abs() <= tolerance);
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_groups_become_bf16() {
    let model = Model::tiny("llama3");
    let source = source::open(model.write()).unwrap();
    let publisher = Ed25519KeyPair::generate().unwrap();
    let mut options = options(&publisher);
    options.dtype = PackDtype::Q4;
    pack(&source, &model.path().join("m.chry"), &options, |_| ()).unwrap();
    let (package, _) = unpack(model.path(), None);
    for record in package.meta().tensors.iter().filter(|record| record.dims.len() == 2) {
        let whole = record.dims[1] % 32 == 0;
        assert_eq!(record.dtype == Dtype::Bf16 as u16, !whole, "{}", record.name);
    }
}

#[test]
fn the_content_digest_is_the_same_sealed_or_not() {
    let (folder, source) = gguf_source(Dtype::Q8_0);
    let publisher = Ed25519KeyPair::generate().unwrap();
    let mut done = Vec::new();
    let open = pack(&source, &folder.path().join("open.chry"), &options(&publisher), |progress| {
        done.push(progress);
    })
    .unwrap();
    assert!(done.is_sorted_by(|a, b| a.done < b.done && a.total == b.total));
    assert!(done.last().is_some_and(|last| last.done == last.total));
    let key = PackageKey::new(Secret::take(&mut [9; 32]));
    let mut options = options(&publisher);
    options.package.key = Some(&key);
    let sealed = pack(&source, &folder.path().join("sealed.chry"), &options, |_| ()).unwrap();
    assert_eq!(open.content_digest, sealed.content_digest);
    assert_ne!(open.package_digest, sealed.package_digest);
}

#[test]
fn the_client_bundle_travels_with_the_package() {
    let model = Model::tiny("llama3");
    let source = source::open(model.write()).unwrap();
    let publisher = Ed25519KeyPair::generate().unwrap();
    let output = model.path().join("out").join("m.chry");
    let mut options = options(&publisher);
    options.without_text = false;
    let refused = pack(&source, &output, &options, |_| ()).unwrap_err();
    assert_eq!(refused.to_string(), "there is no tokenizer.json");
    assert!(names(&model.path().join("out")).is_empty());

    model.write_tokenizer();
    fs::write(model.path().join("LICENSE"), "do as you like").unwrap();
    fs::write(model.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    pack(&source, &output, &options, |_| ()).unwrap();
    let folder = model.path().join("out");
    assert_eq!(names(&folder), ["m.b0000", "m.chry", "m.client"]);
    let bytes = fs::read(folder.join("m.client")).unwrap();
    let (package, _) = unpack(&folder, None);
    package.meta().check_client_bundle(&bytes).unwrap();
    let bundle = ClientBundle::parse(&bytes).unwrap();
    assert_eq!(bundle.tokenizer, fs::read(model.path().join("tokenizer.json")).unwrap());
    assert_eq!(bundle.chat_template, Some("{{ messages }}"));
    assert_eq!(bundle.licence, Some("do as you like"));
    assert!(bundle.text_config.is_some());
}

#[test]
fn an_error_midway_leaves_nothing() {
    let (folder, source) = gguf_source(Dtype::F32);
    let path = folder.path().join("model.gguf");
    let len = fs::metadata(&path).unwrap().len();
    let publisher = Ed25519KeyPair::generate().unwrap();
    for kept in [len - 1, len / 2] {
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept).unwrap();
        let refused = pack(&source, &folder.path().join("m.chry"), &options(&publisher), |_| ());
        assert!(matches!(refused, Err(PackError::Source(_))));
        assert_eq!(names(folder.path()), ["model.gguf"]);
    }
}

#[test]
fn what_a_killed_packer_left_is_no_package_and_goes() {
    let (folder, source) = gguf_source(Dtype::Q8_0);
    let publisher = Ed25519KeyPair::generate().unwrap();
    for name in [".m.chry.partial", ".m.b0000.partial", ".m.b0009.partial", ".m.client.partial"] {
        fs::write(folder.path().join(name), vec![0xaa; 4_000_000]).unwrap();
    }
    // Somebody else's, by its name.
    fs::write(folder.path().join(".n.b0000.partial"), "n").unwrap();
    pack(&source, &folder.path().join("m.chry"), &options(&publisher), |_| ()).unwrap();
    assert_eq!(names(folder.path()), [".n.b0000.partial", "m.b0000", "m.chry", "model.gguf"]);
    unpack(folder.path(), None);
}

#[test]
fn nothing_that_is_there_is_replaced_unless_asked() {
    let (folder, source) = gguf_source(Dtype::Q8_0);
    let publisher = Ed25519KeyPair::generate().unwrap();
    let output = folder.path().join("m.chry");
    for there in ["m.chry", "m.client", "m.b0007"] {
        let path = folder.path().join(there);
        fs::write(&path, "old").unwrap();
        let refused = pack(&source, &output, &options(&publisher), |_| ());
        assert!(matches!(refused, Err(PackError::File(FileError::Exists(found))) if found == path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), [there, "model.gguf"]);
        let mut options = options(&publisher);
        options.force = true;
        pack(&source, &output, &options, |_| ()).unwrap();
        assert_eq!(names(folder.path()), ["m.b0000", "m.chry", "model.gguf"]);
        unpack(folder.path(), None);
        fs::remove_file(&output).unwrap();
        fs::remove_file(folder.path().join("m.b0000")).unwrap();
    }
    let wrong = pack(&source, &folder.path().join("m.gguf"), &options(&publisher), |_| ());
    assert!(matches!(wrong, Err(PackError::File(FileError::Name(_)))));
}

#[test]
fn two_packers_do_not_write_one_package() {
    let (folder, source) = gguf_source(Dtype::Q8_0);
    let publisher = Ed25519KeyPair::generate().unwrap();
    let output = folder.path().join("m.chry");
    pack(&source, &output, &options(&publisher), |_| {
        let second = pack(&source, &output, &options(&publisher), |_| ());
        assert!(matches!(second, Err(PackError::File(FileError::Busy(_)))));
    })
    .unwrap();
    unpack(folder.path(), None);
}

#[test]
fn blobs_are_split_where_they_are_full() {
    let (folder, source) = gguf_source(Dtype::F32);
    let publisher = Ed25519KeyPair::generate().unwrap();
    let mut options = options(&publisher);
    (options.package.segment_log2, options.package.blob_log2) = (20, 20);
    pack(&source, &folder.path().join("m.chry"), &options, |_| ()).unwrap();
    assert_eq!(names(folder.path())[..3], ["m.b0000", "m.b0001", "m.b0002"]);
    let (_, tensors) = unpack(folder.path(), None);
    let mut expected = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        source.read(index, &mut expected).unwrap();
        assert_eq!(*tensor, expected);
    }
}

fn gguf_source(dtype: Dtype) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, llama(dtype).build().0).unwrap();
    let source = source::open(&path).unwrap();
    (folder, source)
}

fn options(publisher: &Ed25519KeyPair) -> PackOptions<'_> {
    let mut options = PackOptions::new(PackageOptions::new([5; 16], publisher));
    options.without_text = true;
    options
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Opens `m.chry` in `folder` and puts its tensors together.
fn unpack(folder: &Path, key: Option<&PackageKey>) -> (Package, Vec<Vec<u8>>) {
    let package = Package::open(&fs::read(folder.join("m.chry")).unwrap(), key).unwrap();
    let mut data = Vec::new();
    for index in 0..package.num_segments() {
        let place = package.place(index).unwrap();
        let blob = fs::read(folder.join(format!("m.b{:04}", place.blob))).unwrap();
        let mut segment = blob[place.offset as usize..][..place.len].to_vec();
        package.open_segment(index, &mut segment).unwrap();
        data.extend(segment);
    }
    let tensors = package.meta().tensors.iter();
    let tensors = tensors.map(|it| data[it.offset as usize..][..it.len as usize].to_vec());
    let tensors = tensors.collect();
    (package, tensors)
}
