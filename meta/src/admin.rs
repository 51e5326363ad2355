//! The admin API: HTTP and JSON, for `bridle admin` and anybody's scripts.
//!
//! | request                                           | body          | answer                   |
//! |---------------------------------------------------|---------------|--------------------------|
//! | `GET /v1/status`                                  |               | [`NodeStatus`]           |
//! | `GET /v1/cluster`                                 |               | [`ClusterStatus`]        |
//! | `GET /v1/nodes`                                   |               | [`ServerStatus`]s        |
//! | `DELETE /v1/nodes/{id}`                           |               | 204 (1)                  |
//! | `DELETE /v1/metas/{index}`                        |               | 204 (2)                  |
//! | `GET /v1/tables`                                  |               | [`TableStatus`]s         |
//! | `POST /v1/tables`                                 | [`NewTable`]  | 201, [`TableStatus`]     |
//! | `GET /v1/tables/{name}`                           |               | [`TableStatus`]          |
//! | `DELETE /v1/tables/{name}`                        |               | 202, [`TableStatus`] (3) |
//! | `GET /v1/tables/{name}/partitions`                |               | [`PartitionStatus`]s     |
//! | `PUT /v1/tables/{name}/partitions/{index}/leader` | [`NewLeader`] | [`PartitionStatus`] (4)  |
//! | `GET /v1/tables/{name}/envs`                      |               | object of env to value   |
//! | `GET /v1/tables/{name}/envs/{key}`                |               | [`EnvValue`]             |
//! | `PUT /v1/tables/{name}/envs/{key}`                | [`EnvValue`]  | object of env to value   |
//! | `DELETE /v1/tables/{name}/envs/{key}`             |               | object of env to value   |
//! | `POST /v1/tables/{name}/compaction`               |               | [`CompactionStatus`] (5) |
//! | `GET /v1/tables/{name}/compaction`                |               | [`CompactionStatus`]     |
//!
//! (1) Forgets a server that is down and holds nothing; it stays out. (2) The server of
//! this meta index has lost its directory: another may take the index. (3) The partitions
//! are destroyed in the background. (4) Answered once the new leader leads. (5) Status
//! 202; it goes on in the background, on all replicas.
//!
//! Any meta may be asked: one that does not lead has the one that does answer
//! (`GET /v1/status` excepted).
//!
//! A refusal is answered with 4xx and `{"error": "why"}`: 400 makes no sense, 401
//! password wanted, 403 comes from a web page, 404 no such thing, 409 exists already; 5xx
//! with the same body is trouble: 503 not now (try again), 500 a fault or an unknown
//! outcome.
//!
//! When the server has a password, or the cluster a secret, each request carries one of
//! them: as `Authorization: Bearer <password>`, its bytes as they are, or, for any bytes
//! at all, as `Authorization: Basic <base64 of ":" and the password>`
//! (`curl -u :password`). A cluster whose members know each other by certificate only
//! can't be administered until it has one of the two. Where there is neither, only who is
//! on the same machine is let in, as by Redis's protected mode, unless that is off.
//!
//! # Invariants
//! - Nothing is answered without the password, when there is one (`tests/admin.rs`,
//!   `a_password_guards_everything`).
//! - A web page in the operator's browser can change nothing: requests with an `Origin`
//!   are refused (`tests/admin.rs`, `web_pages_are_refused`).

mod types;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cluster::Table;
use cluster::meta_protocol::ServerStats;
use cluster::{PartitionId, ServerId};
pub use types::*;

use crate::envs;
use crate::error::MetaError;
use crate::image::MetadataImage;
use crate::meta::{Meta, MetaMode};
use crate::state::{Refusal, TablePhase, TableRecord};

/// Answer to a request without password or secret.
const PASSWORD_REQUIRED: &str = concat!(
    "the server's password or the cluster's secret is wanted (Authorization: Bearer ",
    "<password>; bridle admin --password-file); a cluster that has only certificates must ",
    "be given one of them to be administered, and a server that has neither lets in only ",
    "who is on its own machine, while protected mode is on",
);

/// The process that the API is part of.
pub trait HostProcess: Send + Sync + 'static {
    /// True if this password or secret (`None`: none was sent) opens the API to a request
    /// from this address (`None`: not known). Compares in constant time.
    fn authorised(&self, from: Option<IpAddr>, password: Option<&[u8]>) -> bool;
    /// Status of the node.
    fn status(&self) -> NodeStatus;
    /// The node's own figures. Asked of the only server, standalone; others report them.
    fn server_figures(&self) -> ServerStats;
    /// Usage of a table here. Called standalone only.
    fn figures(&self, table: &Table) -> TableUsage;
    /// Starts a compaction of the table, unless one is running; how it stands. Asked of
    /// the only server, standalone.
    fn compact(&self, table: &Arc<Table>) -> CompactionStatus;
    /// Progress of the table's last compaction. Called standalone only.
    fn compaction(&self, table: &Table) -> CompactionStatus;
}

/// A refusal or failure as an answer.
#[derive(Debug)]
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<MetaError> for ApiError {
    fn from(error: MetaError) -> Self {
        let status = match &error {
            MetaError::Refused(
                Refusal::NoTable(_)
                | Refusal::NoServer(_)
                | Refusal::NoMetaIndex(_)
                | Refusal::NoPartition(_),
            ) => StatusCode::NOT_FOUND,
            MetaError::Refused(
                Refusal::Exists(_)
                | Refusal::Reserved(_)
                | Refusal::Alive(_)
                | Refusal::HoldsReplicas { .. },
            ) => StatusCode::CONFLICT,
            MetaError::Refused(Refusal::NotEnoughServers(_)) => StatusCode::SERVICE_UNAVAILABLE,
            MetaError::Refused(_) => StatusCode::BAD_REQUEST,
            MetaError::NotLeading { .. } | MetaError::NotNow(_) | MetaError::DiskFull(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // It was begun: to try again would be to ask for something else.
            MetaError::Unknown(_) | MetaError::NotYet(_) | MetaError::Fault(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        ApiError(status, error.to_string())
    }
}

impl From<envs::EnvError> for ApiError {
    fn from(error: envs::EnvError) -> Self {
        ApiError(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        ApiError(rejection.status(), rejection.body_text())
    }
}

/// The largest body of a request, bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Context of the handlers.
#[derive(Clone)]
struct Api {
    meta: Arc<Meta>,
    local: Arc<dyn HostProcess>,
}

/// The admin API, everything under `/v1`.
pub fn router(meta: Arc<Meta>, local: Arc<dyn HostProcess>) -> Router {
    let api = Api { meta, local };
    routes().layer(middleware::from_fn_with_state(api.clone(), guard)).with_state(api)
}

/// The same for requests that another meta has let in.
pub(crate) fn unguarded_router(meta: Arc<Meta>, local: Arc<dyn HostProcess>) -> Router {
    routes().with_state(Api { meta, local })
}

fn routes() -> Router<Api> {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/cluster", get(cluster_status))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{id}", delete(remove_node))
        .route("/v1/metas/{index}", delete(release_meta_index))
        .route("/v1/tables", get(list).post(create))
        .route("/v1/tables/{name}", get(one).delete(drop_table))
        .route("/v1/tables/{name}/partitions", get(partitions))
        .route("/v1/tables/{name}/partitions/{index}/leader", put(transfer))
        .route("/v1/tables/{name}/envs", get(all_envs))
        .route("/v1/tables/{name}/envs/{key}", get(one_env).put(set_env).delete(delete_env))
        .route("/v1/tables/{name}/compaction", get(compaction).post(compact))
        .route("/v1/{*unknown}", axum::routing::any(unknown));
    routes.method_not_allowed_fallback(wrong_method)
}

/// The password in an `Authorization` header; with [`authorization`], any that there is.
fn password(value: &[u8]) -> Option<Vec<u8>> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, sent) = (&value[..at], &value[at + 1..]);
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        return Some(sent.to_vec());
    }
    // There is one user, and nobody need name it.
    let basic =
        BASE64_STANDARD.decode(sent).ok().filter(|_| scheme.eq_ignore_ascii_case(b"Basic"))?;
    [&b":"[..], b"default:"].iter().find_map(|user| basic.strip_prefix(*user)).map(<[u8]>::to_vec)
}

/// The `Authorization` header for a password of any bytes.
pub fn authorization(password: &[u8]) -> String {
    format!("Basic {}", BASE64_STANDARD.encode([b":", password].concat()))
}

/// Lets only those in who know the password, and no web pages. Where a request comes from
/// its [`ConnectInfo`] tells.
///
/// # Errors
/// The answer to whoever is not let in.
#[allow(clippy::result_large_err, reason = "it is the answer, and made once")]
pub fn authorize(request: &Request, local: &dyn HostProcess) -> Result<(), Response> {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError(
            StatusCode::FORBIDDEN,
            "requests from web pages are not served".into(),
        )
        .into_response());
    }
    let password = headers.get(header::AUTHORIZATION).and_then(|value| password(value.as_bytes()));
    let from =
        request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| from.ip());
    if !local.authorised(from, password.as_deref()) {
        let failed = ApiError(StatusCode::UNAUTHORIZED, PASSWORD_REQUIRED.into());
        return Err(([(header::WWW_AUTHENTICATE, "Bearer")], failed).into_response());
    }
    Ok(())
}

/// Has those in who may be, and passes requests on to the meta that leads.
async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Err(refused) = authorize(&request, &*api.local) {
        return refused;
    }
    if request.uri().path() == "/v1/status" {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = match axum::body::to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => {
            return ApiError(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()).into_response();
        }
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    match api.meta.forward(parts.method.as_str(), path, body.clone()).await {
        None => next.run(Request::from_parts(parts, body.into())).await,
        Some(Ok((status, body))) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Some(Err(error)) => ApiError::from(error).into_response(),
    }
}

impl Api {
    fn image(&self) -> Result<Arc<MetadataImage>, ApiError> {
        Ok(self.meta.image()?)
    }

    fn record(&self, image: &MetadataImage, name: &str) -> Result<TableRecord, ApiError> {
        // While one is being dropped, another may have its name: the one that serves is
        // meant.
        let dropping = || image.state.tables.values().find(|record| record.table.name == name);
        let record = image.state.named(name).or_else(dropping);
        record
            .cloned()
            .ok_or_else(|| ApiError::from(MetaError::Refused(Refusal::NoTable(name.to_owned()))))
    }

    fn serving(&self, name: &str) -> Result<Arc<Table>, ApiError> {
        let record = self.record(&*self.image()?, name)?;
        match record.status {
            TablePhase::Ready | TablePhase::Creating => Ok(record.table),
            TablePhase::Dropping => {
                Err(ApiError::from(MetaError::Refused(Refusal::NoTable(name.to_owned()))))
            }
        }
    }

    fn is_alone(&self) -> bool {
        matches!(self.meta.options.mode, MetaMode::Standalone(_))
    }

    fn describe(&self, image: &MetadataImage, record: &TableRecord) -> TableStatus {
        let table = &record.table;
        let figures = if self.is_alone() {
            self.local.figures(table)
        } else {
            self.meta.table_stats(image, table)
        };
        TableStatus {
            id: table.id.0,
            name: table.name.clone(),
            number: table.number,
            partitions: table.partitions,
            replicas: table.replicas,
            status: self.meta.status_name(record.status, table).to_owned(),
            created_at_ms: record.created_at_ms,
            envs: table.envs.clone(),
            figures,
        }
    }
}

async fn status(State(api): State<Api>) -> Json<NodeStatus> {
    Json(api.local.status())
}

async fn cluster_status(State(api): State<Api>) -> Result<Json<ClusterStatus>, ApiError> {
    Ok(Json(api.meta.cluster_status(&*api.image()?)))
}

async fn nodes(State(api): State<Api>) -> Result<Json<Vec<ServerStatus>>, ApiError> {
    if api.is_alone() {
        api.meta.record_local_stats(api.local.server_figures());
    }
    Ok(Json(api.meta.server_statuses(&*api.image()?)))
}

fn server_id(text: &str) -> Result<ServerId, ApiError> {
    let bad = |_| {
        ApiError(
            StatusCode::BAD_REQUEST,
            format!("'{text}' is not a server's id: these are 16 hex digits"),
        )
    };
    u64::from_str_radix(text, 16).map(ServerId).map_err(bad)
}

async fn remove_node(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.meta.remove_server(server_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn release_meta_index(
    State(api): State<Api>,
    Path(index): Path<u32>,
) -> Result<StatusCode, ApiError> {
    api.meta.release_meta_index(index).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(State(api): State<Api>) -> Result<Json<Vec<TableStatus>>, ApiError> {
    let image = api.image()?;
    Ok(Json(image.state.tables.values().map(|record| api.describe(&image, record)).collect()))
}

async fn create(
    State(api): State<Api>,
    body: Result<Json<NewTable>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(new) = body?;
    api.meta.create(&new.name, new.partitions, new.replicas, new.envs).await?;
    let image = api.image()?;
    Ok((StatusCode::CREATED, Json(api.describe(&image, &api.record(&image, &new.name)?)))
        .into_response())
}

async fn one(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<TableStatus>, ApiError> {
    let image = api.image()?;
    Ok(Json(api.describe(&image, &api.record(&image, &name)?)))
}

async fn drop_table(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let image = api.image()?;
    let record = api.record(&image, &name)?;
    let described = TableStatus { status: "dropping".to_owned(), ..api.describe(&image, &record) };
    api.meta.drop_table(&name).await?;
    Ok((StatusCode::ACCEPTED, Json(described)).into_response())
}

async fn partitions(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Vec<PartitionStatus>>, ApiError> {
    let table = api.serving(&name)?;
    Ok(Json(api.meta.partition_statuses(&*api.image()?, &table)))
}

async fn transfer(
    State(api): State<Api>,
    Path((name, index)): Path<(String, u32)>,
    body: Result<Json<NewLeader>, JsonRejection>,
) -> Result<Json<PartitionStatus>, ApiError> {
    let Json(new) = body?;
    let table = api.serving(&name)?;
    api.meta.transfer(PartitionId { table: table.id, index }, server_id(&new.to)?).await?;
    let partitions = api.meta.partition_statuses(&*api.image()?, &table);
    let gone = || ApiError::from(MetaError::Refused(Refusal::NoPartition(index)));
    partitions.into_iter().find(|partition| partition.index == index).map(Json).ok_or_else(gone)
}

async fn all_envs(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<BTreeMap<String, String>>, ApiError> {
    Ok(Json(api.serving(&name)?.envs.clone()))
}

async fn one_env(
    State(api): State<Api>,
    Path((name, key)): Path<(String, String)>,
) -> Result<Json<EnvValue>, ApiError> {
    let table = api.serving(&name)?;
    envs::find(&key)?;
    match table.envs.get(&key) {
        Some(value) => Ok(Json(EnvValue { value: value.clone() })),
        None => {
            Err(ApiError(StatusCode::NOT_FOUND, format!("'{key}' is not set for table '{name}'")))
        }
    }
}

async fn set_env(
    State(api): State<Api>,
    Path((name, key)): Path<(String, String)>,
    body: Result<Json<EnvValue>, JsonRejection>,
) -> Result<Json<BTreeMap<String, String>>, ApiError> {
    let Json(EnvValue { value }) = body?;
    Ok(Json(api.meta.set_env(&name, &key, Some(&value)).await?.envs.clone()))
}

async fn delete_env(
    State(api): State<Api>,
    Path((name, key)): Path<(String, String)>,
) -> Result<Json<BTreeMap<String, String>>, ApiError> {
    Ok(Json(api.meta.set_env(&name, &key, None).await?.envs.clone()))
}

async fn compact(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let table = api.serving(&name)?;
    if api.is_alone() {
        return Ok((StatusCode::ACCEPTED, Json(api.local.compact(&table))).into_response());
    }
    api.meta.compact(&table)?;
    Ok((StatusCode::ACCEPTED, Json(api.meta.compaction(&*api.image()?, &table))).into_response())
}

async fn compaction(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<CompactionStatus>, ApiError> {
    let table = api.serving(&name)?;
    if api.is_alone() {
        return Ok(Json(api.local.compaction(&table)));
    }
    Ok(Json(api.meta.compaction(&*api.image()?, &table)))
}

async fn unknown() -> ApiError {
    ApiError(
        StatusCode::NOT_FOUND,
        "there is nothing here; the API is described in meta/src/admin.rs".into(),
    )
}

async fn wrong_method() -> ApiError {
    ApiError(
        StatusCode::METHOD_NOT_ALLOWED,
        "this can't be done here; the API is described in meta/src/admin.rs".into(),
    )
}
