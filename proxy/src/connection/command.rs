//! HELLO, AUTH, RESET, QUIT.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use commands::Reply;
use commands::connection::{ConnectionCommand, Hello};
use subtle::ConstantTimeEq;

use crate::resp::Protocol;
use crate::session::{FIRST_TABLE, ReplySuppression, Session};
use crate::transactions::queue::Transaction;
use crate::{REDIS_VERSION, errors};

impl Session {
    /// Runs a command of the connection itself.
    pub(crate) fn run_connection(&mut self, command: ConnectionCommand) -> Reply {
        match command {
            ConnectionCommand::Hello(hello) => self.hello(hello),
            ConnectionCommand::Auth { user, password } => {
                self.authenticate(user.as_deref(), &password)
            }
            ConnectionCommand::Quit => {
                self.closing = true;
                Reply::OK
            }
            ConnectionCommand::Reset => self.reset(),
        }
    }

    /// AUTH.
    fn authenticate(&mut self, user: Option<&[u8]>, password: &[u8]) -> Reply {
        let settings = self.proxy.settings.load();
        let is_right = match &settings.password {
            None if user.is_none() => return Reply::error(errors::NO_PASSWORD),
            // As Redis's default user without a password: any password is accepted.
            None => true,
            // Timing reveals at most the length of the password.
            Some(right) => bool::from(right.as_ref().ct_eq(password)),
        };
        if !is_right || user.is_some_and(|user| user != b"default") {
            self.proxy.stats.auth_failures.add(1);
            return Reply::error(errors::WRONGPASS);
        }
        self.authenticated = true;
        Reply::OK
    }

    /// HELLO.
    fn hello(&mut self, hello: Hello) -> Reply {
        if let Some((user, password)) = &hello.auth {
            let reply = self.authenticate(Some(user), password);
            if reply != Reply::OK {
                return reply;
            }
        } else if self.is_unauthenticated() {
            return Reply::error(errors::NOAUTH_HELLO);
        }
        if let Some(version) = hello.protocol {
            self.protocol = if version == 3 { Protocol::Resp3 } else { Protocol::Resp2 };
        }
        let version = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
        {
            let mut shown = self.client.info.lock();
            shown.protocol = version;
            if let Some(name) = hello.name {
                shown.name = Bytes::copy_from_slice(&name);
            }
        }
        let bulk = |text: &str| Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()));
        Reply::Map(vec![
            (bulk("server"), bulk("redis")),
            (bulk("version"), bulk(REDIS_VERSION)),
            (bulk("proto"), Reply::Int(i64::from(version))),
            (bulk("id"), Reply::Int(self.client.id as i64)),
            (bulk("mode"), bulk("standalone")),
            (bulk("role"), bulk("master")),
            (bulk("modules"), Reply::Array(Vec::new())),
        ])
    }

    /// RESET: the state of a new connection.
    fn reset(&mut self) -> Reply {
        self.transaction = Transaction::default();
        self.proxy.monitors.remove(&self.client);
        self.use_table(FIRST_TABLE.into());
        self.protocol = Protocol::Resp2;
        self.silence = ReplySuppression::None;
        self.authenticated = self.proxy.settings.load().password.is_none();
        let mut shown = self.client.info.lock();
        shown.protocol = 2;
        shown.name = Bytes::new();
        shown.monitors = false;
        self.client.no_evict.store(false, Ordering::Relaxed);
        shown.no_touch = false;
        Reply::Status("RESET".into())
    }
}
