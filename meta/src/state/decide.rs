//! Decisions: from commands to changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cluster::meta_protocol::Server;
use cluster::{DATABASES, Member, PartitionId, Placement, ServerId, Table, TableId};

use super::{
    DATABASE_MAX, Decision, MetaChange, MetaCommand, MetaState, PARTITIONS_MAX,
    PARTITIONS_TOTAL_MAX, REMOVED_MAX, REPLICAS_MAX, Refusal, RegisteredServer, SERVERS_MAX,
    TABLES_MAX, TablePhase, TableRecord, check_name,
};
use crate::envs;
use crate::placement::{self, Candidate};

/// Number of tables' names that a refusal lists.
const NAMES_SHOWN: usize = 5;

/// Specification of a new table.
struct NewTableSpec {
    name: String,
    partitions: u32,
    replicas: u32,
    envs: BTreeMap<String, String>,
    live: Vec<ServerId>,
    unhealthy: Vec<ServerId>,
}

fn about(table: Arc<Table>, changes: Vec<MetaChange>) -> Result<Decision, Refusal> {
    Ok(Decision { changes, table: Some(table) })
}

impl MetaState {
    fn require_table(&self, name: &str) -> Result<&TableRecord, Refusal> {
        self.named(name).ok_or_else(|| Refusal::NoTable(name.to_owned()))
    }

    /// The changes of a command. `stamp_ms` is not before the last one.
    pub fn decide(&self, command: MetaCommand, stamp_ms: u64) -> Result<Decision, Refusal> {
        match command {
            MetaCommand::BootstrapCluster { cluster } => {
                let changes = if self.cluster.is_some() {
                    Vec::new()
                } else {
                    vec![MetaChange::SetCluster(cluster)]
                };
                Ok(Decision { changes, table: None })
            }
            MetaCommand::Register(server) => self.register(server, stamp_ms),
            MetaCommand::Remove { server, live } => self.remove(server, live, stamp_ms),
            MetaCommand::ClaimMetaIndex { index, server } => match self.meta_members.get(&index) {
                None => Ok(Decision {
                    changes: vec![MetaChange::MetaIndex(index, Some(server))],
                    table: None,
                }),
                Some(known) if *known == server => {
                    Ok(Decision { changes: Vec::new(), table: None })
                }
                Some(known) => Err(Refusal::MetaIndexTaken { index, server: *known }),
            },
            MetaCommand::ReleaseMetaIndex { index, live } => match self.meta_members.get(&index) {
                None => Err(Refusal::NoMetaIndex(index)),
                Some(server) if live.contains(server) => Err(Refusal::Alive(*server)),
                Some(_) => {
                    Ok(Decision { changes: vec![MetaChange::MetaIndex(index, None)], table: None })
                }
            },
            MetaCommand::Create { name, partitions, replicas, envs, live, unhealthy } => self
                .create(
                    NewTableSpec { name, partitions, replicas, envs, live, unhealthy },
                    stamp_ms,
                ),
            MetaCommand::MarkReady { id } => match self.tables.get(&id) {
                Some(record) if record.status == TablePhase::Creating => about(
                    record.table.clone(),
                    vec![MetaChange::PutTable(TableRecord {
                        status: TablePhase::Ready,
                        ..record.clone()
                    })],
                ),
                _ => Err(Refusal::NotCreating(id)),
            },
            MetaCommand::Drop { name } => {
                let record = self.require_table(&name)?;
                let holders: BTreeSet<ServerId> = self
                    .placements_of(record.table.id)
                    .flat_map(|placement| placement.members.iter().map(|member| member.server))
                    .collect();
                let record = TableRecord {
                    status: TablePhase::Dropping,
                    remaining: holders.into_iter().collect(),
                    ..record.clone()
                };
                about(record.table.clone(), vec![MetaChange::PutTable(record)])
            }
            MetaCommand::MarkDestroyed { id, server } => match self.tables.get(&id) {
                Some(record)
                    if record.status == TablePhase::Dropping
                        && record.remaining.contains(&server) =>
                {
                    about(record.table.clone(), vec![without_server(record, server)])
                }
                _ => Err(Refusal::NotDropping(id)),
            },
            MetaCommand::SetEnv { name, key, value } => {
                envs::check(&key, &value)?;
                self.with_envs(&name, stamp_ms, |envs| envs.insert(key, value))
            }
            MetaCommand::DeleteEnv { name, key } => {
                envs::find(&key)?;
                self.with_envs(&name, stamp_ms, |envs| envs.remove(&key))
            }
        }
    }

    fn register(&self, server: Server, stamp_ms: u64) -> Result<Decision, Refusal> {
        server.check()?;
        if self.removed.contains_key(&server.id) {
            return Err(Refusal::Removed(server.id));
        }
        let known = self.servers.get(&server.id);
        if known.is_none() && self.servers.len() >= SERVERS_MAX {
            return Err(Refusal::TooManyServers);
        }
        if known.is_some_and(|known| known.server == server) {
            return Ok(Decision { changes: Vec::new(), table: None });
        }
        let since_ms = known.map_or(stamp_ms, |known| known.since_ms);
        Ok(Decision {
            changes: vec![MetaChange::PutServer(RegisteredServer { server, since_ms })],
            table: None,
        })
    }

    fn remove(&self, server: ServerId, live: bool, stamp_ms: u64) -> Result<Decision, Refusal> {
        if !self.servers.contains_key(&server) {
            return Err(Refusal::NoServer(server));
        }
        if live {
            return Err(Refusal::Alive(server));
        }
        if self.removed.len() >= REMOVED_MAX {
            return Err(Refusal::TooManyServers);
        }
        let mut names = BTreeSet::new();
        let mut replicas = 0;
        for placement in self.placements.values().filter(|placement| placement.on(server).is_some())
        {
            if let Some(record) = self
                .tables
                .get(&placement.partition.table)
                .filter(|record| record.status != TablePhase::Dropping)
            {
                names.insert(record.table.name.as_str());
                replicas += 1;
            }
        }
        if replicas > 0 {
            let mut tables = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
            if names.len() > NAMES_SHOWN {
                tables.push_str(", ...");
            }
            return Err(Refusal::HoldsReplicas { server, replicas, tables });
        }
        let dropping = self.tables.values().filter(|record| record.remaining.contains(&server));
        let mut changes = vec![MetaChange::RemoveServer(server, stamp_ms)];
        changes.extend(
            self.meta_members
                .iter()
                .filter(|(_, sits)| **sits == server)
                .map(|(index, _)| MetaChange::MetaIndex(*index, None)),
        );
        changes.extend(dropping.map(|record| without_server(record, server)));
        Ok(Decision { changes, table: None })
    }

    fn create(&self, new: NewTableSpec, stamp_ms: u64) -> Result<Decision, Refusal> {
        let NewTableSpec { name, partitions, replicas, envs, live, unhealthy } = new;
        check_name(&name)?;
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(Refusal::BadPartitions);
        }
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(Refusal::BadReplicas);
        }
        for (key, value) in &envs {
            envs::check(key, value)?;
        }
        if self.named(&name).is_some() {
            return Err(Refusal::Exists(name));
        }
        if self.tables.len() >= TABLES_MAX {
            return Err(Refusal::TooMany);
        }
        if self.placements.len() + partitions as usize > PARTITIONS_TOTAL_MAX {
            return Err(Refusal::TooManyPartitions);
        }
        let (number, next_number) = self.number(&name)?;
        let next_id = self.next_id.checked_add(1).ok_or(Refusal::NoIds)?;
        let id = TableId(self.next_id);
        let servers = placement::place(partitions, replicas, &self.candidates(&live, &unhealthy))?;
        let mut raft_id = self.next_raft_id;
        let mut fresh = |server| {
            raft_id += 1;
            Member { raft_id: raft_id - 1, server }
        };
        let placements: Vec<MetaChange> = (0..partitions)
            .zip(servers)
            .map(|(index, servers)| {
                let members = servers.into_iter().map(&mut fresh).collect();
                MetaChange::PutPlacement(Arc::new(Placement {
                    partition: PartitionId { table: id, index },
                    members,
                    epoch: 1,
                }))
            })
            .collect();
        let since = if envs.contains_key(envs::DEFAULT_TTL) { stamp_ms } else { 0 };
        let table = Arc::new(Table {
            id,
            name,
            number,
            partitions,
            replicas,
            envs,
            default_ttl_since_ms: since,
        });
        let record = TableRecord {
            table: table.clone(),
            status: TablePhase::Creating,
            created_at_ms: stamp_ms,
            remaining: Vec::new(),
        };
        let mut changes = vec![
            MetaChange::NextId(next_id),
            MetaChange::NextRaftId(raft_id),
            MetaChange::PutTable(record),
        ];
        if next_number != self.next_number {
            changes.push(MetaChange::NextNumber(next_number));
        }
        changes.extend(placements);
        about(table, changes)
    }

    /// The number of a new table, and the one to be given next.
    fn number(&self, name: &str) -> Result<(u32, u32), Refusal> {
        match cluster::database(name) {
            Some(number) if number < DATABASES => Ok((number, self.next_number)),
            Some(number) if (self.next_number..=DATABASE_MAX).contains(&number) => {
                Ok((number, number + 1))
            }
            Some(_) => Err(Refusal::Reserved(name.to_owned())),
            // Clients keep it in an int.
            None if self.next_number < i32::MAX as u32 => {
                Ok((self.next_number, self.next_number + 1))
            }
            None => Err(Refusal::NoIds),
        }
    }

    /// Servers that may be given replicas, with what they have already.
    fn candidates(&self, live: &[ServerId], unhealthy: &[ServerId]) -> Vec<Candidate> {
        let able = |id: &&ServerId| {
            self.servers.get(id).is_some_and(|registered| registered.server.roles.storage)
        };
        let candidate = |id: &ServerId| Candidate {
            id: *id,
            zone: self.servers[id].server.zone.clone(),
            replicas: 0,
            leaders: 0,
            is_unhealthy: unhealthy.contains(id),
        };
        let mut candidates: BTreeMap<ServerId, Candidate> =
            live.iter().filter(able).map(|id| (*id, candidate(id))).collect();
        let serves = |placement: &&Arc<Placement>| {
            self.tables
                .get(&placement.partition.table)
                .is_some_and(|record| record.status != TablePhase::Dropping)
        };
        for placement in self.placements.values().filter(serves) {
            for (nth, member) in placement.members.iter().enumerate() {
                if let Some(candidate) = candidates.get_mut(&member.server) {
                    candidate.replicas += 1;
                    candidate.leaders += u64::from(nth == 0);
                }
            }
        }
        candidates.into_values().collect()
    }

    fn with_envs<T>(
        &self,
        name: &str,
        stamp_ms: u64,
        edit: impl FnOnce(&mut BTreeMap<String, String>) -> T,
    ) -> Result<Decision, Refusal> {
        let record = self.require_table(name)?;
        let mut table = Table::clone(&record.table);
        edit(&mut table.envs);
        if table.envs == record.table.envs {
            return about(record.table.clone(), Vec::new());
        }
        let ttl = table.envs.get(envs::DEFAULT_TTL);
        if ttl != record.table.envs.get(envs::DEFAULT_TTL) {
            // By it partitions tell later news from earlier, also that there is none any
            // more.
            table.default_ttl_since_ms = stamp_ms.max(table.default_ttl_since_ms + 1);
        }
        let table = Arc::new(table);
        about(table.clone(), vec![MetaChange::PutTable(TableRecord { table, ..record.clone() })])
    }
}

/// A table that is being dropped, with nothing left on a server.
fn without_server(record: &TableRecord, server: ServerId) -> MetaChange {
    let remaining: Vec<ServerId> =
        record.remaining.iter().copied().filter(|id| *id != server).collect();
    match remaining.is_empty() {
        true => MetaChange::ForgetTable(record.table.id),
        false => MetaChange::PutTable(TableRecord { remaining, ..record.clone() }),
    }
}
