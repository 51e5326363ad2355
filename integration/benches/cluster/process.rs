//! External processes, and resource usage of processes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::Client;

/// A process, killed on drop.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program without output.
    pub(crate) fn start(words: &[String]) -> Running {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("start {}: {error} (make setup-bench)", words[0])),
        )
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A redis-server for this run.
pub(crate) struct Redis {
    pub(crate) process: Running,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Redis {
    /// On a free port of this machine.
    pub(crate) fn start(flags: &[&str]) -> Redis {
        Redis::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST), &[], flags)
    }

    /// At an address, started by a command line prefix (`ip netns exec ...`).
    pub(crate) fn start_at(ip: IpAddr, wrapper: &[String], flags: &[&str]) -> Redis {
        let dir = tempfile::tempdir().expect("a directory for redis-server");
        let [port] = free_ports();
        let mut words = wrapper.to_vec();
        let own = [
            "redis-server",
            "--port",
            &port.to_string(),
            "--bind",
            &ip.to_string(),
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
        ];
        words.extend(own.map(str::to_owned));
        words.push(dir.path().display().to_string());
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let redis = Redis {
            process: Running::start(&words),
            address: SocketAddr::new(ip, port),
            _dir: dir,
        };
        wait_for("redis-server", || {
            redis.client().is_ok_and(|mut client| client.call(&["PING"]).is_ok())
        });
        redis
    }

    pub(crate) fn client(&self) -> std::io::Result<Client> {
        Client::reach(self.address, Duration::from_secs(10))
    }
}

/// Waits until a condition holds.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Free ports.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound socket has an address").port())
}

/// CPU seconds used by processes so far, in total.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    let one = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
        let fields: Vec<&str> =
            stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
        let ticks: f64 =
            fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
        // The clock tick of /proc is 1/100 s on every Linux that Rust runs on.
        ticks / 100.0
    };
    pids.iter().map(one).sum()
}

/// CPU seconds used by this thread so far.
pub(crate) fn own_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanos.unwrap_or(f64::NAN) / 1e9
}
