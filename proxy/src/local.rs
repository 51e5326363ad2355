//! Local commands: those that the session carries out itself. Each family has one function
//! for all its commands, in its own file.

use commands::{LocalCommand, Reply};

use crate::session::Session;
use crate::{config, debug, latency, memory, slowlog};

/// The reply of a local command.
#[derive(Debug)]
pub(crate) enum LocalReply {
    /// It is sent, unless CLIENT REPLY suppresses it.
    Sent(Reply),
    /// It counts as sent and is not (CLIENT REPLY OFF and SKIP).
    Suppressed(Reply),
    /// There is none: the connection closes (SHUTDOWN).
    None,
}

impl From<Reply> for LocalReply {
    fn from(reply: Reply) -> LocalReply {
        LocalReply::Sent(reply)
    }
}

impl Session {
    /// Runs a local command. In a transaction it may not block.
    ///
    /// Families box what waits, so that this future is small, and commands that run
    /// [at once](commands::table::flags::AT_ONCE) cost no allocation.
    pub(crate) async fn run_local(&mut self, command: LocalCommand, may_block: bool) -> LocalReply {
        match command {
            LocalCommand::Connection(command) => self.run_connection(command).into(),
            LocalCommand::Client(command) => self.run_client(command),
            LocalCommand::Transaction(command) => self.run_transaction(command).await.into(),
            LocalCommand::Server(command) => self.run_server(command, may_block).await,
            LocalCommand::Config(command) => config::run(&self.proxy, command).into(),
            LocalCommand::Memory(command) => memory::run(&self.proxy, command).into(),
            LocalCommand::Debug(command) => {
                debug::run(&self.proxy, &self.client, command).await.into()
            }
            LocalCommand::Slowlog(command) => slowlog::run(&self.proxy.slowlog, command).into(),
            LocalCommand::Latency(command) => latency::run(&self.proxy, command).into(),
            LocalCommand::Wait(command) => self.run_wait(command, may_block).await.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use commands::Plan;
    use commands::table::{self, flags};
    use futures::FutureExt;

    use super::*;
    use crate::fakes;

    #[tokio::test]
    async fn commands_that_run_at_once_do_not_wait() {
        let mut session = Session::new(fakes::proxy(&Default::default()), fakes::client(1));
        for command in table::all().filter(|command| command.is(flags::AT_ONCE)) {
            let name = command.name.split('|');
            // An argument that all of these take.
            let args = name.chain(std::iter::repeat("lib-name"));
            let args = args.take(usize::from(command.arity.unsigned_abs()));
            let argv = args.map(|arg| Bytes::from_static(arg.as_bytes())).collect();
            let Ok(Plan::Local(local)) = command.plan_call(argv, 1) else {
                panic!("{command:?} is not a local command")
            };
            let reply = session.run_local(local, true).now_or_never();
            assert!(matches!(reply, Some(LocalReply::Sent(_))), "{command:?}: {reply:?}");
        }
    }
}
