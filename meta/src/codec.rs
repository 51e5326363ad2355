//! Meta's records in the meta group's store.
//!
//! # Layout
//! All in family `Default`; integers are big-endian.
//!
//! | key                          | value, after version u8 = 1                |
//! |------------------------------|--------------------------------------------|
//! | `cluster`                    | u64                                        |
//! | `next_id`                    | u32                                        |
//! | `next_raft_id`               | u64                                        |
//! | `next_number`                | u32                                        |
//! | `stamp`                      | u64 ms                                     |
//! | `s`, server id u64           | [`RegisteredServer`] by postcard           |
//! | `x`, server id u64           | u64 ms: the time of its removal            |
//! | `m`, meta index u32          | server id u64: the server of the index     |
//! | `t`, table id u32            | [`TableRecord`] by postcard                |
//! | `p`, table id u32, index u32 | [`Placement`]'s epoch, members by postcard |
//!
//! The bytes are frozen: `tests/vectors/records.txt`.

use std::sync::Arc;

use bytes::Bytes;
use cluster::{Member, PartitionId, Placement, ServerId, TableId};
use engine::batch::{BatchWriter, Family};
use serde::{Deserialize, Serialize};

use crate::state::{MetaChange, MetaState, RegisteredServer, TableRecord};

const VERSION: u8 = 1;
pub(crate) const CLUSTER: &[u8] = b"cluster";
const NEXT_ID: &[u8] = b"next_id";
const NEXT_RAFT_ID: &[u8] = b"next_raft_id";
const NEXT_NUMBER: &[u8] = b"next_number";
const STAMP: &[u8] = b"stamp";
const SERVER: u8 = b's';
const REMOVED: u8 = b'x';
const TABLE: u8 = b't';
const PLACEMENT: u8 = b'p';
const META_INDEX: u8 = b'm';

/// A record of the store that is not one of ours, or damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("meta's record {key:?} is damaged or of a later version")]
pub struct RecordDecodeError {
    /// Its key, readable.
    pub key: String,
}

/// A placement without what its key says.
#[derive(Serialize, Deserialize)]
struct PlacementBody {
    epoch: u64,
    members: Vec<Member>,
}

fn server_key(kind: u8, id: ServerId) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// The key of the server of a meta index.
pub(crate) fn meta_index_key(index: u32) -> [u8; 5] {
    let mut key = [META_INDEX; 5];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The server of a meta index, from its record.
pub(crate) fn meta_index_owner(value: &[u8]) -> Option<ServerId> {
    let (version, id) = value.split_first()?;
    (*version == VERSION).then(|| id.try_into().ok().map(|id| ServerId(u64::from_be_bytes(id))))?
}

fn table_key(id: TableId) -> [u8; 5] {
    let mut key = [TABLE; 5];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

fn placement_key(id: PartitionId) -> [u8; 9] {
    let mut key = [PLACEMENT; 9];
    key[1..5].copy_from_slice(&id.table.0.to_be_bytes());
    key[5..].copy_from_slice(&id.index.to_be_bytes());
    key
}

/// A version and what is written in it.
fn versioned<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![version])
        .expect("records of bounded size are serialised to memory")
}

/// Changes as a finished write batch.
pub fn batch(changes: &[MetaChange], stamp_ms: u64) -> Bytes {
    let mut batch = BatchWriter::new();
    let number = |bytes: &[u8]| [&[VERSION], bytes].concat();
    let mut put = |key: &[u8], value: Vec<u8>| batch.put(Family::Default, key, &value);
    for change in changes {
        match change {
            MetaChange::SetCluster(cluster) => put(CLUSTER, number(&cluster.to_be_bytes())),
            MetaChange::NextId(next_id) => put(NEXT_ID, number(&next_id.to_be_bytes())),
            MetaChange::NextRaftId(next) => put(NEXT_RAFT_ID, number(&next.to_be_bytes())),
            MetaChange::NextNumber(next) => put(NEXT_NUMBER, number(&next.to_be_bytes())),
            MetaChange::PutServer(registered) => {
                put(&server_key(SERVER, registered.server.id), versioned(VERSION, registered))
            }
            MetaChange::PutTable(record) => {
                put(&table_key(record.table.id), versioned(VERSION, record))
            }
            MetaChange::PutPlacement(placement) => {
                let placed =
                    PlacementBody { epoch: placement.epoch, members: placement.members.clone() };
                put(&placement_key(placement.partition), versioned(VERSION, &placed));
            }
            MetaChange::RemoveServer(id, since_ms) => {
                put(&server_key(REMOVED, *id), number(&since_ms.to_be_bytes()));
            }
            MetaChange::MetaIndex(index, Some(server)) => {
                put(&meta_index_key(*index), number(&server.0.to_be_bytes()))
            }
            MetaChange::ForgetTable(_) | MetaChange::MetaIndex(_, None) => {}
        }
    }
    put(STAMP, number(&stamp_ms.to_be_bytes()));
    for change in changes {
        match change {
            MetaChange::RemoveServer(id, _) => {
                batch.delete(Family::Default, &server_key(SERVER, *id))
            }
            MetaChange::MetaIndex(index, None) => {
                batch.delete(Family::Default, &meta_index_key(*index))
            }
            MetaChange::ForgetTable(table) => {
                batch.delete(Family::Default, &table_key(*table));
                let first = placement_key(PartitionId { table: *table, index: 0 });
                let end =
                    [&placement_key(PartitionId { table: *table, index: u32::MAX })[..], b"\0"]
                        .concat();
                batch.delete_range(Family::Default, &first, &end);
            }
            _ => {}
        }
    }
    batch.finish()
}

/// Takes one record of the store into a state.
pub fn load(state: &mut MetaState, key: &[u8], value: &[u8]) -> Result<(), RecordDecodeError> {
    let bad = || RecordDecodeError { key: String::from_utf8_lossy(key).into_owned() };
    let Some((&version, body)) = value.split_first() else { return Err(bad()) };
    let u32_of = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes).map_err(|_| bad());
    let u64_of = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| bad());
    match (key, version) {
        (CLUSTER, VERSION) => state.cluster = Some(u64_of(body)?),
        (NEXT_ID, VERSION) => state.next_id = u32_of(body)?,
        (NEXT_RAFT_ID, VERSION) => state.next_raft_id = u64_of(body)?,
        (NEXT_NUMBER, VERSION) => state.next_number = u32_of(body)?,
        (STAMP, VERSION) => state.stamp_ms = u64_of(body)?,
        ([SERVER, id @ ..], VERSION) if id.len() == 8 => {
            let registered: RegisteredServer = postcard::from_bytes(body).map_err(|_| bad())?;
            if registered.server.id.0 != u64_of(id)? {
                return Err(bad());
            }
            state.servers.insert(registered.server.id, registered);
        }
        ([REMOVED, id @ ..], VERSION) if id.len() == 8 => {
            state.removed.insert(ServerId(u64_of(id)?), u64_of(body)?);
        }
        ([META_INDEX, index @ ..], VERSION) if index.len() == 4 => {
            state.meta_members.insert(u32_of(index)?, meta_index_owner(value).ok_or_else(bad)?);
        }
        ([TABLE, id @ ..], VERSION) if id.len() == 4 => {
            let record: TableRecord = postcard::from_bytes(body).map_err(|_| bad())?;
            if record.table.id.0 != u32_of(id)? || record.table.partitions == 0 {
                return Err(bad());
            }
            state.tables.insert(record.table.id, record);
        }
        ([PLACEMENT, ids @ ..], VERSION) if ids.len() == 8 => {
            let partition =
                PartitionId { table: TableId(u32_of(&ids[..4])?), index: u32_of(&ids[4..])? };
            let PlacementBody { epoch, members } = postcard::from_bytes(body).map_err(|_| bad())?;
            if members.is_empty() {
                return Err(bad());
            }
            state.placements.insert(partition, Arc::new(Placement { partition, members, epoch }));
        }
        _ => return Err(bad()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cluster::Table;
    use cluster::meta_protocol::{Durability, Roles, Server};
    use engine::batch::{self, Change as Written};

    use super::*;
    use crate::state::TablePhase;

    fn example() -> Vec<MetaChange> {
        let envs = BTreeMap::from([("default_ttl".to_owned(), "60".to_owned())]);
        let id = TableId(258);
        let table = Table {
            id,
            name: "db3".into(),
            number: 3,
            partitions: 1,
            replicas: 3,
            envs,
            default_ttl_since_ms: 1000,
        };
        let roles = Roles { meta: true, storage: false, proxy: true };
        let server = Server {
            id: ServerId(300),
            address: "a:1".into(),
            http: "b".into(),
            clients: vec!["c".into()],
            zone: "z".into(),
            roles,
            durability: Some(Durability::Interval),
        };
        let members = vec![Member { raft_id: 5, server: ServerId(300) }];
        vec![
            MetaChange::SetCluster(0x0304),
            MetaChange::NextId(259),
            MetaChange::NextRaftId(6),
            MetaChange::NextNumber(0x1112),
            MetaChange::PutServer(RegisteredServer { server, since_ms: 9 }),
            MetaChange::PutTable(TableRecord {
                table: Arc::new(table),
                status: TablePhase::Creating,
                created_at_ms: 300,
                remaining: vec![ServerId(2)],
            }),
            MetaChange::PutPlacement(Arc::new(Placement {
                partition: PartitionId { table: id, index: 0 },
                members,
                epoch: 1,
            })),
            MetaChange::RemoveServer(ServerId(7), 8),
            MetaChange::ForgetTable(TableId(7)),
            MetaChange::MetaIndex(3, Some(ServerId(300))),
            MetaChange::MetaIndex(2, None),
        ]
    }

    /// A change's name in the file of vectors.
    fn label(change: &MetaChange) -> String {
        let kind = match change {
            MetaChange::SetCluster(_) => "cluster",
            MetaChange::PutServer(_) => "server",
            MetaChange::RemoveServer(..) => "remove-server",
            MetaChange::PutTable(record) => match record.status {
                TablePhase::Ready => "table-ready",
                TablePhase::Dropping => "table-dropping",
                TablePhase::Creating => "table-creating",
            },
            MetaChange::PutPlacement(_) => "placement",
            MetaChange::ForgetTable(_) => "forget-table",
            MetaChange::NextId(_) => "next-id",
            MetaChange::NextRaftId(_) => "next-raft-id",
            MetaChange::NextNumber(_) => "next-number",
            MetaChange::MetaIndex(_, Some(_)) => "seat",
            MetaChange::MetaIndex(_, None) => "free-seat",
        };
        kind.to_owned()
    }

    /// All examples: those that are loaded together, and more of a table's life.
    fn examples() -> Vec<MetaChange> {
        let mut all = example();
        let Some(MetaChange::PutTable(creating)) =
            all.iter().find(|change| matches!(change, MetaChange::PutTable(_))).cloned()
        else {
            panic!("there is a table among them")
        };
        all.push(MetaChange::PutTable(TableRecord {
            status: TablePhase::Ready,
            remaining: Vec::new(),
            ..creating.clone()
        }));
        all.push(MetaChange::PutTable(TableRecord {
            status: TablePhase::Dropping,
            remaining: vec![ServerId(2), ServerId(300)],
            ..creating
        }));
        all
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The records of a batch, a line each.
    fn lines_of(label: &str, changes: &[MetaChange], stamp_ms: u64) -> Vec<String> {
        let bytes = batch(changes, stamp_ms);
        let line = |written: Result<Written<'_>, _>| match written.unwrap() {
            Written::Put { family: Family::Default, key, value } => {
                format!("{label} put {} {}", hex(key), hex(value))
            }
            Written::Delete { family: Family::Default, key } => {
                format!("{label} delete {}", hex(key))
            }
            Written::DeleteRange { family: Family::Default, from, to } => {
                format!("{label} delete-range {} {}", hex(from), hex(to))
            }
            other => panic!("meta has no such records: {other:?}"),
        };
        batch::read(&bytes).unwrap().map(line).collect()
    }

    /// Frozen: add lines for new versions and kinds, never edit these.
    #[test]
    fn written_payloads_are_frozen() {
        let mut expected = lines_of("stamp", &[], 0x0102);
        for change in examples() {
            let lines = lines_of(&label(&change), &[change], 0x0102);
            let stamp = format!("put {}", hex(STAMP));
            expected.extend(lines.into_iter().filter(|line| !line.contains(&stamp)));
        }
        let kinds: std::collections::BTreeSet<String> = examples().iter().map(label).collect();
        assert_eq!(kinds.len(), 13, "give an example of each kind of change: {kinds:?}");
        let text = include_str!("../tests/vectors/records.txt");
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let missing: Vec<&String> =
            expected.iter().filter(|line| !lines.contains(&line.as_str())).collect();
        let unknown: Vec<&&str> =
            lines.iter().filter(|line| !expected.iter().any(|own| own == **line)).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "records.txt lacks {missing:#?} and has without an example {unknown:#?}"
        );
    }

    /// One batch keeps its order: what is put, the stamp, what is deleted.
    #[test]
    fn a_batch_puts_before_it_deletes() {
        let bytes = batch(&example(), 0x0102);
        let all: Vec<_> = batch::read(&bytes).unwrap().map(Result::unwrap).collect();
        let is_put = |written: &Written<'_>| matches!(written, Written::Put { .. });
        let puts = all.iter().take_while(|written| is_put(written)).count();
        assert_eq!((puts, all.len()), (10, 14));
        assert!(matches!(all[puts - 1], Written::Put { key: STAMP, .. }));
        assert!(all[puts..].iter().all(|written| !is_put(written)));
    }

    #[test]
    fn written_records_load_as_the_same_state() {
        let bytes = batch(&example(), 77);
        let mut loaded = MetaState::default();
        for change in batch::read(&bytes).unwrap() {
            if let Written::Put { key, value, .. } = change.unwrap() {
                load(&mut loaded, key, value).unwrap();
            }
        }
        let mut expected = MetaState::default();
        expected.apply(&example(), 77);
        assert_eq!(loaded, expected);
    }

    #[test]
    fn damaged_records_are_refused() {
        let mut state = MetaState::default();
        for (key, value) in [
            (&b"next_id"[..], &b""[..]),
            (b"next_id", b"\x02\x00\x00\x00\x01"),
            (b"next_id", b"\x01\x00"),
            (b"next_raft_id", b"\x01\x00"),
            (b"cluster", b"\x01\x00"),
            (b"stamp", b"\x01\x00\x00\x00\x01"),
            (b"t\x00\x00\x00\x01", b"\x01\xff\xff"),
            (b"t\x00\x00\x00\x01", b"\x01\x02\x01a\x01\x00\x00\x00\x00"),
            (b"t\x00\x00\x00\x01", b"\x03\x02\x01a\x01\x00\x00\x00\x00"),
            (b"p\x00\x00\x00\x01\x00\x00\x00\x00", b"\x01\x01\x00"),
            (
                b"s\x00\x00\x00\x00\x00\x00\x01\x2d",
                b"\x01\xac\x02\x03a:1\x01b\x01\x01c\x01z\x01\x00\x01\x01\x01\x09",
            ),
            (b"x\x00", b"\x01"),
            (b"m\x00\x00\x00\x03", b"\x01\x00"),
            (b"m\x00", b"\x01\x00\x00\x00\x00\x00\x00\x01\x2c"),
            (b"who?", b"\x01"),
        ] {
            assert!(load(&mut state, key, value).is_err(), "{key:?} {value:?}");
        }
        assert_eq!(state, MetaState::default());
    }
}
