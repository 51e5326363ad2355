//! The catalogue's records in the meta group's store.
//!
//! # Layout
//! All in family `Default`; integers are big-endian.
//!
//! | key               | value                                              |
//! |-------------------|----------------------------------------------------|
//! | `next_id`         | version u8 = 1, u32                                |
//! | `stamp`           | version u8 = 1, u64 ms                             |
//! | `t`, table id u32 | version u8 = 1, [`Record`] by postcard             |
//!
//! Version 1 is frozen: `tests` holds its bytes.

use bytes::Bytes;
use cluster::TableId;
use engine::batch::{BatchWriter, Family};

use crate::state::{Change, Record, State};

const VERSION: u8 = 1;
const NEXT_ID: &[u8] = b"next_id";
const STAMP: &[u8] = b"stamp";
const TABLE: u8 = b't';

/// A record of the store that is not one of ours, or damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the catalogue's record {key:?} is damaged or of a later version")]
pub struct BadRecord {
    /// Its key, readable.
    pub key: String,
}

fn table_key(id: TableId) -> [u8; 5] {
    let mut key = [TABLE; 5];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// Changes as a finished write batch.
pub fn batch(changes: &[Change], stamp_ms: u64) -> Bytes {
    let mut batch = BatchWriter::new();
    let versioned = |bytes: &[u8]| [&[VERSION], bytes].concat();
    for change in changes {
        match change {
            Change::Put(record) => {
                let body = postcard::to_stdvec(record).expect("a table of bounded size is serialised to memory");
                batch.put(Family::Default, &table_key(record.table.id), &versioned(&body));
            }
            Change::Forget(id) => batch.delete(Family::Default, &table_key(*id)),
            Change::NextId(next_id) => batch.put(Family::Default, NEXT_ID, &versioned(&next_id.to_be_bytes())),
        }
    }
    batch.put(Family::Default, STAMP, &versioned(&stamp_ms.to_be_bytes()));
    batch.finish()
}

/// Takes one record of the store into a state.
pub fn load(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
    let bad = || BadRecord { key: String::from_utf8_lossy(key).into_owned() };
    let Some((&VERSION, body)) = value.split_first() else { return Err(bad()) };
    match key {
        NEXT_ID => state.next_id = u32::from_be_bytes(body.try_into().map_err(|_| bad())?),
        STAMP => state.stamp_ms = u64::from_be_bytes(body.try_into().map_err(|_| bad())?),
        [TABLE, id @ ..] if id.len() == 4 => {
            let record: Record = postcard::from_bytes(body).map_err(|_| bad())?;
            if record.table.id.0.to_be_bytes() != *id || record.table.partitions == 0 {
                return Err(bad());
            }
            state.tables.insert(record.table.id, record);
        }
        _ => return Err(bad()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use cluster::Table;
    use engine::batch::{self, Change as Written};

    use super::*;
    use crate::state::Status;

    fn example() -> Vec<Change> {
        let envs = BTreeMap::from([("default_ttl".to_owned(), "60".to_owned())]);
        let table = Table { id: TableId(258), name: "db3".into(), partitions: 8, envs, default_ttl_since_ms: 1000 };
        vec![
            Change::NextId(259),
            Change::Put(Record { table: Arc::new(table), status: Status::Dropping, created_at_ms: 300 }),
            Change::Forget(TableId(7)),
        ]
    }

    /// Frozen: add vectors for new versions, never edit these.
    #[test]
    fn version_1_is_frozen() {
        let bytes = batch(&example(), 0x0102);
        let written: Vec<Written<'_>> = batch::read(&bytes).unwrap().map(Result::unwrap).collect();
        let put = |key, value| Written::Put { family: Family::Default, key, value };
        assert_eq!(
            written,
            [
                put(b"next_id", b"\x01\x00\x00\x01\x03"),
                put(b"t\x00\x00\x01\x02", b"\x01\x82\x02\x03db3\x08\x01\x0bdefault_ttl\x0260\xe8\x07\x01\xac\x02"),
                Written::Delete { family: Family::Default, key: b"t\x00\x00\x00\x07" },
                put(b"stamp", b"\x01\x00\x00\x00\x00\x00\x00\x01\x02"),
            ]
        );
    }

    #[test]
    fn what_is_written_is_loaded() {
        let bytes = batch(&example(), 77);
        let mut loaded = State::default();
        for change in batch::read(&bytes).unwrap() {
            if let Written::Put { key, value, .. } = change.unwrap() {
                load(&mut loaded, key, value).unwrap();
            }
        }
        let mut expected = State::default();
        expected.apply(&example(), 77);
        assert_eq!(loaded, expected);
    }

    #[test]
    fn damaged_records_are_refused() {
        let mut state = State::default();
        for (key, value) in [
            (&b"next_id"[..], &b""[..]),
            (b"next_id", b"\x02\x00\x00\x00\x01"),
            (b"next_id", b"\x01\x00"),
            (b"stamp", b"\x01\x00\x00\x00\x01"),
            (b"t\x00\x00\x00\x01", b"\x01\xff\xff"),
            (b"t\x00\x00\x00\x01", b"\x01\x02\x01a\x01\x00\x00\x00\x00"),
            (b"who?", b"\x01"),
        ] {
            assert!(load(&mut state, key, value).is_err(), "{key:?} {value:?}");
        }
        assert_eq!(state, State::default());
    }
}
