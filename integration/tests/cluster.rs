//! A cluster as its users and operators see it: three nodes are one Redis and tolerate
//! the loss of one, roles run in separate processes, and processes without the secret are
//! rejected.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::cluster::{Cluster, SECRET, free_ports};
use integration::{Client, Value, admin_json, binary, bridle, bridle_with, within};
use serde_json::Value as Json;

/// Number of a table's replicas that run and have all of their leader's log.
fn current_replicas(partitions: &Json) -> usize {
    let members = partitions
        .as_array()
        .expect("a list of partitions")
        .iter()
        .flat_map(|partition| partition["members"].as_array());
    members.flatten().filter(|member| member["state"] == "running" && member["lag"] == 0).count()
}

#[test]
fn three_nodes_are_one_redis() {
    let cluster = Cluster::builder().start();
    let mut clients: Vec<Client> =
        (0..3).map(|number| cluster.client(number).expect("it serves")).collect();
    assert_eq!(clients[0].run("FLUSHALL"), Value::ok());
    for key in 0..600 {
        assert_eq!(
            clients[key % 3]
                .call(&["SET", &format!("key:{key}"), &key.to_string()])
                .expect("a reply"),
            Value::ok()
        );
    }
    for key in 0..600 {
        let read = clients[(key + 1) % 3].call(&["GET", &format!("key:{key}")]).expect("a reply");
        assert_eq!(
            read,
            Value::bulk(&key.to_string()),
            "written through one node, read through another"
        );
    }
    for client in &mut clients {
        assert_eq!(client.run("DBSIZE"), Value::Int(600));
        assert!(client.run("INFO server").text().contains("bridle_mode:cluster"));
    }
    let leaders: BTreeSet<_> =
        cluster.leaders("db0").expect("the admin API answers").into_iter().collect();
    assert_eq!(
        leaders,
        (0..3).map(Some).collect(),
        "every node leads some of the eight partitions"
    );
    // WAIT counts the copies of an acknowledged write, without the leader's.
    assert_eq!(clients[0].run("WAIT 1 0"), Value::Int(1));
}

#[test]
fn writes_go_on_without_a_node_and_it_catches_up() {
    let mut cluster = Cluster::builder().start();
    let write = |cluster: &Cluster, through: usize, range: std::ops::Range<u32>| {
        let mut client = cluster.client(through).expect("it serves");
        for key in range {
            assert_eq!(
                client.call(&["SET", &format!("k{key}"), &key.to_string()]).expect("a reply"),
                Value::ok(),
                "k{key}"
            );
        }
    };
    write(&cluster, 0, 0..200);
    cluster.kill(1);
    let began = Instant::now();
    // Enough keys for all partitions, including those that the dead node led.
    write(&cluster, 2, 200..300);
    let took = began.elapsed();
    println!("100 writes to all partitions took {took:.2?} from the kill on");
    assert!(took < Duration::from_secs(3), "{took:?}");
    write(&cluster, 0, 300..500);
    let status = cluster.admin(0, &["status"]);
    within(10, "the dead node is seen to be down", || {
        cluster.admin(0, &["status"])["in_cluster"]["servers_up"] == 2
    });
    assert_eq!(status["in_cluster"]["partitions"], 8, "{status}");

    cluster.launch(1);
    cluster.wait_until_serving();
    within(30, "all replicas are current", || {
        current_replicas(&cluster.admin(1, &["partitions", "db0"])) == 24
    });
    // Now the others can fail, one at a time, without a loss.
    cluster.kill(0);
    let mut client = cluster.client(1).expect("it serves");
    for key in 0..500u32 {
        assert_eq!(
            client.call(&["GET", &format!("k{key}")]).expect("a reply"),
            Value::bulk(&key.to_string())
        );
    }
}

#[test]
fn a_cluster_killed_as_a_whole_recovers_everything() {
    let mut cluster = Cluster::builder().start();
    let mut client = cluster.client(0).expect("it serves");
    for key in 0..300u32 {
        assert_eq!(
            client.call(&["SET", &format!("k{key}"), &key.to_string()]).expect("a reply"),
            Value::ok()
        );
    }
    cluster.kill_all();
    (0..3).for_each(|number| cluster.launch(number));
    cluster.wait_until_serving();
    let mut client = cluster.client(2).expect("it serves");
    for key in 0..300u32 {
        assert_eq!(
            client.call(&["GET", &format!("k{key}")]).expect("a reply"),
            Value::bulk(&key.to_string())
        );
    }
}

#[test]
fn tables_are_managed_through_any_node() {
    let cluster = Cluster::builder().start();
    let made = cluster.admin(
        1,
        &["create", "books", "--partitions", "6", "--replicas", "2", "--env", "default_ttl=90"],
    );
    assert_eq!(
        (&made["partitions"], &made["replicas"], &made["status"]),
        (&6.into(), &2.into(), &"ready".into()),
        "{made}"
    );
    let mut client = cluster.client(2).expect("it serves");
    assert_eq!(client.run("SELECT books"), Value::ok(), "another node knows it at once");
    assert_eq!(client.run("SET dune herbert"), Value::ok());
    assert!((1..=90).contains(&client.run("TTL dune").int()));
    for number in 0..3 {
        assert_eq!(cluster.admin(number, &["nodes"]).as_array().expect("a list").len(), 3);
        assert_eq!(
            cluster.admin(number, &["env", "get", "books"]),
            serde_json::json!({"default_ttl": "90"})
        );
    }
    let moved = cluster.admin(0, &["partitions", "books"]);
    let follower = moved[0]["members"]
        .as_array()
        .expect("members")
        .iter()
        .find(|member| member["leads"] == false)
        .expect("a follower");
    let address = follower["address"].as_str().expect("an address");
    let moved = cluster.admin(2, &["transfer", "books", "0", "--to", address]);
    assert_eq!(moved["leader"], follower["server"]);
    let done = cluster.admin(0, &["compact", "books", "--wait"]);
    assert_eq!((&done["status"], &done["partitions_done"]), (&"done".into(), &12.into()), "{done}");
    cluster.admin(1, &["drop", "books"]);
    within(10, "nothing of it is left", || {
        let tables = cluster.admin(0, &["tables"]);
        tables.as_array().is_some_and(|tables| tables.iter().all(|table| table["name"] != "books"))
    });
    for number in 0..3 {
        let left = std::fs::read_dir(cluster.data(number).join("tables"))
            .expect("a directory of replicas");
        let names: Vec<_> = left
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("plain letters"))
            .collect();
        assert_eq!(names.len(), 8, "the replicas of db0, and no others: {names:?}");
    }
    within(5, "its client gets an error", || client.run("SET dune frank").is_error());
}

/// A client's view of a new key of a new table, by several commands, and after DEL.
const LOOKS: [(&str, &str, bool); 9] = [
    ("GET k", "value", false),
    ("DBSIZE", "Int(1)", false),
    ("EXISTS k", "Int(1)", false),
    ("KEYS *", "Array([Bulk([107])])", false),
    ("RANDOMKEY", "k", false),
    ("DEL k", "Int(1)", true),
    ("GETDEL k", "value", true),
    ("FLUSHDB", "OK", true),
    ("FLUSHALL", "OK", true),
];

#[test]
fn a_table_that_was_just_made_is_there_for_every_proxy() {
    let cluster = Cluster::builder().partitions(2).durability("os").proxies(1).start();
    let proxy = cluster.nodes();
    let mut clients: Vec<Client> =
        (0..=proxy).map(|number| cluster.client(number).expect("it serves")).collect();
    let mut looks = LOOKS.iter().cycle();
    for round in 0..4 {
        for db in 1..16 {
            let writer = db % proxy;
            for client in &mut clients {
                assert_eq!(client.run(&format!("SELECT {db}")), Value::ok());
                assert_eq!(
                    client.run("GET k"),
                    Value::Nil,
                    "round {round}, db{db}: it was created by no command"
                );
            }
            let (look, seen, gone) = looks.next().expect("they go round");
            // A frozen proxy receives nothing; when it resumes, the request and meta's
            // delta arrive at the same time.
            cluster.freeze(proxy);
            assert_eq!(clients[writer].run("SET k value"), Value::ok());
            clients[proxy].send(&look.split(' ').collect::<Vec<_>>()).expect("it is there");
            cluster.thaw(proxy);
            let output = clients[proxy].reply().expect("a reply");
            assert_eq!(
                output.text(),
                *seen,
                "round {round}, db{db}: SET through {writer}, then {look}"
            );
            let left = if *gone { Value::Nil } else { Value::bulk("value") };
            for (number, client) in clients.iter_mut().enumerate() {
                assert_eq!(
                    client.run("GET k"),
                    left,
                    "round {round}, db{db}: {look}, then GET through {number}"
                );
            }
        }
        for db in 1..16 {
            cluster.admin(round % proxy, &["drop", &format!("db{db}")]);
        }
        within(20, "they are gone", || {
            cluster.admin(0, &["tables"]).as_array().is_some_and(|tables| tables.len() == 1)
        });
    }
}

/// A process outside of a [`Cluster`].
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(dir: &Path, name: &str, words: &[&str]) -> Process {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).expect("room for a log");
        let mut command = Command::new(binary());
        command.args(words).arg("--data").arg(dir.join(name)).stdin(Stdio::null());
        let child = command
            .stdout(file.try_clone().expect("a file has two ends"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        Process { child, log }
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Process {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is part of every system").success());
    }

    /// Freezes the process, and waits until all its threads have stopped.
    fn freeze(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.expect("it is there").path().join("stat"))
                .unwrap_or_default();
            // The name before it, in parentheses, may be anything.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        within(5, "it is frozen", || {
            std::fs::read_dir(&tasks).expect("a running process").all(is_stopped)
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.output());
        }
    }
}

#[test]
fn roles_live_apart() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let ports = free_ports(4);
    let (meta, metas_http, resp, http) =
        (format!("127.0.0.1:{}", ports[0]), ports[1].to_string(), ports[2], ports[3].to_string());
    let flags =
        ["--metas", &meta, "--set", "raft_log.segment_size=1MiB", "--set", "tables.partitions=4"];
    let start = |name: &str, words: &[&str]| {
        Process::start(dir.path(), name, &[words, &flags[..]].concat())
    };
    let one_meta = start("meta", &["meta", "--listen", &meta, "--http-port", &metas_http]);
    let mut storages: Vec<Process> = (0..3)
        .map(|number| {
            start(
                &format!("storage{number}"),
                &["storage", "--listen", "127.0.0.1:0", "--http-port", "0"],
            )
        })
        .collect();
    let _proxy = start(
        "proxy",
        &["proxy", "--listen", "127.0.0.1:0", "--http-port", &http, "--port", &resp.to_string()],
    );
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, resp));
    within(20, "the proxy serves", || {
        Client::reach(proxy, Duration::from_secs(6))
            .and_then(|mut client| client.call(&["SET", "a", "1"]))
            .is_ok_and(|output| output == Value::ok())
    });
    let mut client = Client::reach(proxy, Duration::from_secs(6)).expect("it serves");
    for key in 0..100 {
        assert_eq!(client.call(&["SET", &format!("k{key}"), "v"]).expect("a reply"), Value::ok());
    }
    assert_eq!(client.run("DBSIZE"), Value::Int(101));
    // The admin API also answers on a process that is not a meta.
    let (by_proxy, by_meta) =
        (format!("http://127.0.0.1:{http}"), format!("http://127.0.0.1:{metas_http}"));
    let nodes = admin_json(&by_proxy, None, &["nodes"]);
    let roles: BTreeSet<String> =
        nodes.as_array().expect("a list").iter().map(|node| node["roles"].to_string()).collect();
    assert_eq!(
        roles,
        ["[\"meta\"]", "[\"proxy\"]", "[\"storage\"]"].map(str::to_owned).into(),
        "{nodes}"
    );
    assert_eq!(admin_json(&by_proxy, None, &["tables"]), admin_json(&by_meta, None, &["tables"]));
    assert_eq!(
        admin_json(&by_proxy, None, &["create", "books", "--partitions", "2"])["status"],
        "ready"
    );
    // With its only meta frozen and then gone, existing tables serve, and unknown tables
    // are not reported as missing.
    assert_eq!(client.run("CONFIG SET call-deadline-ms 1500"), Value::ok());
    let all_refused = |lines: &[&str]| {
        let refused = |line: &str| {
            let mut in_nine = Client::reach(proxy, Duration::from_secs(6)).expect("it serves");
            assert_eq!(in_nine.run("SELECT 9"), Value::ok(), "a number needs no meta");
            let began = Instant::now();
            let output = in_nine.run(line);
            assert!(
                output.text().starts_with(
                    "CLUSTERDOWN The table can't be looked up or made now, nothing was done: "
                ),
                "{line}: {output:?}"
            );
            assert!(
                (1000..2500).contains(&began.elapsed().as_millis()),
                "{line}: refused after {:?}",
                began.elapsed()
            );
        };
        std::thread::scope(|scope| {
            lines.iter().for_each(|line| _ = scope.spawn(move || refused(line)))
        });
    };
    let mut in_nine = Client::reach(proxy, Duration::from_secs(6)).expect("it serves");
    assert_eq!(in_nine.run("SELECT 9"), Value::ok());
    assert_eq!(in_nine.run("GET a"), Value::Nil);
    one_meta.freeze();
    all_refused(&["GET a", "DBSIZE", "DEL a", "WATCH a", "SET a 1", "SELECT nobody", "FLUSHALL"]);
    assert_eq!(client.run("SELECT books"), Value::ok(), "it is known");
    assert_eq!(client.run("SELECT 0"), Value::ok());
    assert_eq!((client.run("SET a 2"), client.run("GET a")), (Value::ok(), Value::bulk("2")));
    one_meta.signal("CONT");
    within(5, "it is asked again", || in_nine.run("GET a") == Value::Nil);
    drop(one_meta);
    all_refused(&["GET a", "SET a 1"]);
    assert_eq!((client.run("SET a 3"), client.run("GET a")), (Value::ok(), Value::bulk("3")));
    // A failover needs no meta either.
    assert_eq!(client.run("CONFIG SET call-deadline-ms 4000"), Value::ok());
    drop(storages.pop());
    for key in 0..100 {
        assert_eq!(client.call(&["SET", &format!("k{key}"), "w"]).expect("a reply"), Value::ok());
    }
}

#[test]
fn processes_without_the_secret_are_rejected() {
    let cluster = Cluster::builder().start();
    let dir = tempfile::tempdir().expect("a directory for the test");
    std::fs::write(dir.path().join("secret"), "quite another secret\n").expect("room for a secret");
    let metas = (0..3).map(|number| cluster.address(number)).collect::<Vec<_>>().join(",");
    let secret = dir.path().join("secret");
    let http = free_ports(1)[0].to_string();
    let flags = [
        "proxy",
        "--metas",
        &metas,
        "--set",
        "cluster.name=test",
        "--listen",
        "127.0.0.1:0",
        "--port",
        "0",
        "--http-port",
    ];
    let wrong = Process::start(
        dir.path(),
        "wrong",
        &[&flags[..], &[&http, "--secret-file", &secret.display().to_string()]].concat(),
    );
    let none = Process::start(dir.path(), "none", &[&flags[..], &["0"]].concat());
    within(10, "the log has the reason", || {
        wrong.output().contains("does not know the cluster's secret")
    });
    within(10, "the log has the reason", || {
        none.output().contains("asks for the cluster's secret")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        !wrong.output().contains("Redis clients") && !none.output().contains("Redis clients"),
        "it serves no clients"
    );
    let output = bridle(&["admin", "--url", &format!("http://127.0.0.1:{http}"), "nodes"]);
    assert!(
        !output.success && output.error.contains("waiting for a meta leader"),
        "{}",
        output.error
    );
    let wrong = bridle_with(
        Some("quite another secret"),
        &["admin", "--url", &cluster.url(0), "drop", "db0"],
    );
    let none = bridle(&["admin", "--url", &cluster.url(0), "drop", "db0"]);
    assert!(
        [&wrong, &none].iter().all(
            |output| !output.success && output.error.contains("the cluster's secret is wanted")
        ),
        "{wrong:?} {none:?}"
    );
    assert_eq!(
        cluster.admin(0, &["nodes"]).as_array().expect("a list").len(),
        3,
        "no process has joined"
    );
}

#[test]
fn processes_trust_each_other_by_certificate() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let certs = dir.path().join("certs").display().to_string();
    let made = |hosts: &[&str], name: &str| {
        let output = bridle(&[&["admin", "certs", "--dir", name], hosts].concat());
        assert!(output.success, "{}", output.error);
    };
    made(&["127.0.0.1"], &certs);
    // A process added later, under the same authority; and one of another authority.
    made(&["127.0.0.1"], &certs);
    let strange = dir.path().join("strange").display().to_string();
    made(&["127.0.0.1"], &strange);
    let ports = free_ports(3);
    let (meta, resp, http) = (format!("127.0.0.1:{}", ports[0]), ports[1], ports[2].to_string());
    let tls = |certs: &str| {
        [("cert_file", "127.0.0.1.pem"), ("key_file", "127.0.0.1.key"), ("ca_file", "ca.pem")]
            .into_iter()
            .flat_map(|(key, file)| ["--set".to_owned(), format!("cluster.{key}={certs}/{file}")])
            .collect::<Vec<_>>()
    };
    let start = |name: &str, words: &[&str], certs: Option<&str>| {
        let flags =
            ["--metas", &meta, "--set", "tables.replicas=2", "--set", "raft_log.segment_size=1MiB"];
        let tls = certs.map(tls).unwrap_or_default();
        let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
        Process::start(dir.path(), name, &[words, &flags[..], &tls[..]].concat())
    };
    let one = start(
        "one",
        &["node", "--listen", &meta, "--port", &resp.to_string(), "--http-port", &http],
        Some(&certs),
    );
    let two =
        start("two", &["storage", "--listen", "127.0.0.1:0", "--http-port", "0"], Some(&certs));
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, resp));
    let set = || {
        Client::reach(at, Duration::from_secs(6))
            .and_then(|mut client| client.call(&["SET", "a", "1"]))
    };
    within(20, "two replicas take a write", || set().is_ok_and(|output| output == Value::ok()));
    let plain = start("plain", &["storage", "--listen", "127.0.0.1:0", "--http-port", "0"], None);
    let strange =
        start("other", &["storage", "--listen", "127.0.0.1:0", "--http-port", "0"], Some(&strange));
    within(10, "the log has the reason", || plain.output().contains("cannot reach a meta"));
    within(10, "the log has the reason", || {
        strange.output().contains("UnknownIssuer") || strange.output().contains("certificate")
    });
    let output = bridle(&["admin", "--url", &format!("http://127.0.0.1:{http}"), "drop", "db0"]);
    assert!(
        !output.success && output.error.contains("a cluster that has only certificates"),
        "{output:?}"
    );
    assert!(
        !plain.output().contains("serving ") && !strange.output().contains("serving "),
        "they have not joined"
    );
    // The cluster moves to the other authority: certificates are reloaded, and the
    // rejected process is accepted.
    for file in ["127.0.0.1.pem", "127.0.0.1.key", "ca.pem"] {
        std::fs::copy(dir.path().join("strange").join(file), dir.path().join("certs").join(file))
            .expect("room");
    }
    one.signal("HUP");
    within(20, "it has joined", || strange.output().contains("serving "));
    // A process without a port for clients does the same.
    two.signal("HUP");
    within(20, "two replicas take a write again", || {
        set().is_ok_and(|output| output == Value::ok())
    });
    // By name, too: a key that does not fit its certificate changes nothing.
    made(&["127.0.0.1"], &dir.path().join("third").display().to_string());
    let third = |file: &str| dir.path().join("third").join(file).display().to_string();
    let mut client = Client::reach(at, Duration::from_secs(6)).expect("it serves");
    let refused =
        client.run(&format!("CONFIG SET cluster-cert-file {}", third("127.0.0.1.pem"))).text();
    assert!(
        refused.starts_with(
            "ERR CONFIG SET failed (possibly related to argument 'cluster-cert-file') - for the \
             cluster: "
        ),
        "{refused}"
    );
    assert_eq!(client.setting("cluster-cert-file"), format!("{certs}/127.0.0.1.pem"));
    let late = start(
        "late",
        &["storage", "--listen", "127.0.0.1:0", "--http-port", "0"],
        Some(&third("")),
    );
    within(10, "it is still refused", || late.output().contains("cannot reach a meta"));
    assert!(!late.output().contains("serving "));
    let (cert, key, ca) = (third("127.0.0.1.pem"), third("127.0.0.1.key"), third("ca.pem"));
    let set = client.run(&format!(
        "CONFIG SET cluster-cert-file {cert} cluster-key-file {key} cluster-ca-file {ca}"
    ));
    assert_eq!(set, Value::ok());
    within(20, "who has the third kind is let in", || late.output().contains("serving "));
    let other = client.run("CONFIG SET tls-cert-file x").text();
    assert!(other.contains("clients are not served by TLS"), "{other}");
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let mut one = Cluster::builder().nodes(1).replicas(1).start();
    let dir = tempfile::tempdir().expect("a directory for the test");
    let address = one.address(0);
    // A process that has belonged to another cluster of the same name.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("room");
    let identity = "format = 3\nkind = \"member\"\ncluster = \"test\"\ncluster_id = \
                    \"0000000000000abc\"\nnode_id = 4711\n";
    std::fs::write(other.join("IDENTITY"), identity).expect("room");
    let secret = one.data(0).with_file_name("secret");
    let flags = [
        "storage",
        "--metas",
        &address,
        "--set",
        "cluster.name=test",
        "--listen",
        "127.0.0.1:0",
        "--http-port",
        "0",
    ];
    let stranger = Process::start(
        dir.path(),
        "other",
        &[&flags[..], &["--secret-file", &secret.display().to_string()]].concat(),
    );
    within(10, "the log has the reason", || stranger.output().contains("belongs to cluster"));
    assert_eq!(one.admin(0, &["nodes"]).as_array().expect("a list").len(), 1);
    assert_eq!(
        std::fs::read_to_string(other.join("IDENTITY")).expect("it is there"),
        identity,
        "it is left as it was"
    );
    // A member's directory can't be used by a standalone server either.
    let data = one.data(0).display().to_string();
    one.kill_all();
    let output = bridle(&[
        "standalone",
        "--port",
        "0",
        "--http-port",
        "0",
        "--set",
        "cluster.name=test",
        "--data",
        &data,
    ]);
    assert!(
        !output.success && output.error.contains("belongs to a process of a cluster"),
        "{}",
        output.error
    );
}

#[test]
fn addresses_are_of_any_kind_and_change_between_starts() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let ports = free_ports(11);
    let clients: [SocketAddr; 3] =
        [0, 1, 2].map(|number| SocketAddr::from((Ipv4Addr::LOCALHOST, ports[number])));
    let https = [3, 4, 5].map(|place: usize| ports[place].to_string());
    let (v6, v4, name) = (
        |at: usize| format!("[::1]:{}", ports[at]),
        |at: usize| format!("127.0.0.1:{}", ports[at]),
        |at: usize| format!("localhost:{}", ports[at]),
    );
    let start = |number: usize, meta: &str, listen: &str, advertise: &str| {
        let (port, http) = (clients[number].port().to_string(), &https[number]);
        let words = [
            "node",
            "--metas",
            meta,
            "--listen",
            listen,
            "--advertise",
            advertise,
            "--port",
            &port,
            "--http-port",
            http,
        ];
        let more = ["--set", "tables.partitions=4", "--set", "raft_log.segment_size=1MiB"];
        Process::start(dir.path(), &number.to_string(), &[&words[..], &more[..]].concat())
    };
    let reach = |number: usize| Client::reach(clients[number], Duration::from_secs(6));
    let serves = |number: usize| {
        within(20, "it serves", || {
            (0..16).all(|key| {
                let set = reach(number).and_then(|mut client| {
                    client.call(&["SET", &format!("k{key}"), &number.to_string()])
                });
                set.is_ok_and(|output| output == Value::ok())
            })
        });
    };
    let addresses = || {
        let nodes = admin_json(&format!("http://127.0.0.1:{}", https[0]), None, &["nodes"]);
        nodes
            .as_array()
            .expect("a list")
            .iter()
            .map(|node| node["address"].to_string().replace('"', ""))
            .collect::<BTreeSet<_>>()
    };
    let one = start(0, &v6(6), &v6(6), &v6(6));
    let two = start(1, &v6(6), &v4(7), &name(7));
    let three = start(2, &v6(6), &v6(8), &v6(8));
    (0..3).for_each(serves);
    assert_eq!(addresses(), [v6(6), name(7), v6(8)].into());
    // A process that is not a meta restarts at another address, alone.
    drop(three);
    let three = start(2, &v6(6), &v4(9), &name(9));
    serves(2);
    within(10, "its new address is known", || addresses() == [v6(6), name(7), name(9)].into());
    // It is needed for the majority now.
    drop(two);
    serves(0);
    for key in 0..16 {
        assert_eq!(reach(2).expect("it serves").run(&format!("GET k{key}")), Value::bulk("0"));
    }
    // A meta's address changes in the configuration of all processes.
    drop((one, three));
    let _all = [
        start(0, &name(10), &v4(10), &name(10)),
        start(1, &name(10), &v6(7), &v6(7)),
        start(2, &name(10), &v4(9), &name(9)),
    ];
    serves(2);
    within(10, "all are there", || addresses() == [name(10), v6(7), name(9)].into());
    assert_eq!(reach(1).expect("it serves").run("GET k0"), Value::bulk("2"));
}

/// Three consecutive free ports.
fn three_ports() -> u16 {
    let is_free = |port: &u16| {
        (1..3).all(|next| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port + next)).is_ok())
    };
    (0..100)
        .flat_map(|_| free_ports(1))
        .find(|port| *port < u16::MAX - 2 && is_free(port))
        .expect("some are free")
}

/// `deploy/cluster.sh`; stops its cluster on drop.
struct Script {
    dir: tempfile::TempDir,
    ports: [u16; 3],
}

impl Script {
    fn run(&self, what: &str) -> std::process::Output {
        let mut command =
            Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/cluster.sh"));
        command
            .arg(what)
            .arg(binary())
            .env("DATA", self.dir.path())
            .env("ARGS", "--set raft_log.segment_size=1MiB");
        for (name, port) in ["PORT", "HTTP_PORT", "CLUSTER_PORT"].iter().zip(self.ports) {
            command.env(name, port.to_string());
        }
        command.output().expect("the script starts")
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.run("stop");
    }
}

#[test]
fn make_cluster_is_usable_in_ten_seconds() {
    let script = Script {
        dir: tempfile::tempdir().expect("a directory for the test"),
        ports: [(); 3].map(|()| three_ports()),
    };
    for start in 0..2 {
        let began = Instant::now();
        let output = script.run("start");
        assert!(output.status.success(), "{output:?}");
        for node in 0..3 {
            let mut client = Client::connect(script.ports[0] + node).expect("it serves");
            assert_eq!(client.run("INCR starts"), Value::Int(start * 3 + i64::from(node) + 1));
        }
        println!("usable after {:.1?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let output = script.run("status");
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("db0"),
            "{output:?}"
        );
        assert!(script.run("stop").status.success());
    }
}

/// A meta that has lost its votes could take part in contradicting decisions: a table
/// would vanish, and its ids would be given again.
#[test]
fn a_meta_with_a_lost_directory_rejoins_after_release_only() {
    let mut cluster = Cluster::builder().partitions(1).start();
    let ask = |cluster: &Cluster, number: usize, words: &[&str]| {
        bridle_with(Some(SECRET), &[&["admin", "--url", &cluster.url(number)], words].concat())
    };
    let admin = |cluster: &Cluster, words: &[&str]| ask(cluster, 0, words);
    cluster.kill(1);
    let output = admin(&cluster, &["create", "books", "--partitions", "2", "--replicas", "1"]);
    assert!(output.success, "{output:?}");
    cluster.kill(0);
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.data(2)).expect("its directory");
    // The second meta knows the cluster, but not the table. It and the third must not
    // decide anything.
    cluster.launch(1);
    cluster.launch(2);
    std::thread::sleep(Duration::from_secs(4));
    assert!(
        [1, 2].iter().all(|number| !ask(&cluster, *number, &["tables"]).success),
        "there is no meta leader"
    );
    cluster.launch(0);
    cluster.wait_until_ended(2);
    let why = cluster.output(2);
    assert!(
        why.contains("meta 3 belongs to server") && why.contains("bridle admin release 3"),
        "{why}"
    );
    let serves = |cluster: &Cluster| admin(cluster, &["tables"]);
    within(20, "the table is there", || serves(&cluster).out.contains("books"));
    within(20, "it is released", || admin(&cluster, &["release", "3"]).success);
    cluster.launch(2);
    within(20, "it is a meta again", || ask(&cluster, 2, &["tables"]).out.contains("books"));
    within(20, "it follows", || {
        let nodes = admin_json(&cluster.url(0), Some(SECRET), &["nodes"]);
        nodes
            .as_array()
            .is_some_and(|nodes| nodes.iter().filter(|node| node["state"] == "up").count() == 3)
    });
    assert!(cluster.runs(2));
}
