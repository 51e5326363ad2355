//! Limits on the connections of the HTTP port: few descriptors, and none held by an
//! unauthenticated client for long.
//!
//! A connection is *idle* while none of its requests is being handled: before its first
//! head, between two requests, and while a response is not read. When no slot is free for
//! a new connection, the one that has been idle for longest is evicted, of the address
//! with the most connections. So clients that connect, ask and close, as probes do,
//! always get a slot.
//!
//! # Invariants
//! - One address has at most [`PER_ADDRESS_MAX`] connections, loopback excepted; some
//!   slots are reserved for loopback, and some for `/health`
//!   (`connections_are_shared_fairly_between_addresses`).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Maximum number of connections: scrapers, probes and operators are few.
pub(crate) const CONNECTIONS_MAX: usize = GENERAL_MAX + HEALTH_RESERVED;
/// Connections that may request any page.
const GENERAL_MAX: usize = 64;
/// Of these, from one address other than loopback.
const PER_ADDRESS_MAX: usize = 16;
/// Of these, reserved for loopback.
const LOOPBACK_RESERVED: usize = 8;
/// In addition, connections that may request `/health` only.
const HEALTH_RESERVED: usize = 8;

/// A connection to the HTTP port.
pub(crate) struct HttpConnection {
    from: IpAddr,
    /// Only `/health` is served.
    pub(crate) health_only: bool,
    /// Time of the accept or of the last response; `None` while a request is handled.
    idle_since: Mutex<Option<Instant>>,
    /// Cancelled when the connection is evicted.
    pub(crate) evicted: CancellationToken,
}

impl HttpConnection {
    /// A request is handled from now until [`HttpConnection::end_request`].
    pub(crate) fn begin_request(&self) {
        *self.idle_since.lock() = None;
    }

    pub(crate) fn end_request(&self) {
        *self.idle_since.lock() = Some(Instant::now());
    }

    fn is_loopback(&self) -> bool {
        self.from.is_loopback()
    }
}

/// All connections to the HTTP port.
#[derive(Default)]
pub(crate) struct HttpConnections(Mutex<Vec<Arc<HttpConnection>>>);

impl HttpConnections {
    /// A slot for a new connection; `None`: none is free.
    pub(crate) fn admit(&self, from: IpAddr) -> Option<Arc<HttpConnection>> {
        let from = client_network(from);
        let mut connections = self.0.lock();
        let is_loopback = from.is_loopback();
        let ordinary = count(&connections, |connection| !connection.health_only);
        let far =
            count(&connections, |connection| !connection.health_only && !connection.is_loopback());
        // A loopback connection is evicted for another one only.
        let may_go = |connection: &HttpConnection| {
            !connection.health_only && (is_loopback || !connection.is_loopback())
        };
        let mut health_only = false;
        if !is_loopback
            && count(&connections, |connection| connection.from == from) >= PER_ADDRESS_MAX
        {
            evict_idle(&mut connections, |connection| connection.from == from)?;
        } else if ordinary >= GENERAL_MAX
            || (!is_loopback && far >= GENERAL_MAX - LOOPBACK_RESERVED)
        {
            // The address with the most connections gives one up.
            let most = connections
                .iter()
                .filter(|connection| may_go(connection))
                .map(|connection| connection.from);
            let most =
                most.max_by_key(|from| count(&connections, |connection| connection.from == *from));
            let made = evict_idle(&mut connections, |connection| {
                may_go(connection) && Some(connection.from) == most
            })
            .or_else(|| evict_idle(&mut connections, may_go));
            health_only = made.is_none();
        }
        if health_only && connections.len() - ordinary >= HEALTH_RESERVED {
            evict_idle(&mut connections, |connection| connection.health_only)?;
        }
        let idle_since = Mutex::new(Some(Instant::now()));
        let connection = Arc::new(HttpConnection {
            from,
            health_only,
            idle_since,
            evicted: CancellationToken::new(),
        });
        connections.push(connection.clone());
        Some(connection)
    }

    /// Releases the slot of a closed connection.
    pub(crate) fn remove(&self, connection: &Arc<HttpConnection>) {
        self.0.lock().retain(|other| !Arc::ptr_eq(other, connection));
    }
}

fn count(connections: &[Arc<HttpConnection>], is_meant: impl Fn(&HttpConnection) -> bool) -> usize {
    connections.iter().filter(|connection| is_meant(connection)).count()
}

/// Evicts the connection, of these, that has been idle for longest; `None`: none is idle.
fn evict_idle(
    connections: &mut Vec<Arc<HttpConnection>>,
    is_meant: impl Fn(&HttpConnection) -> bool,
) -> Option<()> {
    let silent = connections.iter().enumerate().filter(|(_, connection)| is_meant(connection));
    let silent =
        silent.filter_map(|(at, connection)| connection.idle_since.lock().map(|since| (since, at)));
    let (_, at) = silent.min()?;
    connections.swap_remove(at).evicted.cancel();
    Some(())
}

/// The unit of the limit per address: an IPv4 address, or an IPv6 network, in which a
/// single client has any number of addresses.
fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_shared_fairly_between_addresses() {
        let connections = HttpConnections::default();
        let (near, one) = (ip("127.0.0.1"), ip("10.0.0.1"));
        // One address evicts its own connections.
        let first = connections.admit(one).unwrap();
        for _ in 0..PER_ADDRESS_MAX {
            connections.admit(one).unwrap();
        }
        assert!(first.evicted.is_cancelled() && connections.0.lock().len() == PER_ADDRESS_MAX);
        // Many addresses evict each other, but no loopback connections.
        let mine: Vec<_> =
            (0..LOOPBACK_RESERVED).map(|_| connections.admit(near).unwrap()).collect();
        for host in 0..200u8 {
            let connection = connections.admit(ip(&format!("10.1.0.{host}"))).unwrap();
            assert!(!connection.health_only);
        }
        assert!(mine.iter().all(|connection| !connection.evicted.is_cancelled()));
        assert_eq!(connections.0.lock().len(), GENERAL_MAX);
        // All are busy: any address gets a slot for health, and no more.
        connections.0.lock().iter().for_each(|connection| connection.begin_request());
        let health: Vec<_> = (0..2 * HEALTH_RESERVED)
            .map(|host| connections.admit(ip(&format!("10.2.0.{host}"))).unwrap())
            .collect();
        assert!(health.iter().all(|connection| connection.health_only));
        assert_eq!(
            health.iter().filter(|connection| connection.evicted.is_cancelled()).count(),
            HEALTH_RESERVED
        );
        assert_eq!(connections.0.lock().len(), CONNECTIONS_MAX);
        connections.0.lock().iter().for_each(|connection| connection.begin_request());
        assert!(connections.admit(near).is_none() && connections.admit(ip("10.3.0.1")).is_none());
        // One that becomes idle gives up its slot.
        mine[3].end_request();
        assert!(
            connections.admit(near).is_some_and(|connection| !connection.health_only)
                && mine[3].evicted.is_cancelled()
        );
        connections.remove(&mine[4]);
        assert!(connections.admit(near).is_some());
    }

    #[test]
    fn networks_count_as_one() {
        assert_eq!(client_network(ip("2001:db8::1")), client_network(ip("2001:db8::ffff:1")));
        assert_ne!(client_network(ip("2001:db8::1")), client_network(ip("2001:db8:0:1::1")));
        assert_eq!(
            (client_network(ip("::ffff:10.0.0.1")), client_network(ip("::1"))),
            (ip("10.0.0.1"), ip("::1"))
        );
    }
}
