//! The CLIENT command.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use commands::Reply;
use commands::client::{ClientCommand, KillFilter, ReplyMode};

use super::{Client, Clients, Pause};
use crate::errors::one_line;
use crate::local::LocalReply;
use crate::session::{ReplySuppression, Session};

impl Session {
    /// Runs a CLIENT command.
    pub(crate) fn run_client(&mut self, command: ClientCommand) -> LocalReply {
        let (me, clients) = (&self.client, &self.proxy.clients);
        let reply = match command {
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
            ClientCommand::List { kind, ids } => clients.list(kind, &ids),
            ClientCommand::Kill(filter) => {
                let (reply, is_me) = clients.kill(me, &filter);
                // The connection closes once the reply is sent.
                self.closing |= is_me;
                reply
            }
            ClientCommand::NoEvict(on) => {
                me.no_evict.store(on, Ordering::Relaxed);
                Reply::OK
            }
            ClientCommand::NoTouch(on) => {
                me.info.lock().no_touch = on;
                Reply::OK
            }
            ClientCommand::Reply(mode) => return self.set_reply_mode(mode),
            ClientCommand::Pause { ms, writes_only } => {
                clients.pause(
                    if writes_only { Pause::Writes } else { Pause::All },
                    Duration::from_millis(ms),
                );
                Reply::OK
            }
            ClientCommand::Unpause => {
                clients.unpause();
                Reply::OK
            }
            ClientCommand::Unblock { id, with_error } => Reply::Int(i64::from(
                clients.all().iter().any(|client| client.id == id && client.unblock(with_error)),
            )),
        };
        LocalReply::Sent(reply)
    }

    /// CLIENT REPLY. ON is answered; OFF and SKIP suppress their own reply as well.
    fn set_reply_mode(&mut self, mode: ReplyMode) -> LocalReply {
        self.silence = match mode {
            ReplyMode::On => ReplySuppression::None,
            ReplyMode::Off => ReplySuppression::All,
            ReplyMode::Skip if self.silence == ReplySuppression::None => {
                ReplySuppression::NextReply
            }
            ReplyMode::Skip => self.silence,
        };
        match self.silence {
            ReplySuppression::None => LocalReply::Sent(Reply::OK),
            ReplySuppression::NextReply | ReplySuppression::All => {
                LocalReply::Suppressed(Reply::OK)
            }
        }
    }
}

impl Clients {
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

    /// CLIENT KILL: the reply, and `true` if `me` is among the killed.
    fn kill(&self, me: &Arc<Client>, filter: &KillFilter) -> (Reply, bool) {
        let kind = match filter.kind.as_deref().map(ClientType::parse) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(reply)) => return (reply, false),
        };
        if let Some(user) = filter.user.as_ref().filter(|user| user.as_ref() != b"default") {
            return (Reply::error(format!("ERR No such user '{}'", one_line(user))), false);
        }
        let (mut killed, mut is_me_killed) = (0, false);
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
                is_me_killed = true;
            } else {
                client.kill();
            }
        }
        let reply = match (filter.old_form, killed) {
            (true, 0) => Reply::error("ERR No such client"),
            (true, _) => Reply::OK,
            (false, killed) => Reply::Int(killed),
        };
        (reply, is_me_killed)
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
