//! A `bridle standalone` process for a test.

use std::io::{self, BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::{Client, Value};

/// Maximum time for a process to serve, or to end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The built binary, next to the running test.
///
/// # Panics
/// When it is missing: build the workspace first (`make test` does).
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let found = test.ancestors().map(|dir| dir.join("bridle")).find(|path| path.is_file());
    found.expect(
        "the binary lies in the directory above the tests: cargo build --release --workspace",
    )
}

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerBuilder {
    flags: Vec<String>,
    config: String,
    dir: Option<PathBuf>,
    wrapper: Vec<String>,
    binary: Option<PathBuf>,
}

/// A running (or killed) server and its directory.
#[derive(Debug)]
pub struct Server {
    builder: ServerBuilder,
    child: Child,
    /// The RESP port.
    pub port: u16,
    /// The HTTP port.
    pub http_port: u16,
    dir: PathBuf,
    output: Arc<Mutex<String>>,
    _own_dir: Option<tempfile::TempDir>,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Server::builder()
    }
}

impl ServerBuilder {
    /// Adds a flag of `bridle standalone` with its value.
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.flags.push(format!("--{name}"));
        self.flags.push(value.to_string());
        self
    }

    /// Adds lines to the configuration file.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Uses this data directory instead of a temporary one.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Starts the binary under another program (`strace -f -o FILE`).
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts this binary instead of the built one.
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Starts the server and waits until it answers PING.
    ///
    /// # Panics
    /// When it does not; with its output.
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        server.wait_until_serving();
        server
    }

    /// Starts the process without waiting for it: for starts that must fail.
    ///
    /// # Panics
    /// When there is no binary, or its directory can't be created.
    pub fn spawn(self) -> Server {
        let own_dir =
            self.dir.is_none().then(|| tempfile::tempdir().expect("a directory for the test"));
        let dir = match (&self.dir, &own_dir) {
            (Some(dir), _) => dir.clone(),
            (None, Some(own)) => own.path().join("data"),
            (None, None) => unreachable!("one of both was made"),
        };
        let (port, http_port) = (free_port(), free_port());
        let output = Arc::default();
        let child = launch(&self, &dir, port, http_port, &output);
        Server { builder: self, child, port, http_port, dir, output, _own_dir: own_dir }
    }
}

impl Server {
    /// A server with default settings on free ports.
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            flags: Vec::new(),
            config: String::new(),
            dir: None,
            wrapper: Vec::new(),
            binary: None,
        }
    }

    /// A server with default settings, serving.
    pub fn start() -> Server {
        Server::builder().start()
    }

    /// A new connection.
    ///
    /// # Panics
    /// When it is refused.
    pub fn client(&self) -> Client {
        Client::connect(self.port)
            .unwrap_or_else(|error| panic!("connect: {error}\n{}", self.output()))
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Standard output and error of the process, over all its starts.
    pub fn output(&self) -> String {
        self.output.lock().expect("no reader panics").clone()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the process (SIGTERM) and waits for its end.
    ///
    /// # Panics
    /// When it does not end in a minute.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Sends a signal by name.
    ///
    /// # Panics
    /// When there is no `kill`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill is part of every system");
    }

    /// The process has ended.
    ///
    /// # Panics
    /// When the system can't tell.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// When it does not end in a minute.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                // The threads that read its output need a moment more.
                std::thread::sleep(Duration::from_millis(20));
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the server did not end; its output:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Restarts the process on the same directory and ports, and waits until it serves.
    /// Returns the time that this took.
    pub fn restart(&mut self) -> Duration {
        self.kill();
        let began = Instant::now();
        self.child = launch(&self.builder, &self.dir, self.port, self.http_port, &self.output);
        self.wait_until_serving();
        began.elapsed()
    }

    fn wait_until_serving(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Ok(mut client) = Client::connect(self.port) {
                match client.call(&["PING"]) {
                    Ok(Value::Error(text)) if text.starts_with("LOADING") => {}
                    Ok(_) => return,
                    Err(_) => {}
                }
            }
            let ended = self.child.try_wait().expect("our own child");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the server does not serve ({ended:?}); its output:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A free port.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn launch(
    builder: &ServerBuilder,
    dir: &Path,
    port: u16,
    http_port: u16,
    output: &Arc<Mutex<String>>,
) -> Child {
    let mut words = builder.wrapper.clone();
    words.push(builder.binary.clone().unwrap_or_else(binary).display().to_string());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("standalone");
    if !builder.config.is_empty() {
        let file = dir.with_extension("toml");
        std::fs::write(&file, &builder.config).expect("write the test's configuration");
        command.arg("--config").arg(file);
    }
    command
        .arg("--port")
        .arg(port.to_string())
        .arg("--http-port")
        .arg(http_port.to_string())
        .arg("--data")
        .arg(dir);
    // Many servers run in parallel; measurements override this.
    command.args(["--set", "node.memory=64MiB"]);
    command.args(&builder.flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {words:?}: {error}"));
    keep(child.stdout.take().expect("piped"), output);
    keep(child.stderr.take().expect("piped"), output);
    child
}

/// Collects a stream's text on a thread.
fn keep(stream: impl io::Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = output.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut output = output.lock().expect("no reader panics");
            output.push_str(&line);
            output.push('\n');
        }
    });
}
