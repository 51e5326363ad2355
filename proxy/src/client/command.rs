//! The CLIENT command.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use commands::Reply;
use commands::plan::{ClientCommand, KillFilter, ReplyMode};

use super::{Client, Clients, Pause};
use crate::errors::one_line;

/// Effect of a CLIENT command on the calling connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Close, once the reply is sent.
    Close,
    /// CLIENT REPLY; `Off` and `Skip` suppress their own reply.
    Mode(ReplyMode),
}

impl Clients {
    /// Executes a CLIENT command of the client `me`.
    pub(crate) fn call(&self, me: &Arc<Client>, call: ClientCommand) -> (Reply, Effect) {
        let reply = match call {
            ClientCommand::Id => Reply::Int(me.id as i64),
            ClientCommand::GetName => {
                let name = me.name();
                if name.is_empty() { Reply::Nil } else { Reply::Bulk(name) }
            }
            ClientCommand::SetName(name) => {
                me.info.lock().name = Bytes::copy_from_slice(&name);
                Reply::OK
            }
            ClientCommand::SetInfo { library_name, library_version } => {
                let mut shown = me.info.lock();
                if let Some(name) = library_name {
                    shown.library_name = Bytes::copy_from_slice(&name);
                }
                if let Some(version) = library_version {
                    shown.library_version = Bytes::copy_from_slice(&version);
                }
                Reply::OK
            }
            ClientCommand::Info => Reply::Text(me.line() + "\n"),
            ClientCommand::List { kind, ids } => self.list(kind, &ids),
            ClientCommand::Kill(filter) => return self.kill(me, &filter),
            ClientCommand::NoEvict(on) => {
                me.no_evict.store(on, Ordering::Relaxed);
                Reply::OK
            }
            ClientCommand::NoTouch(on) => {
                me.info.lock().no_touch = on;
                Reply::OK
            }
            ClientCommand::Reply(mode) => return (Reply::OK, Effect::Mode(mode)),
            ClientCommand::Pause { ms, writes_only } => {
                self.pause(
                    if writes_only { Pause::Writes } else { Pause::All },
                    Duration::from_millis(ms),
                );
                Reply::OK
            }
            ClientCommand::Unpause => {
                self.unpause();
                Reply::OK
            }
            ClientCommand::Unblock { id, with_error } => Reply::Int(i64::from(
                self.all().iter().any(|client| client.id == id && client.unblock(with_error)),
            )),
        };
        (reply, Effect::None)
    }

    fn list(&self, kind: Option<Bytes>, ids: &[u64]) -> Reply {
        let kind = match kind.as_deref().map(ClientType::parse) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(reply)) => return reply,
        };
        let shown = |client: &Arc<Client>| {
            kind.is_none_or(|kind| kind == ClientType::Normal)
                && (ids.is_empty() || ids.contains(&client.id))
        };
        let lines = self
            .all()
            .iter()
            .filter(|client| shown(client))
            .map(|client| client.line() + "\n")
            .collect();
        Reply::Text(lines)
    }

    fn kill(&self, me: &Arc<Client>, filter: &KillFilter) -> (Reply, Effect) {
        let kind = match filter.kind.as_deref().map(ClientType::parse) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(reply)) => return (reply, Effect::None),
        };
        if let Some(user) = filter.user.as_ref().filter(|user| user.as_ref() != b"default") {
            return (Reply::error(format!("ERR No such user '{}'", one_line(user))), Effect::None);
        }
        let (mut killed, mut effect) = (0, Effect::None);
        for client in self.all() {
            let is_me = client.id == me.id;
            if (is_me && filter.skip_me && !filter.old_form)
                || kind.is_some_and(|kind| kind != ClientType::Normal)
                || !client.matches(filter)
            {
                continue;
            }
            killed += 1;
            if is_me {
                effect = Effect::Close;
            } else {
                client.kill();
            }
        }
        let reply = match (filter.old_form, killed) {
            (true, 0) => Reply::error("ERR No such client"),
            (true, _) => Reply::OK,
            (false, killed) => Reply::Int(killed),
        };
        (reply, effect)
    }
}

impl Client {
    fn matches(&self, filter: &KillFilter) -> bool {
        let is = |wanted: &Option<Bytes>, address: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == address.as_bytes())
        };
        filter.id.is_none_or(|id| id == self.id)
            && is(&filter.address, &self.endpoint.address)
            && is(&filter.local_address, &self.endpoint.local_address)
            && filter.max_age_seconds.is_none_or(|age| self.connected.elapsed().as_secs() >= age)
    }
}

/// Redis's client types. Monitors are normal clients; the other types do not occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientType {
    Normal,
    Master,
    Replica,
    Pubsub,
}

impl ClientType {
    fn parse(arg: &[u8]) -> Result<ClientType, Reply> {
        match arg.to_ascii_lowercase().as_slice() {
            b"normal" => Ok(ClientType::Normal),
            b"master" => Ok(ClientType::Master),
            b"replica" | b"slave" => Ok(ClientType::Replica),
            b"pubsub" => Ok(ClientType::Pubsub),
            _ => Err(Reply::error(format!("ERR Unknown client type '{}'", one_line(arg)))),
        }
    }
}
