//! The HTTP client of `bridle admin`.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::Admin;
use crate::config::Secret;

/// Timeout of a request; opening many partitions takes a while.
const TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP 204: success without a body.
const NO_CONTENT: u16 = 204;

const SCHEME: &str = "http://";
/// Timeout of the probe of a port that did not answer HTTP.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks a URL and removes the slash at its end.
fn parse_url(given: &str) -> anyhow::Result<String> {
    let url = given.trim_end_matches('/');
    if url.starts_with("https://") {
        bail!("--url {given}: the HTTP port speaks plain HTTP, so the URL begins with {SCHEME}");
    }
    if !given.contains("://") {
        bail!("--url {given}: a URL begins with {SCHEME}; try --url {SCHEME}{url}");
    }
    let has_host = || {
        url.parse::<ureq::http::Uri>()
            .is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
    };
    if !url.starts_with(SCHEME) || !has_host() {
        bail!("--url {given}: not of the form {SCHEME}host:port");
    }
    Ok(url.to_owned())
}

/// Result of probing a port that did not answer HTTP.
enum PortProbe {
    /// The connection failed.
    Nothing(std::io::Error),
    /// A port for Redis clients.
    Redis,
    /// Something else.
    Something,
}

fn probe_port(place: &str) -> PortProbe {
    let place = if place.rsplit(']').next().is_some_and(|rest| rest.contains(':')) {
        place.to_owned()
    } else {
        format!("{place}:80")
    };
    let said = TcpStream::connect(&place).map(|mut stream| -> std::io::Result<[u8; 1]> {
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"PING\r\n")?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        Ok(first)
    });
    match said {
        Err(error) => PortProbe::Nothing(error),
        // +PONG, or -NOAUTH and the like.
        Ok(Ok([b'+' | b'-'])) => PortProbe::Redis,
        Ok(_) => PortProbe::Something,
    }
}

/// A client of one server's admin API.
pub(super) struct AdminClient {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
    pub(super) json: bool,
}

impl AdminClient {
    pub(super) fn new(admin: &Admin) -> anyhow::Result<AdminClient> {
        let url = parse_url(&admin.url)?;
        let password = match &admin.password_file {
            Some(path) => Some(
                Secret::from_file(Path::new(path))
                    .map_err(anyhow::Error::msg)?
                    .reveal()
                    .as_bytes()
                    .to_vec(),
            ),
            None => std::env::var_os("BRIDLE_PASSWORD")
                .map(OsString::into_vec)
                .filter(|password| !password.is_empty()),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .proxy(None)
            .build();
        Ok(AdminClient {
            agent: config.into(),
            url,
            authorization: password.map(|password| meta::admin::authorization(&password)),
            json: admin.json,
        })
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.get(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    pub(super) fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.agent.delete(format!("{}{path}", self.url));
        self.answer(self.authorized(request).call())
    }

    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.url);
        let request = if method == "PUT" { self.agent.put(url) } else { self.agent.post(url) };
        self.answer(self.authorized(request).send_json(body))
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    fn answer(
        &self,
        outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<Value> {
        let mut response = match outcome {
            Ok(response) => response,
            Err(error) => return Err(self.explain(error)),
        };
        let status = response.status();
        if status.as_u16() == NO_CONTENT {
            return Ok(Value::Null);
        }
        let body: Value = match response.body_mut().read_json() {
            Ok(body) => body,
            Err(error) if status.is_success() => {
                return Err(error).with_context(|| format!("read the response of {}", self.url));
            }
            Err(_) => bail!("{} answered {status}: is this Bridle's HTTP port?", self.url),
        };
        if !status.is_success() {
            bail!("{}", body["error"].as_str().unwrap_or(status.as_str()));
        }
        Ok(body)
    }

    /// Explains a failed request by probing the port.
    fn explain(&self, error: ureq::Error) -> anyhow::Error {
        let place = self.url.trim_start_matches(SCHEME);
        let place = place.split('/').next().unwrap_or(place);
        match probe_port(place) {
            PortProbe::Nothing(why) => {
                anyhow::anyhow!(
                    "no server answers at {place} ({why}): is it running, and is that its HTTP \
                     port? --url sets the address"
                )
            }
            PortProbe::Redis => {
                anyhow::anyhow!(
                    "{place} is a port for Redis clients; --url needs the HTTP port, by default \
                     http://127.0.0.1:9121"
                )
            }
            PortProbe::Something => {
                let why = anyhow::Error::new(error);
                why.context(format!(
                    "send a request to {} (is that Bridle's HTTP port? --url sets the address)",
                    self.url
                ))
            }
        }
    }

    pub(super) fn show<T: DeserializeOwned>(
        &self,
        body: Value,
        to_text: impl FnOnce(T) -> String,
    ) -> anyhow::Result<String> {
        match self.json {
            true => Ok(format!("{}\n", serde_json::to_string_pretty(&body)?)),
            false => Ok(to_text(
                serde_json::from_value(body)
                    .context("parse the response (does the server have the same version?)")?,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_urls_are_refused_with_a_reason() {
        for (url, why) in [
            ("127.0.0.1:9121", "try --url http://127.0.0.1:9121"),
            ("localhost", "try --url http://localhost"),
            ("https://localhost:9121", "plain HTTP"),
            ("redis://localhost:6379", "not of the form http://host:port"),
            ("http://", "not of the form http://host:port"),
            ("http:// x", "not of the form http://host:port"),
        ] {
            let error = parse_url(url).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
        assert_eq!(parse_url("http://[::1]:9121//").unwrap(), "http://[::1]:9121");
    }
}
