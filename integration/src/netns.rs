//! A test network whose links can be cut, delayed and made lossy: a network namespace for
//! each place, and a switch between them in the test process.
//!
//! # Layout
//! Place 0 is the test itself (its own namespace), places 1 to n are namespaces. Each has
//! one interface, a TUN device, with an address of one small net. A thread of the test
//! reads the packets of each place, looks up the [`Link`] to the destination, and drops,
//! delays or forwards the packet. Each direction is a separate link, so a partition can
//! be full, partial or one-way. There is no netem and no iptables, which not every kernel
//! has; every kernel has TUN devices. A packet costs two system calls, about 10 us.
//!
//! # Invariants
//! - Nothing outlives the [`Network`]: devices end with their file descriptors,
//!   namespaces on drop; the next test deletes those of a killed test
//!   (`integration/tests/network_partitions.rs`).
//! - Without the permission to create namespaces, [`Network::new`] returns the reason,
//!   and tests are skipped, unless `CI` is set.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::workload::Rng;

/// Properties of the link from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// No packet arrives.
    pub cut: bool,
    /// Delay of a packet.
    pub delay: Duration,
    /// Maximum of an additional random delay; packets may be reordered.
    pub jitter: Duration,
    /// Lost packets per thousand.
    pub loss_permille: u64,
}

/// A delayed packet in flight.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlightPacket {
    due: Instant,
    number: u64,
    to: usize,
    packet: Vec<u8>,
}

#[derive(Debug, Default)]
struct DelayQueue {
    packets: BinaryHeap<Reverse<InFlightPacket>>,
    sent: u64,
}

/// Maximum number of delayed packets; more are dropped, as in any switch.
const IN_FLIGHT_MAX: usize = 20_000;

struct Switch {
    devices: Vec<SyncDevice>,
    /// Link from each place to each other: `links[from * places + to]`.
    links: Mutex<Vec<Link>>,
    rng: Mutex<Rng>,
    slow: Mutex<DelayQueue>,
    due: Condvar,
    stop: AtomicBool,
}

/// Places and the links between them.
pub struct Network {
    switch: Arc<Switch>,
    namespaces: Vec<String>,
    net: u8,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Network({:?})", self.namespaces)
    }
}

impl Network {
    /// A network of `places` namespaces without faults.
    ///
    /// # Errors
    /// The reason: no permission, no TUN, no `ip`.
    pub fn new(places: usize, seed: u64) -> io::Result<Network> {
        clear_leftovers()?;
        let pid = std::process::id();
        // Exists before anything that can fail, so that drop removes all that was
        // created.
        let mut namespaces = Namespaces(Vec::new());
        let net = free_net()?;
        let mut devices = Vec::new();
        for place in 0..=places {
            let device = device(net, place);
            devices.push(DeviceBuilder::new().name(&device).enable(false).build_sync()?);
            let mut inside: Vec<&str> = Vec::new();
            let namespace = format!("bridle-{pid}-{net}-{place}");
            if place > 0 {
                ip(&["netns", "add", &namespace])?;
                namespaces.0.push(namespace.clone());
                ip(&["link", "set", &device, "netns", &namespace])?;
                inside = vec!["-n", &namespace];
                ip(&[&inside[..], &["link", "set", "lo", "up"]].concat())?;
            }
            let address = format!("{}/24", address(net, place));
            ip(&[&inside[..], &["addr", "add", &address, "dev", &device]].concat())?;
            ip(&[&inside[..], &["link", "set", &device, "up", "mtu", "9000"]].concat())?;
        }
        let links = vec![Link::default(); (places + 1) * (places + 1)];
        let switch = Arc::new(Switch {
            devices,
            links: Mutex::new(links),
            rng: Mutex::new(Rng::new(seed)),
            slow: Mutex::default(),
            due: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        for from in 0..=places {
            let switch = switch.clone();
            std::thread::spawn(move || switch.read(from));
        }
        let deliverer = switch.clone();
        std::thread::spawn(move || deliverer.deliver());
        Ok(Network { switch, namespaces: std::mem::take(&mut namespaces.0), net })
    }

    /// As [`Network::new`]; `None`, with a note on standard error, where it is not
    /// possible.
    ///
    /// # Panics
    /// When it is not possible and `CI` is set: there, no test may be skipped.
    pub fn if_allowed(places: usize, seed: u64) -> Option<Network> {
        let refused = match Network::new(places, seed) {
            Ok(network) => return Some(network),
            Err(error) => format!("cannot create a test network: {error}"),
        };
        assert!(std::env::var_os("CI").is_none(), "{refused}");
        eprintln!("SKIPPED: {refused}");
        None
    }

    /// Number of places, without the test's own.
    pub fn places(&self) -> usize {
        self.namespaces.len()
    }

    /// The address of a place; 0 is the test's.
    pub fn address(&self, place: usize) -> Ipv4Addr {
        address(self.net, place)
    }

    /// The command line prefix that starts a program in a place (1 to n).
    pub fn wrapper(&self, place: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespaces[place - 1]].map(str::to_owned).to_vec()
    }

    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        lock(&self.switch.links)
    }

    /// Sets the link from one place to another, in that direction only.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        let places = self.switch.devices.len();
        self.links()[from * places + to] = link;
    }

    /// Sets both directions.
    pub fn set_both(&self, one: usize, other: usize, link: Link) {
        self.set(one, other, link);
        self.set(other, one, link);
    }

    /// Cuts all links between these places and all others. The test itself is not cut
    /// off: its clients still reach all places.
    pub fn isolate(&self, group: &[usize]) {
        let cut = Link { cut: true, ..Link::default() };
        for inside in group {
            for outside in (1..=self.places()).filter(|place| !group.contains(place)) {
                self.set_both(*inside, outside, cut);
            }
        }
    }

    /// Removes all faults of links.
    pub fn heal(&self) {
        self.links().fill(Link::default());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.switch.stop.store(true, Ordering::Relaxed);
        self.switch.due.notify_all();
        // The readers' descriptors keep the devices alive, so these are deleted; then the
        // next read of every reader fails, and it ends. An error means that the device is
        // gone already.
        let _ = ip(&["link", "del", &device(self.net, 0)]);
        for (before, namespace) in self.namespaces.iter().enumerate() {
            let _ = ip(&["-n", namespace, "link", "del", &device(self.net, before + 1)]);
        }
        drop(Namespaces(std::mem::take(&mut self.namespaces)));
    }
}

/// Namespaces, deleted on drop.
struct Namespaces(Vec<String>);

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in &self.0 {
            if let Err(error) = ip(&["netns", "del", namespace]) {
                eprintln!("{namespace} is left behind: {error}");
            }
        }
    }
}

impl Switch {
    /// Reads the packets of a place, until the device is gone.
    fn read(&self, from: usize) {
        let mut packet = vec![0; 1 << 16];
        while !self.stop.load(Ordering::Relaxed) {
            match self.devices[from].recv(&mut packet) {
                Ok(length) => self.send(from, &packet[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The device is gone or going.
                Err(_) => return,
            }
        }
    }

    fn send(&self, from: usize, packet: &[u8]) {
        // IPv4, with its destination at 16..20; other packets (router solicitations of
        // IPv6) are dropped.
        let (Some(0x45..=0x4f), Some(&to)) = (packet.first(), packet.get(19)) else { return };
        let to = usize::from(to).wrapping_sub(1);
        if to >= self.devices.len() {
            return;
        }
        let link = lock(&self.links)[from * self.devices.len() + to];
        if link.cut {
            return;
        }
        if link == Link::default() {
            // A full or closed device drops the packet, as a network does.
            let _ = self.devices[to].send(packet);
            return;
        }
        let (lost, extra) = {
            let mut rng = lock(&self.rng);
            (
                rng.below(1_000) < link.loss_permille,
                Duration::from_nanos(rng.below(link.jitter.as_nanos() as u64 + 1)),
            )
        };
        if lost {
            return;
        }
        let mut slow = lock(&self.slow);
        if slow.packets.len() < IN_FLIGHT_MAX {
            slow.sent += 1;
            let travelling = InFlightPacket {
                due: Instant::now() + link.delay + extra,
                number: slow.sent,
                to,
                packet: packet.to_vec(),
            };
            slow.packets.push(Reverse(travelling));
            self.due.notify_one();
        }
    }

    /// Delivers delayed packets when they are due.
    fn deliver(&self) {
        let mut slow = lock(&self.slow);
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            match slow.packets.peek() {
                Some(Reverse(first)) if first.due <= now => {
                    if let Some(Reverse(first)) = slow.packets.pop() {
                        let _ = self.devices[first.to].send(&first.packet);
                    }
                }
                Some(Reverse(first)) => {
                    let rest = first.due - now;
                    slow = self
                        .due
                        .wait_timeout(slow, rest)
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .0;
                }
                None => slow = self.due.wait(slow).unwrap_or_else(|poisoned| poisoned.into_inner()),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn address(net: u8, place: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, net, place as u8 + 1)
}

/// The name of a device, at most 15 bytes.
fn device(net: u8, place: usize) -> String {
    format!("br{:x}x{net:x}p{place}", std::process::id() & 0xff_ffff)
}

/// The `x` of an unused net 10.77.x.0/24.
fn free_net() -> io::Result<u8> {
    let used = ip(&["-4", "-o", "addr", "show"])?;
    let began = std::process::id() as usize + UNIQUE.fetch_add(1, Ordering::Relaxed);
    (0..250)
        .map(|more| ((began + more) % 250) as u8)
        .find(|net| !used.contains(&format!("10.77.{net}.")))
        .ok_or_else(|| io::Error::other("no free net 10.77.x.0/24"))
}

static UNIQUE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Deletes the namespaces of tests that have ended.
fn clear_leftovers() -> io::Result<()> {
    let all = ip(&["netns", "list"])?;
    for namespace in all.lines().filter_map(|line| line.split(' ').next()) {
        let owner = namespace
            .strip_prefix("bridle-")
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            eprintln!("deleting {namespace}, which a killed test left behind");
            ip(&["netns", "del", namespace])?;
        }
    }
    Ok(())
}

/// Runs iproute2's `ip`; returns its output.
fn ip(words: &[&str]) -> io::Result<String> {
    let output = Command::new("ip").args(words).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("ip {}: {why}", words.join(" ")),
            ))
        }
    }
}
