//! Fuzz target of the batch format. It runs briefly as a test, and for any time with
//! `cargo bolero test -p engine any_bytes_are_read_or_refused`.

use engine::batch::{self, BatchWriter, Change};

#[test]
fn any_bytes_are_read_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(records) = batch::check(bytes) else { return };
        // A batch that is read and written again is the same.
        let mut writer = match batch::dependency(bytes) {
            Some(dependency) => BatchWriter::with_dependency(dependency, bytes.len()),
            None => BatchWriter::new(),
        };
        for change in batch::read(bytes).expect("was checked") {
            match change.expect("was checked") {
                Change::Put { family, key, value } => writer.put(family, key, value),
                Change::Delete { family, key } => writer.delete(family, key),
                Change::DeleteRange { family, from, to } => writer.delete_range(family, from, to),
                Change::Clear { family } => writer.clear(family),
            }
        }
        assert_eq!(writer.records(), records);
        assert_eq!(&writer.finish()[..], bytes);
    });
}
