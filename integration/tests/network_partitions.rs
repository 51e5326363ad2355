//! The test network works, has the faults that are set, and leaves nothing behind; and a
//! cluster handles network partitions.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use integration::cluster::Cluster;
use integration::netns::{Link, Network};
use integration::workload::seed;
use integration::{Client, Value, within};

/// One test at a time: leftovers are searched, and clusters need the machine.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn network(places: usize) -> Option<Network> {
    Network::if_allowed(places, seed())
}

/// A redis-server in a place, which answers.
struct Echo(Child, SocketAddr);

impl Echo {
    fn start(network: &Network, place: usize) -> Echo {
        let address = SocketAddr::from((network.address(place), 7000));
        let words = network.wrapper(place);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args([
            "redis-server",
            "--port",
            "7000",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--bind",
        ]);
        let child = command
            .arg(address.ip().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        within(10, "redis-server answers", || {
            Client::reach(address, Duration::from_millis(200)).is_ok()
        });
        Echo(child, address)
    }

    /// The time of an answer within a second; `None`: no answer.
    fn ping(&self) -> Option<Duration> {
        let mut client = Client::reach(self.1, Duration::from_secs(1)).ok()?;
        let began = Instant::now();
        client.call(&["PING"]).ok().map(|_| began.elapsed())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespaces() -> String {
    let output =
        Command::new("ip").args(["netns", "list"]).output().expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn links_are_cut_delayed_and_lossy_and_cleaned_up() {
    let _alone = alone();
    let Some(network) = network(2) else { return };
    let echo = Echo::start(&network, 1);
    let from_two = |seconds: &str| {
        let words = network.wrapper(2);
        let (ip, port) = (network.address(1).to_string(), "7000");
        let ping = ["timeout", seconds, "redis-cli", "-h", &ip, "-p", port, "PING"];
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(ping)
            .output()
            .expect("redis-cli starts");
        String::from_utf8_lossy(&output.stdout).trim() == "PONG"
    };
    assert!(echo.ping().is_some_and(|took| took < Duration::from_millis(100)), "a perfect link");
    assert!(from_two("5"), "places reach one another");

    network.isolate(&[1]);
    assert!(!from_two("1"), "cut");
    assert!(echo.ping().is_some(), "the test itself is not cut off");
    network.heal();
    assert!(from_two("5"), "healed");

    // One direction is enough to break a connection.
    for (from, to) in [(1, 2), (2, 1)] {
        network.set(from, to, Link { cut: true, ..Link::default() });
        assert!(!from_two("1"), "cut from {from} to {to}");
        network.heal();
    }

    network.set_both(0, 1, Link { delay: Duration::from_millis(20), ..Link::default() });
    let took = echo.ping().expect("slow, not cut");
    assert!(
        (Duration::from_millis(40)..Duration::from_millis(150)).contains(&took),
        "two times 20 ms took {took:?}"
    );
    network.set_both(0, 1, Link { delay: Duration::from_micros(500), ..Link::default() });
    let mut client = Client::reach(echo.1, Duration::from_secs(1)).expect("slow, not cut");
    let began = Instant::now();
    (0..200).for_each(|_| assert_eq!(client.run("PING"), Value::Status("PONG".into())));
    println!("a round trip over two times 0.5 ms takes {:?}", began.elapsed() / 200);
    assert!(began.elapsed() / 200 >= Duration::from_millis(1));

    // TCP gets through, but slower: 200 round trips at 5 % loss in each direction show
    // it.
    network.set_both(0, 1, Link { loss_permille: 50, ..Link::default() });
    let mut client = Client::reach(echo.1, Duration::from_secs(20)).expect("lossy, not cut");
    let began = Instant::now();
    (0..200).for_each(|_| assert_eq!(client.run("PING"), Value::Status("PONG".into())));
    assert!(
        began.elapsed() > Duration::from_millis(200),
        "nothing was lost: {:?}",
        began.elapsed()
    );

    let mine = format!("bridle-{}-", std::process::id());
    assert!(namespaces().contains(&mine));
    drop((echo, network));
    assert!(!namespaces().contains(&mine), "left behind: {}", namespaces());
}

#[test]
fn leftovers_of_a_killed_test_are_deleted() {
    let _alone = alone();
    let Some(first) = network(1) else { return };
    // A process that has ended, whose id is not in use.
    let mut ended = Command::new("true").spawn().expect("true is part of every system");
    let pid = ended.id();
    ended.wait().expect("our own child");
    let left = format!("bridle-{pid}-7-1");
    assert!(
        Command::new("ip")
            .args(["netns", "add", &left])
            .status()
            .expect("iproute2 is installed")
            .success()
    );
    let second = network(1).expect("the first worked");
    assert!(!namespaces().contains(&left));
    // Those of running processes are untouched, including this test's first network.
    let echo = Echo::start(&first, 1);
    assert!(echo.ping().is_some());
    drop(second);
    assert!(echo.ping().is_some());
}

/// A cluster of one partition in a network, and its leader.
fn cluster() -> Option<(Arc<Network>, Cluster, usize)> {
    let network = Arc::new(network(3)?);
    let cluster = Cluster::builder().partitions(1).network(&network).start();
    let leader = cluster.leaders("db0").expect("the admin API answers")[0]
        .expect("it serves, so it has a leader");
    Some((network, cluster, leader))
}

/// Reads with a short timeout; `None`: no answer, or a refusal.
fn read(cluster: &Cluster, through: usize, key: &str) -> Option<String> {
    read_within(cluster, through, key, Duration::from_secs(2))
}

fn read_within(cluster: &Cluster, through: usize, key: &str, timeout: Duration) -> Option<String> {
    let mut client = Client::reach(cluster.proxy(through), timeout).ok()?;
    match client.call(&["GET", key]).ok()? {
        Value::Bulk(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        _ => None,
    }
}

#[test]
fn an_isolated_leader_never_answers_a_stale_read_and_rejoins() {
    let _alone = alone();
    let Some((network, cluster, leader)) = cluster() else { return };
    let other = (leader + 1) % 3;
    cluster.client(other).expect("it serves").run("SET k 0");
    network.isolate(&[leader + 1]);
    let cut = Instant::now();
    let (mut written, mut answered) = (0, 0);
    while cut.elapsed() < Duration::from_secs(10) {
        // The isolated leader's answer must not be older than the writes acknowledged
        // before the request.
        let known = written;
        if let Some(value) = read_within(&cluster, leader, "k", Duration::from_millis(100)) {
            answered += 1;
            assert!(
                value.parse::<u32>().expect("a number") >= known,
                "{known} was acknowledged, the isolated leader says {value}"
            );
        }
        let output = Client::reach(cluster.proxy(other), Duration::from_secs(8))
            .and_then(|mut client| client.call(&["SET", "k", &format!("{}", known + 1)]));
        if matches!(output, Ok(Value::Status(_))) {
            if written == 0 {
                println!("the others write again after {:?}", cut.elapsed());
            }
            written += 1;
        }
    }
    assert!(written > 10, "the majority wrote only {written} times in 10 s");
    println!(
        "{written} writes by the majority; the isolated leader answered {answered} reads, none \
         stale"
    );
    network.heal();
    within(15, "the isolated node sees what was written", || {
        read(&cluster, leader, "k") == Some(written.to_string())
    });
}

/// A leader that receives but can't send is replaced, and so is one that sends but can't
/// receive.
#[test]
fn an_asymmetric_partition_replaces_the_leader() {
    let _alone = alone();
    let Some((network, cluster, _)) = cluster() else { return };
    for mute in [true, false] {
        // Rows may be served before the metas, whose leader was cut off too, know the
        // leader.
        let mut leader = None;
        within(15, "a meta says who leads", || {
            leader = cluster.leaders("db0").ok().and_then(|leaders| leaders[0]);
            leader.is_some()
        });
        let leader = leader.expect("was just seen");
        let cut = Link { cut: true, ..Link::default() };
        for other in (1..=3).filter(|other| *other != leader + 1) {
            let (from, to) = if mute { (leader + 1, other) } else { (other, leader + 1) };
            network.set(from, to, cut);
        }
        let began = Instant::now();
        let through = (leader + 1) % 3;
        within(15, "a client of another node writes again", || {
            let mut client =
                Client::reach(cluster.proxy(through), Duration::from_secs(8)).expect("it runs");
            matches!(client.call(&["SET", "k", "v"]), Ok(Value::Status(_)))
        });
        println!(
            "leader {}: writes again after {:?}",
            if mute { "mute" } else { "deaf" },
            began.elapsed()
        );
        network.heal();
        within(15, "all serve", || {
            (0..3).all(|number| read(&cluster, number, "k") == Some("v".to_owned()))
        });
    }
}

/// Without a majority nothing is acknowledged; when the network heals, all partitions
/// serve.
#[test]
fn a_minority_acknowledges_nothing_and_recovers() {
    let _alone = alone();
    let Some((network, cluster, leader)) = cluster() else { return };
    cluster.client(leader).expect("it serves").run("SET k before");
    (1..=3).for_each(|place| network.isolate(&[place]));
    std::thread::sleep(Duration::from_secs(3));
    let ask = |number: usize| {
        let mut client =
            Client::reach(cluster.proxy(number), Duration::from_secs(10)).expect("it runs");
        let output = client.call(&["SET", "k", "alone"]).expect("an answer, if only a refusal");
        assert!(output.is_error(), "process {number} acknowledged alone: {output:?}");
        assert_eq!(read(&cluster, number, "k"), None, "process {number} answered a read alone");
    };
    std::thread::scope(|scope| (0..3).for_each(|number| _ = scope.spawn(move || ask(number))));
    network.heal();
    within(15, "it serves again", || {
        (0..3).all(|number| {
            read(&cluster, number, "k").is_some_and(|value| value == "before" || value == "alone")
        })
    });
}
