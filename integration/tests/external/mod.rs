//! External programs, run to their end; and temporary certificates for them and the
//! server.
#![allow(dead_code, unreachable_pub, reason = "every test file uses some of it")]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Success and output of a program.
#[derive(Debug)]
pub struct ProgramOutput {
    /// The exit code was 0.
    pub success: bool,
    /// Standard output followed by standard error.
    pub output: String,
}

/// Runs a program with `input` on its standard input, for at most two minutes.
pub fn run(program: impl AsRef<Path>, words: &[&str], input: &str) -> ProgramOutput {
    run_in(Path::new("."), program, words, &[], input)
}

/// [`run`] in a directory, with additions to the environment.
pub fn run_in(
    dir: &Path,
    program: impl AsRef<Path>,
    words: &[&str],
    env: &[(&str, String)],
    input: &str,
) -> ProgramOutput {
    let program = program.as_ref();
    let mut command = Command::new("timeout");
    command
        .arg("120")
        .arg(program)
        .args(words)
        .current_dir(dir)
        .envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("timeout is part of every system");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // A program may end without reading all of it.
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("our own child");
    let _ = feeding.join().expect("writing does not panic");
    let text = [output.stdout, output.stderr].concat();
    ProgramOutput {
        success: output.status.success(),
        output: String::from_utf8_lossy(&text).into_owned(),
    }
}

/// The output of a program that must succeed.
pub fn output(program: impl AsRef<Path>, words: &[&str], input: &str) -> String {
    let program = program.as_ref();
    let ended = run(program, words, input);
    assert!(ended.success, "{} {words:?} failed:\n{}", program.display(), ended.output);
    ended.output
}

/// Directory for downloads of tests.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Directory of the programs for a kind of client.
pub fn programs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A Python with redis-py, installed when it is missing.
pub fn redis_py() -> PathBuf {
    let venv = kept("redis-py");
    let python = venv.join("bin/python");
    if !run(&python, &["-c", "import redis"], "").success {
        output("python3", &["-m", "venv", "--clear", &venv.display().to_string()], "");
        output(&python, &["-m", "pip", "install", "--quiet", "redis>=6"], "");
    }
    python
}

/// A directory with these programs, and with ioredis and node-redis for Node, installed
/// when they are missing.
pub fn node(files: &[&str]) -> PathBuf {
    let (sources, home) = (programs("node"), kept("node"));
    std::fs::create_dir_all(&home).expect("a directory");
    for file in files.iter().chain(&["package.json"]) {
        std::fs::copy(sources.join(file), home.join(file)).expect("the programs are in the tree");
    }
    if !run_in(&home, Path::new("node"), &["-e", "require('ioredis'); require('redis')"], &[], "")
        .success
    {
        let ended = run_in(
            &home,
            Path::new("npm"),
            &["install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"],
            &[],
            "",
        );
        assert!(ended.success, "npm install: {}", ended.output);
    }
    home
}

/// A free port.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A directory of certificates: an authority's, the server's (`localhost`, `127.0.0.1`)
/// and a client's.
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    /// Creates new certificates.
    pub fn new() -> Certificates {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Certificates { dir };
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine names");
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a certificate");
        made.write("ca.pem", &authority.pem());
        for (name, names) in
            [("server", ["localhost", "127.0.0.1"]), ("client", ["client", "client.test"])]
        {
            let key = KeyPair::generate().expect("a key");
            let mut params =
                CertificateParams::new(names.map(str::to_owned).to_vec()).expect("fine names");
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            made.write(&format!("{name}.pem"), &certificate.pem());
            made.write(&format!("{name}.key"), &key.serialize_pem());
        }
        made
    }

    /// A copy of the files in another directory.
    pub fn copy_of(other: &Certificates) -> Certificates {
        let dir = tempfile::tempdir().expect("a directory");
        for file in std::fs::read_dir(other.dir.path()).expect("it is there") {
            let file = file.expect("it is there");
            std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("room");
        }
        Certificates { dir }
    }

    /// Path of a file: `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// [`Certificates::path`] as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The `[tls]` section of a server with these certificates.
    pub fn section(&self, port: u16) -> String {
        format!(
            "[tls]\nport = {port}\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            self.text("server.pem"),
            self.text("server.key")
        )
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).expect("write a certificate");
    }
}
