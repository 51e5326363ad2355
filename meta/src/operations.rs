//! Operations of the leading meta for operators and proxies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::meta_protocol::Instruction;
use cluster::{Member, PartitionId, ServerId, Table};

use crate::error::MetaError;
use crate::image::MetadataImage;
use crate::meta::{Meta, MetaMode, now_ms};
use crate::state::{MetaCommand, Refusal, TablePhase, TableRecord};

/// Timeout for servers to apply a change that a command waits for.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(30);
/// After a change of the leading meta, a new table waits this long for servers to
/// reconnect before it is refused for lack of them.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);
const ARRIVAL_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout of a leadership transfer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);

impl Meta {
    /// A new table, once it can be written. `partitions`, `replicas`: `None` = as
    /// configured.
    ///
    /// # Errors
    /// [`MetaError::Refused`]; [`MetaError::NotYet`]: it is there, but not all of its
    /// partitions have a leader yet.
    pub async fn create(
        &self,
        name: &str,
        partitions: Option<u32>,
        replicas: Option<u32>,
        envs: BTreeMap<String, String>,
    ) -> Result<Arc<Table>, MetaError> {
        let (partitions, replicas) = (
            partitions.unwrap_or(self.options.partitions),
            replicas.unwrap_or(self.options.replicas),
        );
        let live = self.arrived(replicas as usize).await?;
        let unhealthy = {
            let tracker = self.tracker.lock();
            live.iter().copied().filter(|server| !tracker.is_healthy(*server)).collect()
        };
        let table = self
            .table_command(MetaCommand::Create {
                name: name.to_owned(),
                partitions,
                replicas,
                envs,
                live,
                unhealthy,
            })
            .await?;
        tracing::info!(
            table = name,
            id = table.id.0,
            partitions,
            replicas,
            "table is being created"
        );
        self.until_settled(&table).await?;
        Ok(table)
    }

    /// Storage servers that are there: at least so many, or after a while as many as
    /// there are.
    async fn arrived(&self, wanted: usize) -> Result<Vec<ServerId>, MetaError> {
        loop {
            // One who does not lead yet may be about to: deciding tells.
            self.ensure_leading().await?;
            let image = self.image()?;
            let stores =
                |id: &ServerId| image.servers.get(id).is_some_and(|server| server.roles.storage);
            let live: Vec<ServerId> = self.tracker.lock().up().filter(stores).collect();
            let is_alone = matches!(self.options.mode, MetaMode::Standalone(_));
            if live.len() >= wanted || is_alone || image.since.elapsed() > ARRIVAL_TIMEOUT {
                return Ok(live);
            }
            tokio::time::sleep(ARRIVAL_POLL_INTERVAL).await;
        }
    }

    /// Waits until a table that was just changed serves, and every server that is there
    /// and holds some of it has taken note.
    async fn until_settled(&self, table: &Arc<Table>) -> Result<(), MetaError> {
        let is_settled = |record: &TableRecord, has_followed: bool| {
            record.status == TablePhase::Dropping
                || record.table != *table
                || (record.status == TablePhase::Ready && has_followed)
        };
        self.until_followed(table, "opened", is_settled).await
    }

    /// Waits until it `is_done`, given the table's record, and whether every server
    /// that is there and holds some of it has taken note of the last change. A table that
    /// is gone is done with.
    async fn until_followed(
        &self,
        table: &Table,
        what: &str,
        is_done: impl Fn(&TableRecord, bool) -> bool,
    ) -> Result<(), MetaError> {
        let not_yet =
            |why: &str| MetaError::NotYet(format!("table '{}' is being {what}; {why}", table.name));
        let mut wakeups = self.wakeups.subscribe();
        let followed = async {
            loop {
                wakeups.borrow_and_update();
                let is_done = {
                    let tracker = self.tracker.lock();
                    let image = self.image().map_err(|_| not_yet("another meta leads now"))?;
                    image.state.tables.get(&table.id).is_none_or(|record| {
                        let version =
                            image.changed.get(&table.id).copied().unwrap_or(image.version);
                        is_done(record, tracker.has_followed(&image.state, table.id, version))
                    })
                };
                if is_done || wakeups.changed().await.is_err() {
                    return Ok(());
                }
            }
        };
        let late = |_| not_yet("that takes longer than usual");
        tokio::time::timeout(FOLLOW_TIMEOUT, followed).await.map_err(late)?
    }

    /// Takes a table away. When it answers, no server that is there serves it any more: a
    /// proxy that has not heard of it can't write into what is gone.
    ///
    /// # Errors
    /// [`MetaError::Refused`]; [`MetaError::NotYet`]: a server is slow to follow.
    pub async fn drop_table(&self, name: &str) -> Result<Arc<Table>, MetaError> {
        let table = self.table_command(MetaCommand::Drop { name: name.to_owned() }).await?;
        tracing::info!(table = name, id = table.id.0, "table is being dropped");
        self.until_followed(&table, "dropped", |_, has_followed| has_followed).await?;
        Ok(table)
    }

    /// Sets (`Some`) or deletes (`None`) an env; when it answers, it holds on every
    /// server that is there.
    ///
    /// # Errors
    /// [`MetaError::Refused`].
    pub async fn set_env(
        &self,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<Arc<Table>, MetaError> {
        let (name, key) = (name.to_owned(), key.to_owned());
        let table = match value {
            Some(value) => {
                self.table_command(MetaCommand::SetEnv {
                    name,
                    key: key.clone(),
                    value: value.to_owned(),
                })
                .await?
            }
            None => self.table_command(MetaCommand::DeleteEnv { name, key: key.clone() }).await?,
        };
        tracing::info!(
            table = table.name,
            env = key,
            value = value.unwrap_or("(default)"),
            "env set"
        );
        self.until_settled(&table).await?;
        Ok(table)
    }

    /// All tables, those that are being dropped included.
    ///
    /// # Errors
    /// [`MetaError::NotLeading`].
    pub fn records(&self) -> Result<Vec<TableRecord>, MetaError> {
        Ok(self.image()?.state.tables.values().cloned().collect())
    }

    /// The table of a name that serves; `None`: at some moment since the call there was
    /// none. One that is being created does not serve yet: nobody has written to it.
    ///
    /// # Errors
    /// [`MetaError::NotLeading`].
    pub async fn find_table(&self, name: &str) -> Result<Option<Arc<Table>>, MetaError> {
        let image = self.confirmed().await?;
        let serving = image.state.named(name).filter(|record| record.status == TablePhase::Ready);
        Ok(serving.map(|record| record.table.clone()))
    }

    /// The table of a name, created as configured when it is missing, once it can be
    /// written.
    ///
    /// # Errors
    /// As [`Meta::create`].
    pub async fn ensure_table(&self, name: &str) -> Result<Arc<Table>, MetaError> {
        loop {
            let known =
                self.confirmed().await?.state.named(name).map(|record| record.table.clone());
            if let Some(table) = known {
                self.until_settled(&table).await?;
                // Changed or dropped meanwhile: what is there now is meant.
                match self.image()?.state.named(name) {
                    Some(now) if now.table == table && now.status == TablePhase::Ready => {
                        return Ok(table);
                    }
                    _ => continue,
                }
            }
            match self.create(name, None, None, BTreeMap::new()).await {
                // Somebody was faster, or it is made: seen to serve, it is what everybody
                // finds from now on.
                Ok(_) | Err(MetaError::Refused(Refusal::Exists(_))) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets a server that is gone for good.
    ///
    /// # Errors
    /// [`MetaError::Refused`].
    pub async fn remove_server(&self, server: ServerId) -> Result<(), MetaError> {
        self.ensure_leading().await?;
        let live = self.tracker.lock().is_up(server);
        self.command(MetaCommand::Remove { server, live }).await?;
        tracing::info!(%server, "server removed");
        Ok(())
    }

    /// Lets another server take a meta index whose server has lost its directory.
    ///
    /// # Errors
    /// [`MetaError::Refused`]: nobody has it, or its server is there.
    pub async fn release_meta_index(&self, index: u32) -> Result<(), MetaError> {
        self.ensure_leading().await?;
        let live = self.tracker.lock().up().collect();
        self.command(MetaCommand::ReleaseMetaIndex { index, live }).await?;
        tracing::warn!(index, "meta index released: another server may take it");
        Ok(())
    }

    /// Hands the leadership of a partition to another of its members, and waits until it
    /// is so. The partition is then left alone by the balancing of leaders for a while.
    ///
    /// # Errors
    /// [`MetaError::NotNow`]: nobody leads, or the member can't; [`MetaError::NotYet`]:
    /// it was ordered and has not happened.
    pub async fn transfer(&self, partition: PartitionId, to: ServerId) -> Result<(), MetaError> {
        let image = self.image()?;
        let member = member_on(&image, partition, to)?;
        let mut wakeups = self.wakeups.subscribe();
        {
            let tracker = self.tracker.lock();
            if tracker.leading(partition).is_none() {
                return Err(MetaError::NotNow(
                    "nobody is known to lead the partition now".to_owned(),
                ));
            }
            if !tracker.is_up(to) {
                return Err(MetaError::NotNow(format!("server {to} is down")));
            }
        }
        self.controller.lock().hold_for_operator(partition, to);
        let late = || {
            MetaError::NotYet(
                "the leadership was not handed over in time; the one that leads goes on".to_owned(),
            )
        };
        let done = async {
            let mut asked_in = None;
            loop {
                wakeups.borrow_and_update();
                let leader = self.tracker.lock().leader(partition);
                match leader {
                    Some(leader) if leader.server == to => return Ok(()),
                    // Whoever has been given it meanwhile, to even leaders out or by an
                    // election, is asked as well.
                    Some(leader) if asked_in < Some(leader.term) => {
                        asked_in = Some(leader.term);
                        self.send_instruction(
                            leader.server,
                            Instruction::Transfer {
                                partition,
                                term: leader.term,
                                to: member.raft_id,
                            },
                        )?;
                    }
                    _ => {}
                }
                wakeups.changed().await.map_err(|_| late())?;
            }
        };
        tokio::time::timeout(TRANSFER_TIMEOUT, done).await.map_err(|_| late())?
    }

    /// Asks all servers that hold some of a table to compact it, unless such a compaction
    /// is still going on; [`crate::Meta::compaction`] says how it goes.
    ///
    /// # Errors
    /// [`MetaError::NotLeading`].
    pub fn compact(&self, table: &Arc<Table>) -> Result<(), MetaError> {
        let image = self.image()?;
        if self.compaction(&image, table).status == "running" {
            return Ok(());
        }
        let run = self.controller.lock().new_run(table.id, now_ms());
        for server in image.holders(table.id) {
            if let Err(error) =
                self.send_instruction(server, Instruction::Compact { run, table: table.id })
            {
                let table = &table.name;
                tracing::warn!(%server, table, %error, "cannot send a compaction to a server");
            }
        }
        Ok(())
    }
}

/// The member of a partition on a server.
fn member_on(
    image: &MetadataImage,
    partition: PartitionId,
    server: ServerId,
) -> Result<Member, MetaError> {
    let placement = image.state.placements.get(&partition);
    let placement = placement.ok_or(MetaError::Refused(Refusal::NoPartition(partition.index)))?;
    placement.on(server).copied().ok_or(MetaError::Refused(Refusal::NotAMember(server)))
}
