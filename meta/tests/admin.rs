//! The admin API as its clients see it: over a real socket.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use cluster::Table;
use meta::admin::{CompactionStatus, HostProcess, NodeStatus, TableUsage};
use serde_json::{Value, json};

mod kit;

struct Node {
    password: Option<&'static [u8]>,
}

impl HostProcess for Node {
    fn authorised(&self, _: Option<std::net::IpAddr>, password: Option<&[u8]>) -> bool {
        self.password.is_none() || self.password == password
    }
    fn status(&self) -> NodeStatus {
        NodeStatus {
            version: "1".into(),
            cluster: "c".into(),
            cluster_id: "0".into(),
            node_id: 1,
            uptime_seconds: 0,
            ready: true,
            durability: "always".into(),
            addresses: Vec::new(),
            clients: 0,
            tables: 0,
            partitions: 0,
            disk_bytes: 0,
            log_bytes: 0,
            memory_bytes: 0,
            faults: Vec::new(),
        }
    }
    fn server_figures(&self) -> cluster::meta_protocol::ServerStats {
        cluster::meta_protocol::ServerStats { disk_free_bytes: 7, ..Default::default() }
    }
    fn figures(&self, table: &Table) -> TableUsage {
        TableUsage { rows: u64::from(table.id.0) * 100, ..TableUsage::default() }
    }
    fn compact(&self, table: &Arc<Table>) -> CompactionStatus {
        CompactionStatus {
            status: "running".into(),
            partitions: table.partitions,
            ..CompactionStatus::default()
        }
    }
    fn compaction(&self, _: &Table) -> CompactionStatus {
        CompactionStatus { status: "none".into(), ..CompactionStatus::default() }
    }
}

/// A running API, and its address.
async fn api(dir: &std::path::Path, password: Option<&'static [u8]>) -> String {
    let (meta, log) = kit::open(dir).await;
    kit::follow(&meta);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = meta::admin::router(meta, Arc::new(Node { password }));
    tokio::spawn(async move {
        let _log = log;
        axum::serve(listener, router).await
    });
    url
}

/// Status and body of a request with headers.
async fn ask(
    method: &str,
    url: String,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> (u16, Value) {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = match body {
        Some(body) => {
            request.header("content-type", "application/json").body(body.to_string()).unwrap()
        }
        None => request.body(String::new()).unwrap(),
    };
    let answer = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .build()
            .into();
        let mut response = agent.run(request).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap_or(Value::Null))
    });
    answer.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_envs() {
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), None).await;
    let at = |path: &str| format!("{url}/v1{path}");
    assert_eq!(ask("GET", at("/tables"), &[], None).await, (200, json!([])));
    let (status, made) =
        ask("POST", at("/tables"), &[], Some(json!({"name": "a:b", "envs": {"default_ttl": "5"}})))
            .await;
    assert_eq!(
        (status, &made["id"], &made["status"], &made["partitions"], &made["rows"]),
        (201, &json!(1), &json!("ready"), &json!(3), &json!(100))
    );
    assert_eq!(
        ask("GET", at("/tables/a:b/envs"), &[], None).await,
        (200, json!({"default_ttl": "5"}))
    );
    assert_eq!(
        ask("PUT", at("/tables/a%3Ab/envs/default_ttl"), &[], Some(json!({"value": "7"}))).await,
        (200, json!({"default_ttl": "7"}))
    );
    assert_eq!(
        ask("GET", at("/tables/a:b/envs/default_ttl"), &[], None).await,
        (200, json!({"value": "7"}))
    );
    assert_eq!(
        ask("DELETE", at("/tables/a:b/envs/default_ttl"), &[], None).await,
        (200, json!({}))
    );
    assert_eq!(ask("GET", at("/tables/a:b/envs/default_ttl"), &[], None).await.0, 404);
    assert_eq!(ask("POST", at("/tables/a:b/compaction"), &[], None).await.0, 202);
    assert_eq!(ask("GET", at("/tables/a:b/compaction"), &[], None).await.1["status"], "none");
    let (status, dropped) = ask("DELETE", at("/tables/a:b"), &[], None).await;
    assert_eq!((status, &dropped["status"]), (202, &json!("dropping")));
    let (status, one) = ask("GET", at("/tables/a:b"), &[], None).await;
    assert_eq!((status, &one["status"]), (200, &json!("dropping")), "seen until it is destroyed");
    assert_eq!(ask("GET", at("/tables/a:b/envs"), &[], None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), None).await;
    ask("POST", format!("{url}/v1/tables"), &[], Some(json!({"name": "a"}))).await;
    let cases = [
        ("POST", "/tables", Some(json!({"name": "a"})), 409, "table 'a' exists"),
        ("POST", "/tables", Some(json!({"name": "16"})), 400, "a table's name is"),
        (
            "POST",
            "/tables",
            Some(json!({"name": "b", "partitions": 0})),
            400,
            "1 to 1024 partitions",
        ),
        ("POST", "/tables", Some(json!({"name": "b", "replicaz": 3})), 422, "unknown field"),
        (
            "POST",
            "/tables",
            Some(json!({"name": "b", "replicas": 3})),
            503,
            "3 replicas need 3 storage servers",
        ),
        ("POST", "/tables", Some(json!({"name": "b", "replicas": 9})), 400, "1 to 7 replicas"),
        ("GET", "/tables/b/partitions", None, 404, "no such table 'b'"),
        ("PUT", "/tables/a/partitions/9/leader", Some(json!({"to": "1"})), 404, "no partition 9"),
        ("PUT", "/tables/a/partitions/0/leader", Some(json!({"to": "2"})), 400, "holds no replica"),
        ("PUT", "/tables/a/partitions/0/leader", Some(json!({"to": "x"})), 400, "16 hex digits"),
        ("DELETE", "/nodes/1", None, 409, "is alive"),
        ("DELETE", "/nodes/2", None, 404, "no such server"),
        ("POST", "/tables", None, 415, "application/json"),
        ("GET", "/tables/b", None, 404, "no such table 'b'"),
        ("DELETE", "/tables/b", None, 404, "no such table 'b'"),
        ("PUT", "/tables/a/envs/x", Some(json!({"value": "1"})), 400, "no such env 'x'"),
        (
            "PUT",
            "/tables/a/envs/default_ttl",
            Some(json!({"value": "x"})),
            400,
            "is not a value of default_ttl",
        ),
        ("DELETE", "/tables/a/envs/x", None, 400, "no such env 'x'"),
        ("PATCH", "/tables/a", None, 405, "this can't be done here"),
        ("GET", "/no/such", None, 404, "there is nothing here"),
    ];
    for (method, path, body, status, why) in cases {
        let (got, answer) = ask(method, format!("{url}/v1{path}"), &[], body).await;
        let error =
            answer["error"].as_str().unwrap_or_else(|| panic!("{method} {path}: {got} {answer}"));
        assert!(got == status && error.contains(why), "{method} {path}: {got} {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_is_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), None).await;
    let at = |path: &str| format!("{url}/v1{path}");
    ask("POST", at("/tables"), &[], Some(json!({"name": "a"}))).await;
    let (status, cluster) = ask("GET", at("/cluster"), &[], None).await;
    assert_eq!(
        (status, &cluster["cluster_id"], &cluster["servers_up"]),
        (200, &json!("0000000000000007"), &json!(1))
    );
    assert_eq!(
        (&cluster["partitions"], &cluster["partitions_led"], &cluster["faults"]),
        (&json!(3), &json!(3), &json!([]))
    );
    let (_, nodes) = ask("GET", at("/nodes"), &[], None).await;
    assert_eq!(
        (&nodes[0]["id"], &nodes[0]["state"], &nodes[0]["leads"]),
        (&json!("0000000000000001"), &json!("up"), &json!(3))
    );
    let (_, partitions) = ask("GET", at("/tables/a/partitions"), &[], None).await;
    assert_eq!(
        (&partitions[2]["leader"], &partitions[2]["members"][0]["state"]),
        (&json!("0000000000000001"), &json!("running"))
    );
    assert_eq!(
        (&partitions[0]["slots"], &partitions[2]["slots"][1]),
        (&json!([0, 5461]), &json!(16383))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_guards_everything() {
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), Some(b"open sesame")).await;
    for path in ["/status", "/tables", "/no/such"] {
        for headers in [
            &[][..],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic open sesame")],
        ] {
            assert_eq!(
                ask("GET", format!("{url}/v1{path}"), headers, None).await.0,
                401,
                "{path} {headers:?}"
            );
        }
    }
    for scheme in ["Bearer", "bearer"] {
        let headers = [("authorization", &*format!("{scheme} open sesame"))];
        assert_eq!(ask("GET", format!("{url}/v1/status"), &headers, None).await.0, 200);
    }
    let basic = meta::admin::authorization(b"open sesame");
    for (authorization, status) in [
        (basic.as_str(), 200),
        // default:open sesame
        ("basic ZGVmYXVsdDpvcGVuIHNlc2FtZQ==", 200),
        // root:open sesame, open sesame
        ("Basic cm9vdDpvcGVuIHNlc2FtZQ==", 401),
        ("Basic b3BlbiBzZXNhbWU=", 401),
        ("Basic", 401),
    ] {
        assert_eq!(
            ask("GET", format!("{url}/v1/status"), &[("authorization", authorization)], None)
                .await
                .0,
            status,
            "{authorization}"
        );
    }
}

/// Bytes that no header may have as they are: control characters, blanks at the end,
/// anything but ASCII.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_may_have_any_bytes() {
    const PASSWORD: &[u8] = b" p\xc3\xa4ss\x01\t\x7fw\xff:rd ";
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), Some(PASSWORD)).await;
    let authorization = meta::admin::authorization(PASSWORD);
    assert_eq!(
        ask("GET", format!("{url}/v1/status"), &[("authorization", &authorization)], None).await.0,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_pages_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let url = api(dir.path(), None).await;
    let headers = [("origin", "http://evil.example")];
    assert_eq!(
        ask("POST", format!("{url}/v1/tables"), &headers, Some(json!({"name": "a"}))).await.0,
        403
    );
    assert_eq!(ask("GET", format!("{url}/v1/tables"), &[], None).await.1, json!([]));
}
