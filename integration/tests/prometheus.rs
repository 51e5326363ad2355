//! A real Prometheus scrapes the server; promtool accepts the page; every metric is
//! documented.

mod external;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use external::{free_port, run};
use integration::{Server, within};
use serde_json::Value as Json;

/// A Prometheus for the test.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn scraping(server: &Server) -> Prometheus {
        let (dir, port) = (tempfile::tempdir().expect("a directory"), free_port());
        let config = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\nscrape_configs:\n  - \
             job_name: bridle\n    static_configs: [{{ targets: ['127.0.0.1:{}'] }}]\n",
            server.http_port
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("write its configuration");
        let mut command = Command::new("prometheus");
        command.args([
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--log.level=error",
        ]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).current_dir(dir.path());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("prometheus is installed (make setup-test)");
        Prometheus { child, port, _dir: dir }
    }

    /// The value of an expression; `None` when it has none yet.
    fn ask(&self, expression: &str) -> Option<f64> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let answer: Json =
            ureq::get(url).query("query", expression).call().ok()?.body_mut().read_json().ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that has counted each kind of event.
fn busy_server() -> Server {
    let server = Server::start();
    let mut client = server.client();
    for line in
        ["SET a 1", "GET a", "HSET h f v", "HGET a f", "NOSUCH", "SET", "EXPIRE a 100", "AUTH x"]
    {
        client.run(line);
    }
    server
}

/// The metrics of a page that have a help text: name and kind.
fn metrics(page: &str) -> BTreeMap<&str, &str> {
    let words = |line: &'_ str, mark: &str| line.strip_prefix(mark).map(str::len);
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let helped: Vec<&str> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# HELP ")?.split_once(' ')?.0))
        .collect();
    assert!(page.lines().all(|line| !line.starts_with('#')
        || words(line, "# TYPE ").or(words(line, "# HELP ")).is_some()));
    kinds.filter(|(name, _)| helped.contains(name)).collect()
}

#[test]
fn prometheus_scrapes_the_server_and_sees_counters_move() {
    let server = busy_server();
    let prometheus = Prometheus::scraping(&server);
    within(60, "the server is up in Prometheus", || {
        prometheus.ask("up{job=\"bridle\"}") == Some(1.0)
    });
    within(20, "the first SET is counted", || {
        prometheus.ask("bridle_commands_total{cmd=\"set\"}") == Some(1.0)
    });
    let mut client = server.client();
    (0..100).for_each(|_| drop(client.run("SET a 1")));
    within(20, "a hundred more are counted", || {
        prometheus.ask("bridle_commands_total{cmd=\"set\"}") == Some(101.0)
    });
    for (what, expression) in [
        ("rows", "bridle_table_rows{table=\"db0\"} == 2"),
        (
            "a latency",
            "histogram_quantile(0.99, sum by (le) (bridle_command_seconds_bucket{cmd=\"set\"})) > \
             0",
        ),
        ("fsyncs", "bridle_log_fsyncs_total > 0"),
        ("memory", "process_resident_memory_bytes > 1e6"),
        ("errors", "bridle_command_errors_total{cmd=\"hget\",error=\"WRONGTYPE\"} == 1"),
        ("readiness", "bridle_ready == 1"),
    ] {
        within(20, what, || prometheus.ask(expression).is_some());
    }
}

#[test]
fn promtool_has_nothing_to_say_about_the_page() {
    let (status, page) = busy_server().page("/metrics");
    assert_eq!(status, 200);
    let ended = run("promtool", &["check", "metrics"], &page);
    assert!(ended.success && ended.output.trim().is_empty(), "{}", ended.output);
}

#[test]
fn every_metric_is_described_and_exported() {
    let (_, page) = busy_server().page("/metrics");
    let described = metrics(&page);
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().expect("a line has a beginning");
        let whole = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| described.get_key_value(name.strip_suffix(end)?));
        let kind = whole.map(|(_, kind)| *kind);
        assert!(
            described.contains_key(name) || kind == Some("histogram"),
            "{name} has no HELP and TYPE, or is a summary ({kind:?})"
        );
        assert!(
            !name.contains("seconds_bytes")
                && (name.starts_with("bridle_") || name.starts_with("process_")),
            "{name}"
        );
    }
    for metric in proxy::metrics::descriptors() {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        assert_eq!(
            described.get(metric.name),
            Some(&&*kind),
            "{} is documented otherwise",
            metric.name
        );
    }
    for name in ["bridle_log_fsync_seconds", "bridle_batch_bytes", "bridle_batch_requests"] {
        assert_eq!(described.get(name), Some(&"histogram"), "{name}");
    }
}

#[test]
fn the_dashboard_asks_only_for_metrics_that_there_are() {
    let (_, page) = busy_server().page("/metrics");
    let described = metrics(&page);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana");
    let dashboards = integration::files(folder.as_ref());
    let texts: Vec<String> = dashboards
        .iter()
        .map(|file| std::fs::read_to_string(file).expect("a dashboard is text"))
        .collect();
    let asked: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| {
            ["_total", "_seconds", "_bytes", "_bucket", "_rows", "_sum", "_count"]
                .iter()
                .any(|end| word.ends_with(end))
        })
        .filter(|word| word.starts_with("bridle_") || word.starts_with("process_"))
        .collect();
    assert!(asked.len() > 5, "the dashboards in {folder} ask for {asked:?}");
    for word in asked {
        let whole = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| word.strip_suffix(end))
            .unwrap_or(word);
        assert!(
            described.contains_key(word) || described.contains_key(whole),
            "a dashboard asks for {word}, which is not exported"
        );
    }
}

#[test]
fn health_says_live_and_ready_until_the_stop() {
    let mut server = Server::start();
    assert_eq!(server.page("/health/live"), (200, "ok\n".to_owned()));
    assert_eq!(server.page("/health/ready"), (200, "ok\n".to_owned()));
    assert_eq!(server.page("/nosuch").0, 404);
    assert!(server.stop().success());
    assert!(
        std::net::TcpStream::connect(("127.0.0.1", server.http_port)).is_err(),
        "the port outlives the server"
    );
}
