//! The admin API: HTTP and JSON, for `bridle admin` and anybody's scripts.
//!
//! | request                                 | body                             | answer |
//! |-----------------------------------------|----------------------------------|--------|
//! | `GET /v1/status`                        |                                  | [`NodeStatus`] |
//! | `GET /v1/tables`                        |                                  | list of [`TableStatus`] |
//! | `POST /v1/tables`                       | [`NewTable`]                     | 201, [`TableStatus`] |
//! | `GET /v1/tables/{name}`                 |                                  | [`TableStatus`] |
//! | `DELETE /v1/tables/{name}`              |                                  | 202, [`TableStatus`]; the partitions are destroyed in the background |
//! | `GET /v1/tables/{name}/envs`            |                                  | object of env to value |
//! | `GET /v1/tables/{name}/envs/{key}`      |                                  | [`EnvValue`] |
//! | `PUT /v1/tables/{name}/envs/{key}`      | [`EnvValue`]                     | object of env to value |
//! | `DELETE /v1/tables/{name}/envs/{key}`   |                                  | object of env to value |
//! | `POST /v1/tables/{name}/compaction`     |                                  | 202, [`Compaction`]; goes on in the background |
//! | `GET /v1/tables/{name}/compaction`      |                                  | [`Compaction`] |
//!
//! What is refused is answered with 4xx and `{"error": "why"}`: 400 makes no sense, 401 password wanted, 403 comes from a web page, 404 no such
//! thing, 409 exists already; 5xx with the same body is trouble: 503 not now (try again), 500 a fault or an unknown outcome.
//!
//! When the server has a password, each request carries it as `Authorization: Bearer <password>`.
//!
//! # Invariants
//! - Nothing is answered without the password, when there is one (`tests/admin.rs`, `a_password_guards_everything`).
//! - A web page in the operator's browser can change nothing: requests with an `Origin` are refused (`tests/admin.rs`, `web_pages_are_refused`).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cluster::Table;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Meta, MetaError};
use crate::envs;
use crate::state::{Record, Refusal, Status};

/// A table to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// How many partitions; as configured when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Envs from the start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
}

/// An env's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvValue {
    /// As text, whatever it means.
    pub value: String,
}

/// What a table is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Never reused.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// `ready`, `opening` or `dropping`.
    pub status: String,
    /// When it was created, ms since the epoch.
    pub created_at_ms: u64,
    /// Its envs.
    pub envs: BTreeMap<String, String>,
    /// What it holds.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a table holds on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Rows, expired ones that the expiry cycle has not reached yet included.
    pub rows: u64,
    /// Rows with an expiry.
    pub expiring: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory, not yet flushed.
    pub memtable_bytes: u64,
    /// Why a partition does not serve, by index; empty when all is well.
    #[serde(deserialize_with = "by_index")]
    pub faults: BTreeMap<u32, String>,
}

/// JSON's keys are texts, and inside a flattened struct serde leaves it to us to make numbers of them.
fn by_index<'de, D: serde::Deserializer<'de>>(faults: D) -> Result<BTreeMap<u32, String>, D::Error> {
    let faults = BTreeMap::<String, String>::deserialize(faults)?;
    faults.into_iter().map(|(index, why)| Ok((index.parse().map_err(serde::de::Error::custom)?, why))).collect()
}

/// A manual compaction of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// `none` (never asked for since the start), `running`, `done` or `failed`.
    pub status: String,
    /// Partitions that are done.
    pub partitions_done: u32,
    /// Partitions in all.
    pub partitions: u32,
    /// When it was started, ms since the epoch; 0 when never.
    pub started_at_ms: u64,
    /// How long it took, or has taken so far.
    pub elapsed_ms: u64,
    /// Bytes on disk when it started.
    pub disk_bytes_before: u64,
    /// Bytes on disk now.
    pub disk_bytes: u64,
    /// What went wrong, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a node is and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Bridle's version.
    pub version: String,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's id, 16 hex digits.
    pub cluster_id: String,
    /// This node's id in it.
    pub node_id: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether clients are served.
    pub ready: bool,
    /// `always`, `interval` or `os`.
    pub durability: String,
    /// Where Redis clients are served.
    pub addresses: Vec<String>,
    /// Connected clients.
    pub clients: u64,
    /// Tables that serve.
    pub tables: u32,
    /// Partitions of these.
    pub partitions: u32,
    /// Bytes of rows on disk.
    pub disk_bytes: u64,
    /// Bytes of the Raft log.
    pub log_bytes: u64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// What is wrong, in sentences; empty when all is well.
    pub faults: Vec<String>,
}

/// What the API asks of the process that it is part of.
pub trait Local: Send + Sync + 'static {
    /// Whether this password (`None`: none was sent) opens the API. Compares in constant time.
    fn authorised(&self, password: Option<&[u8]>) -> bool;
    /// How the node is.
    fn status(&self) -> NodeStatus;
    /// What a table holds here.
    fn figures(&self, table: &Table) -> Figures;
    /// Starts a compaction of the table, unless one is running; how it stands.
    fn compact(&self, table: &Arc<Table>) -> Compaction;
    /// How the table's last compaction stands.
    fn compaction(&self, table: &Table) -> Compaction;
}

/// A refusal or failure as an answer.
#[derive(Debug)]
struct Failed(StatusCode, String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<MetaError> for Failed {
    fn from(error: MetaError) -> Self {
        let status = match &error {
            MetaError::Refused(Refusal::NoTable(_)) => StatusCode::NOT_FOUND,
            MetaError::Refused(Refusal::Exists(_)) => StatusCode::CONFLICT,
            MetaError::Refused(_) => StatusCode::BAD_REQUEST,
            MetaError::NotNow(_) | MetaError::NotYet(_) | MetaError::DiskFull(_) => StatusCode::SERVICE_UNAVAILABLE,
            MetaError::Unknown(_) | MetaError::Fault(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failed(status, error.to_string())
    }
}

impl From<envs::BadEnv> for Failed {
    fn from(error: envs::BadEnv) -> Self {
        Failed(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Self {
        Failed(rejection.status(), rejection.body_text())
    }
}

/// What handlers need.
#[derive(Clone)]
struct Api {
    meta: Arc<Meta>,
    local: Arc<dyn Local>,
}

/// The admin API, everything under `/v1`.
pub fn router(meta: Arc<Meta>, local: Arc<dyn Local>) -> Router {
    let api = Api { meta, local };
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tables", get(list).post(create))
        .route("/v1/tables/{name}", get(one).delete(drop_table))
        .route("/v1/tables/{name}/envs", get(all_envs))
        .route("/v1/tables/{name}/envs/{key}", get(one_env).put(set_env).delete(delete_env))
        .route("/v1/tables/{name}/compaction", get(compaction).post(compact))
        .route("/v1/{*unknown}", axum::routing::any(unknown));
    routes.method_not_allowed_fallback(wrong_method).layer(middleware::from_fn_with_state(api.clone(), guard)).with_state(api)
}

/// Lets only those in who know the password, and no web pages.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return Failed(StatusCode::FORBIDDEN, "requests from web pages are not served".into()).into_response();
    }
    let sent = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let password = sent.and_then(|value| value.split_at_checked(7)).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
    if !api.local.authorised(password.map(|(_, password)| password)) {
        let failed = Failed(StatusCode::UNAUTHORIZED, "a password is wanted: Authorization: Bearer <password>".into());
        return ([(header::WWW_AUTHENTICATE, "Bearer")], failed).into_response();
    }
    next.run(request).await
}

impl Api {
    fn record(&self, name: &str) -> Result<Record, Failed> {
        let records = self.meta.records();
        // While one is being dropped, another may have its name: the one that serves is meant.
        let named = || records.iter().filter(|record| record.table.name == name);
        named()
            .find(|record| record.status == Status::Ready)
            .or_else(|| named().next())
            .cloned()
            .ok_or_else(|| Failed::from(MetaError::Refused(Refusal::NoTable(name.to_owned()))))
    }

    fn serving(&self, name: &str) -> Result<Arc<Table>, Failed> {
        let record = self.record(name)?;
        match record.status {
            Status::Ready => Ok(record.table),
            Status::Dropping => Err(Failed::from(MetaError::Refused(Refusal::NoTable(name.to_owned())))),
        }
    }

    fn describe(&self, record: &Record) -> TableStatus {
        let table = &record.table;
        let status = match record.status {
            Status::Dropping => "dropping",
            Status::Ready if self.meta.is_open(table.id) => "ready",
            Status::Ready => "opening",
        };
        TableStatus {
            id: table.id.0,
            name: table.name.clone(),
            partitions: table.partitions,
            status: status.to_owned(),
            created_at_ms: record.created_at_ms,
            envs: table.envs.clone(),
            figures: self.local.figures(table),
        }
    }
}

async fn status(State(api): State<Api>) -> Json<NodeStatus> {
    Json(api.local.status())
}

async fn list(State(api): State<Api>) -> Json<Vec<TableStatus>> {
    Json(api.meta.records().iter().map(|record| api.describe(record)).collect())
}

async fn create(State(api): State<Api>, body: Result<Json<NewTable>, JsonRejection>) -> Result<Response, Failed> {
    let Json(new) = body?;
    api.meta.create(&new.name, new.partitions, new.envs).await?;
    Ok((StatusCode::CREATED, Json(api.describe(&api.record(&new.name)?))).into_response())
}

async fn one(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<TableStatus>, Failed> {
    Ok(Json(api.describe(&api.record(&name)?)))
}

async fn drop_table(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Failed> {
    let record = api.record(&name)?;
    let described = TableStatus { status: "dropping".to_owned(), ..api.describe(&record) };
    api.meta.drop_table(&name).await?;
    Ok((StatusCode::ACCEPTED, Json(described)).into_response())
}

async fn all_envs(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<BTreeMap<String, String>>, Failed> {
    Ok(Json(api.serving(&name)?.envs.clone()))
}

async fn one_env(State(api): State<Api>, Path((name, key)): Path<(String, String)>) -> Result<Json<EnvValue>, Failed> {
    let table = api.serving(&name)?;
    envs::find(&key)?;
    match table.envs.get(&key) {
        Some(value) => Ok(Json(EnvValue { value: value.clone() })),
        None => Err(Failed(StatusCode::NOT_FOUND, format!("'{key}' is not set for table '{name}'"))),
    }
}

async fn set_env(
    State(api): State<Api>,
    Path((name, key)): Path<(String, String)>,
    body: Result<Json<EnvValue>, JsonRejection>,
) -> Result<Json<BTreeMap<String, String>>, Failed> {
    let Json(EnvValue { value }) = body?;
    Ok(Json(api.meta.set_env(&name, &key, Some(&value)).await?.envs.clone()))
}

async fn delete_env(State(api): State<Api>, Path((name, key)): Path<(String, String)>) -> Result<Json<BTreeMap<String, String>>, Failed> {
    Ok(Json(api.meta.set_env(&name, &key, None).await?.envs.clone()))
}

async fn compact(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Failed> {
    let table = api.serving(&name)?;
    Ok((StatusCode::ACCEPTED, Json(api.local.compact(&table))).into_response())
}

async fn compaction(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Compaction>, Failed> {
    let table = api.serving(&name)?;
    Ok(Json(api.local.compaction(&table)))
}

async fn unknown() -> Failed {
    Failed(StatusCode::NOT_FOUND, "there is nothing here; the API is described in meta/src/admin.rs".into())
}

async fn wrong_method() -> Failed {
    Failed(StatusCode::METHOD_NOT_ALLOWED, "this can't be done here; the API is described in meta/src/admin.rs".into())
}
