//! The server's side of TLS, from PEM files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config::TlsSection;

/// What rustls needs; `None` when no TLS port is configured.
pub(crate) fn settings(section: &TlsSection) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    if section.port == 0 {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match section.client_ca_file.as_os_str().is_empty() {
        true => builder.with_no_client_auth(),
        false => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&section.client_ca_file)? {
                roots.add(certificate).with_context(|| format!("use the authority in {}", section.client_ca_file.display()))?;
            }
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&section.key_file).map_err(|error| anyhow::anyhow!("{error}"));
    let key = key.with_context(|| format!("read the private key in {} (tls.key_file)", section.key_file.display()))?;
    let config = builder.with_single_cert(certificates(&section.cert_file)?, key);
    Ok(Some(Arc::new(config.context("use tls.cert_file with tls.key_file")?)))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found =
        read().map_err(|error| anyhow::anyhow!("{error}")).with_context(|| format!("read the certificates in {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate in PEM form", path.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("empty.pem"), "").unwrap();
        let section = |cert: &str, key: &str, ca: &str| TlsSection {
            port: 1,
            only: false,
            cert_file: path(cert),
            key_file: path(key),
            client_ca_file: if ca.is_empty() { "".into() } else { path(ca) },
        };
        assert!(settings(&section("cert.pem", "key.pem", "")).unwrap().is_some());
        assert!(settings(&section("cert.pem", "key.pem", "cert.pem")).unwrap().is_some());
        assert!(settings(&TlsSection { port: 0, ..section("none", "none", "") }).unwrap().is_none());
        for (wrong, named) in [
            (section("none.pem", "key.pem", ""), "none.pem"),
            (section("empty.pem", "key.pem", ""), "empty.pem"),
            (section("cert.pem", "cert.pem", ""), "tls.key_file"),
            (section("cert.pem", "key.pem", "empty.pem"), "empty.pem"),
        ] {
            let error = format!("{:#}", settings(&wrong).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
