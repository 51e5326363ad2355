//! A cluster for a test: real `bridle` processes on free ports, or in the places of a
//! [`Network`].
//!
//! [`Cluster::launch`] and `toml` define the command line and the configuration of the
//! processes; `admin` has the requests to the admin API.
//!
//! # Invariants
//! - All processes end with their [`Cluster`], frozen ones and those of a panicking test
//!   included; a panic prints the ends of their logs.
//! - A restarted process has the same data, ports and addresses.
//! - A test program runs one cluster at a time: otherwise times mean nothing.

mod admin;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::netns::Network;
use crate::{Client, Value, binary};

/// The secret of the processes and the operator.
pub const SECRET: &str = "the test's own secret";
/// Maximum time for a cluster to serve, or for a process to end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Held by the running cluster.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Options of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    program: Option<PathBuf>,
    nodes: usize,
    proxies: usize,
    partitions: u32,
    replicas: u32,
    durability: String,
    config: String,
    set: Vec<String>,
    set_for: Vec<(usize, String)>,
    network: Option<Arc<Network>>,
    clocks: bool,
    env: Vec<(String, String)>,
}

/// A process of the cluster.
#[derive(Debug)]
struct Member {
    /// `node` (all roles) or `proxy`.
    role: &'static str,
    child: Option<Child>,
    ip: IpAddr,
    cluster_port: u16,
    resp_port: u16,
    http_port: u16,
    wrapper: Vec<String>,
}

/// The processes of a cluster.
#[derive(Debug)]
pub struct Cluster {
    builder: ClusterBuilder,
    members: Vec<Member>,
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl ClusterBuilder {
    /// Another binary than [`binary`].
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Number of processes with all roles; the first three (or the only one) are metas.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Number of proxies, which are numbered after the nodes.
    pub fn proxies(mut self, proxies: usize) -> Self {
        self.proxies = proxies;
        self
    }

    /// Number of partitions of a new table.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Number of replicas of each partition.
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// `always`, `interval` or `os`.
    pub fn durability(mut self, durability: &str) -> Self {
        durability.clone_into(&mut self.durability);
        self
    }

    /// Adds lines to the configuration of all processes.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Sets a key for all processes: `section.key=value`.
    pub fn set(mut self, flag: &str) -> Self {
        self.set.push(flag.to_owned());
        self
    }

    /// As [`ClusterBuilder::set`], for one process.
    pub fn set_for(mut self, number: usize, flag: &str) -> Self {
        self.set_for.push((number, flag.to_owned()));
        self
    }

    /// Process `i` runs in place `i + 1` of this network.
    pub fn network(mut self, network: &Arc<Network>) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Makes wall clocks movable ([`Cluster::set_clock`]); monotonic clocks are
    /// unaffected.
    pub fn clocks(mut self) -> Self {
        self.clocks = true;
        self
    }

    /// Sets a variable in the environment of all processes.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts all processes and waits until every proxy serves writes to every partition.
    ///
    /// # Panics
    /// When they do not; with the ends of their logs.
    pub fn start(self) -> Cluster {
        // A panicked test does not block the others.
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let dir = tempfile::tempdir().expect("a directory for the test");
        std::fs::write(dir.path().join("secret"), format!("{SECRET}\n"))
            .expect("room for a secret");
        let count = self.nodes + self.proxies;
        // Ports of all members in one step, since none is bound before the first process
        // starts.
        let mut ports = match self.network {
            Some(_) => [7201, 6379, 9121].repeat(count),
            None => free_ports(3 * count),
        };
        let member = |number: usize| {
            let role = if number < self.nodes { "node" } else { "proxy" };
            let (ip, wrapper) = match &self.network {
                Some(network) => {
                    (IpAddr::V4(network.address(number + 1)), network.wrapper(number + 1))
                }
                None => (IpAddr::V4(Ipv4Addr::LOCALHOST), Vec::new()),
            };
            let [cluster_port, resp_port, http_port] = [(); 3].map(|()| ports.remove(0));
            Member { role, child: None, ip, cluster_port, resp_port, http_port, wrapper }
        };
        let members = (0..count).map(member).collect();
        let mut cluster = Cluster { builder: self, members, dir, _alone: alone };
        if cluster.builder.clocks {
            cluster.make_clocks();
        }
        (0..cluster.members.len()).for_each(|number| cluster.launch(number));
        cluster.wait_until_serving();
        cluster
    }
}

impl Cluster {
    /// Three nodes, eight partitions of three replicas, durability `always`.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            program: None,
            nodes: 3,
            proxies: 0,
            partitions: 8,
            replicas: 3,
            durability: "always".to_owned(),
            config: String::new(),
            set: Vec::new(),
            set_for: Vec::new(),
            network: None,
            clocks: false,
            env: Vec::new(),
        }
    }

    fn toml(&self, number: usize) -> String {
        let builder = &self.builder;
        let member = &self.members[number];
        let metas = if builder.nodes < 3 { 1 } else { 3 };
        let metas: Vec<String> = self.members[..metas]
            .iter()
            .map(|meta| format!("\"{}:{}\"", meta.ip, meta.cluster_port))
            .collect();
        let (ip, port) = (member.ip, member.cluster_port);
        format!(
            "[node]\nmemory = \"64MiB\"\n[cluster]\nname = \"test\"\nmetas = [{}]\nlisten = \
             \"{ip}:{port}\"\nadvertise = \"{ip}:{port}\"\nzone = \"z{number}\"\nsecret_file = \
             \"{}\"\n[proxy]\nbind = [\"{ip}\"]\nport = {}\nprotected_mode = false\n[http]\nbind \
             = \"{ip}\"\nport = {}\n[tables]\npartitions = {}\nreplicas = \
             {}\n[storage]\ndurability = \"{}\"\n{}",
            metas.join(", "),
            self.dir.path().join("secret").display(),
            member.resp_port,
            member.http_port,
            builder.partitions,
            builder.replicas,
            builder.durability,
            builder.config
        )
    }

    /// Starts a stopped process on its existing data.
    ///
    /// # Panics
    /// When there is no binary.
    pub fn launch(&mut self, number: usize) {
        let config = self.dir.path().join(format!("{number}.toml"));
        std::fs::write(&config, self.toml(number)).expect("room for the configuration");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(number))
            .expect("room for the log");
        let member = &self.members[number];
        assert!(member.child.is_none(), "process {number} runs already");
        let mut words = member.wrapper.clone();
        let program = self.builder.program.clone().unwrap_or_else(binary);
        words.extend([
            program.display().to_string(),
            member.role.to_owned(),
            "--config".to_owned(),
        ]);
        words.extend([
            config.display().to_string(),
            "--data".to_owned(),
            self.data(number).display().to_string(),
        ]);
        let own = self.builder.set_for.iter().filter(|(of, _)| *of == number).map(|(_, flag)| flag);
        words.extend(
            self.builder.set.iter().chain(own).flat_map(|flag| ["--set".to_owned(), flag.clone()]),
        );
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file has two ends")).stderr(log);
        command.envs(self.builder.env.iter().map(|(name, value)| (name, value)));
        if self.builder.clocks {
            command
                .env("LD_PRELOAD", self.dir.path().join("clock.so"))
                .env("BRIDLE_TEST_CLOCK", self.clock(number));
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("start {words:?}: {error}"));
        self.members[number].child = Some(child);
    }

    /// Number of processes, running or not.
    #[allow(clippy::len_without_is_empty, reason = "there is no empty cluster")]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Number of processes with data, which come first.
    pub fn nodes(&self) -> usize {
        self.builder.nodes
    }

    /// The process runs, or is frozen.
    pub fn runs(&self, number: usize) -> bool {
        self.members[number].child.is_some()
    }

    /// The ids of the running processes.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| member.child.as_ref()).map(Child::id).collect()
    }

    /// The address of a process for the other processes, as in the admin API.
    pub fn address(&self, number: usize) -> String {
        format!("{}:{}", self.members[number].ip, self.members[number].cluster_port)
    }

    /// The address of a process for Redis clients.
    pub fn proxy(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.members[number].ip, self.members[number].resp_port)
    }

    /// URL of the HTTP port of a process, for `bridle admin --url`.
    pub fn url(&self, number: usize) -> String {
        format!("http://{}:{}", self.members[number].ip, self.members[number].http_port)
    }

    /// A page of a process's HTTP port: status and text.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn page(&self, number: usize, path: &str) -> (u16, String) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response =
            agent.get(format!("{}{path}", self.url(number))).call().expect("the HTTP port answers");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("a page of text"))
    }

    /// The addresses of all processes for Redis clients.
    pub fn all_proxies(&self) -> Vec<SocketAddr> {
        (0..self.len()).map(|number| self.proxy(number)).collect()
    }

    /// A connection to a process.
    ///
    /// # Errors
    /// The socket's.
    pub fn client(&self, number: usize) -> io::Result<Client> {
        Client::reach(self.proxy(number), Duration::from_secs(10))
    }

    /// The data directory of a process.
    pub fn data(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{number}"))
    }

    /// The output of a process, over all its starts.
    pub fn output(&self, number: usize) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log(number)).unwrap_or_default()).into_owned()
    }

    fn log(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{number}.log"))
    }

    fn clock(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("{number}.clock"))
    }

    /// Kills a process as `kill -9` does; nothing when it does not run.
    ///
    /// # Panics
    /// When it has ended already: no test expects that.
    pub fn kill(&mut self, number: usize) {
        self.assert_not_ended(number);
        self.end(number);
    }

    /// Kills all processes, as simultaneously as possible.
    ///
    /// # Panics
    /// As [`Cluster::kill`].
    pub fn kill_all(&mut self) {
        (0..self.len()).for_each(|number| self.assert_not_ended(number));
        self.end_all();
    }

    /// Waits until a process ends on its own.
    ///
    /// # Panics
    /// When it does not in a minute.
    pub fn wait_until_ended(&mut self, number: usize) {
        let deadline = Instant::now() + TIMEOUT;
        let Some(mut child) = self.members[number].child.take() else { return };
        while child.try_wait().expect("our own child").is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("process {number} does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_not_ended(&mut self, number: usize) {
        if let Some(child) = &mut self.members[number].child {
            let ended = child.try_wait().expect("our own child");
            assert!(ended.is_none(), "process {number} has ended on its own: {ended:?}");
        }
    }

    fn end(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn end_all(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
        }
        (0..self.len()).for_each(|number| self.end(number));
    }

    /// Stops a process (SIGTERM) and waits for its end; returns the time that it took.
    ///
    /// # Panics
    /// When it does not end in a minute, or has ended already.
    pub fn stop(&mut self, number: usize) -> Duration {
        self.assert_not_ended(number);
        let began = Instant::now();
        self.signal(number, "TERM");
        let Some(mut child) = self.members[number].child.take() else { return Duration::ZERO };
        while child.try_wait().expect("our own child").is_none() {
            if began.elapsed() > TIMEOUT {
                let _ = child.kill();
                panic!("process {number} did not end by SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        began.elapsed()
    }

    /// Freezes a process (SIGSTOP).
    pub fn freeze(&self, number: usize) {
        self.signal(number, "STOP");
    }

    /// Resumes a frozen process (SIGCONT).
    pub fn thaw(&self, number: usize) {
        self.signal(number, "CONT");
    }

    fn signal(&self, number: usize, name: &str) {
        if let Some(child) = &self.members[number].child {
            Command::new("kill")
                .args(["-s", name, &child.id().to_string()])
                .status()
                .expect("kill is part of every system");
        }
    }

    /// Builds the library that shifts clocks, and a clock file for each process.
    fn make_clocks(&self) {
        let source = self.dir.path().join("clock.c");
        std::fs::write(&source, include_str!("cluster/clock.c")).expect("room for a clock");
        let library = self.dir.path().join("clock.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .output();
        let built = built.expect("a C compiler is there, Bridle was built with one");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (0..self.len()).for_each(|number| self.set_clock(number, 0));
    }

    /// Shifts the wall clock of a process by this many seconds, immediately. Needs
    /// [`ClusterBuilder::clocks`].
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn set_clock(&self, number: usize, seconds: i64) {
        // The process has mapped the file, so it is written in place.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.clock(number))
            .expect("room for a clock");
        file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0).expect("room for a clock");
    }

    /// Waits until every running process serves writes to every partition.
    ///
    /// # Panics
    /// When that takes more than a minute; with the ends of the logs (by [`Drop`]).
    pub fn wait_until_serving(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        for number in (0..self.len()).filter(|number| self.runs(*number)).collect::<Vec<_>>() {
            while let Err(why) = self.serves(number) {
                self.assert_not_ended(number);
                assert!(Instant::now() < deadline, "process {number} does not serve: {why}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Checks that writes to many slots succeed through this process.
    fn serves(&self, number: usize) -> Result<(), String> {
        let mut client = Client::reach(self.proxy(number), Duration::from_secs(8))
            .map_err(|error| error.to_string())?;
        for key in 0..self.builder.partitions * 4 {
            match client.call(&["SET", &format!("serves:{key}"), "yes"]) {
                Ok(Value::Status(_)) => {}
                Ok(other) => return Err(other.text()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// The ends of all logs.
    pub fn tails(&self) -> String {
        let tail = |number| {
            let text = self.output(number);
            let lines: Vec<&str> = text.lines().collect();
            format!(
                "--- process {number}, its last lines\n{}\n",
                lines[lines.len().saturating_sub(30)..].join("\n")
            )
        };
        (0..self.len()).map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end_all();
        if std::thread::panicking() {
            eprintln!("{}", self.tails());
        }
    }
}

/// Free ports. All are bound until the last one is found, so that they differ.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a free port")).collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("a bound socket has an address").port())
        .collect()
}
