//! Who is connected to the HTTP port, and who has to leave when there is no room: few
//! descriptors, and none of them lost to strangers for long.
//!
//! A connection is *silent* while no request of it is being carried out: before its first
//! head, between two, and while an answer is not read. When there is no room for a new
//! one, the silent one that said something longest ago leaves, of the address that has
//! the most; so whoever asks and goes, as probes do, always finds a place.
//!
//! # Invariants
//! - One address has at most [`EACH_MAX`] connections, this machine excepted; some are
//!   kept for this machine, and some for `/health` (`nobody_takes_the_places_of_others`).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Connections at a time: scrapers, probes and operators are few.
pub(crate) const CONNECTIONS_MAX: usize = ALL_MAX + HEALTH_KEPT;
/// Those that may ask for anything.
const ALL_MAX: usize = 64;
/// Of these, from one address that is not this machine's.
const EACH_MAX: usize = 16;
/// Of these, kept for this machine.
const NEAR_KEPT: usize = 8;
/// Beside these, for who asks for `/health`.
const HEALTH_KEPT: usize = 8;

/// A connection.
pub(crate) struct Guest {
    from: IpAddr,
    /// Only `/health` is answered.
    pub(crate) is_for_health: bool,
    /// When it began, or was answered last; `None` while a request is carried out.
    silent_since: Mutex<Option<Instant>>,
    /// It has to leave.
    pub(crate) cut: CancellationToken,
}

impl Guest {
    /// A request is carried out until [`Guest::answered`].
    pub(crate) fn asked(&self) {
        *self.silent_since.lock() = None;
    }

    pub(crate) fn answered(&self) {
        *self.silent_since.lock() = Some(Instant::now());
    }

    fn is_near(&self) -> bool {
        self.from.is_loopback()
    }
}

/// All connections.
#[derive(Default)]
pub(crate) struct Guests(Mutex<Vec<Arc<Guest>>>);

impl Guests {
    /// A place for a new one; `None`: there is none.
    pub(crate) fn admit(&self, from: IpAddr) -> Option<Arc<Guest>> {
        let from = origin(from);
        let mut guests = self.0.lock();
        let is_near = from.is_loopback();
        let ordinary = count(&guests, |guest| !guest.is_for_health);
        let far = count(&guests, |guest| !guest.is_for_health && !guest.is_near());
        // This machine's may make way for this machine's only.
        let may_go = |guest: &Guest| !guest.is_for_health && (is_near || !guest.is_near());
        let mut is_for_health = false;
        if !is_near && count(&guests, |guest| guest.from == from) >= EACH_MAX {
            leave(&mut guests, |guest| guest.from == from)?;
        } else if ordinary >= ALL_MAX || (!is_near && far >= ALL_MAX - NEAR_KEPT) {
            // Who has the most has the most to give.
            let most = guests.iter().filter(|guest| may_go(guest)).map(|guest| guest.from);
            let most = most.max_by_key(|from| count(&guests, |guest| guest.from == *from));
            let made = leave(&mut guests, |guest| may_go(guest) && Some(guest.from) == most)
                .or_else(|| leave(&mut guests, may_go));
            is_for_health = made.is_none();
        }
        if is_for_health && guests.len() - ordinary >= HEALTH_KEPT {
            leave(&mut guests, |guest| guest.is_for_health)?;
        }
        let silent_since = Mutex::new(Some(Instant::now()));
        let guest =
            Arc::new(Guest { from, is_for_health, silent_since, cut: CancellationToken::new() });
        guests.push(guest.clone());
        Some(guest)
    }

    /// It has left.
    pub(crate) fn forget(&self, guest: &Arc<Guest>) {
        self.0.lock().retain(|other| !Arc::ptr_eq(other, guest));
    }
}

fn count(guests: &[Arc<Guest>], is_meant: impl Fn(&Guest) -> bool) -> usize {
    guests.iter().filter(|guest| is_meant(guest)).count()
}

/// Has the one leave, of these, that has been silent for longest; `None`: none is silent.
fn leave(guests: &mut Vec<Arc<Guest>>, is_meant: impl Fn(&Guest) -> bool) -> Option<()> {
    let silent = guests.iter().enumerate().filter(|(_, guest)| is_meant(guest));
    let silent =
        silent.filter_map(|(at, guest)| guest.silent_since.lock().map(|since| (since, at)));
    let (_, at) = silent.min()?;
    guests.swap_remove(at).cut.cancel();
    Some(())
}

/// What one stranger is likely to have no more than one of: an address, or an IPv6
/// network, of whose addresses each member has any number.
fn origin(address: IpAddr) -> IpAddr {
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
    fn nobody_takes_the_places_of_others() {
        let guests = Guests::default();
        let (near, one) = (ip("127.0.0.1"), ip("10.0.0.1"));
        // One address pushes out its own.
        let first = guests.admit(one).unwrap();
        for _ in 0..EACH_MAX {
            guests.admit(one).unwrap();
        }
        assert!(first.cut.is_cancelled() && guests.0.lock().len() == EACH_MAX);
        // Many addresses push out one another, and none of this machine.
        let mine: Vec<_> = (0..NEAR_KEPT).map(|_| guests.admit(near).unwrap()).collect();
        for host in 0..200u8 {
            let guest = guests.admit(ip(&format!("10.1.0.{host}"))).unwrap();
            assert!(!guest.is_for_health);
        }
        assert!(mine.iter().all(|guest| !guest.cut.is_cancelled()));
        assert_eq!(guests.0.lock().len(), ALL_MAX);
        // All are at work: then there is room for health, of whoever, and no more.
        guests.0.lock().iter().for_each(|guest| guest.asked());
        let health: Vec<_> = (0..2 * HEALTH_KEPT)
            .map(|host| guests.admit(ip(&format!("10.2.0.{host}"))).unwrap())
            .collect();
        assert!(health.iter().all(|guest| guest.is_for_health));
        assert_eq!(health.iter().filter(|guest| guest.cut.is_cancelled()).count(), HEALTH_KEPT);
        assert_eq!(guests.0.lock().len(), CONNECTIONS_MAX);
        guests.0.lock().iter().for_each(|guest| guest.asked());
        assert!(guests.admit(near).is_none() && guests.admit(ip("10.3.0.1")).is_none());
        // One that is done gives its place to who comes next.
        mine[3].answered();
        assert!(
            guests.admit(near).is_some_and(|guest| !guest.is_for_health)
                && mine[3].cut.is_cancelled()
        );
        guests.forget(&mine[4]);
        assert!(guests.admit(near).is_some());
    }

    #[test]
    fn networks_count_as_one() {
        assert_eq!(origin(ip("2001:db8::1")), origin(ip("2001:db8::ffff:1")));
        assert_ne!(origin(ip("2001:db8::1")), origin(ip("2001:db8:0:1::1")));
        assert_eq!((origin(ip("::ffff:10.0.0.1")), origin(ip("::1"))), (ip("10.0.0.1"), ip("::1")));
    }
}
