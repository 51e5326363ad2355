//! Mutual TLS between servers: every process shows a certificate of the cluster's own
//! authority and checks the other's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::NetSetupError;

/// Files of certificates and key, PEM.
#[derive(Debug, Clone)]
pub struct NetTls {
    /// The authority that signs the servers' certificates and no others: any certificate
    /// of it is accepted.
    pub ca: PathBuf,
    /// This server's chain, its own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The name that certificates of all servers bear; `None`: each bears the host of its
    /// address.
    pub name: Option<String>,
}

/// Both ends of TLS.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) connector: TlsConnector,
    name: Option<ServerName<'static>>,
    /// This server's, its own first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

impl Tls {
    pub(super) fn new(files: &NetTls) -> Result<Self, NetSetupError> {
        let config_error = |error: &dyn std::fmt::Display| NetSetupError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authorities = certificates(&files.ca)?;
        for cert in &authorities {
            roots.add(cert.clone()).map_err(|error| config_error(&error))?;
        }
        let roots = Arc::new(roots);
        // Each file once: what both ends use is of one moment.
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| file_error(&files.key, error))?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| config_error(&error))?
            .with_client_cert_verifier(verifier.map_err(|error| config_error(&error))?)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| config_error(&error))?;
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config_error(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|error| config_error(&error))?;
        let name = files
            .name
            .clone()
            .map(ServerName::try_from)
            .transpose()
            .map_err(|error| config_error(&error))?;
        let (acceptor, connector) =
            (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));
        Ok(Tls { acceptor, connector, name, chain, authorities })
    }

    /// The name that the certificate of the server at this address must bear.
    pub(super) fn name_of(&self, address: &str) -> Result<ServerName<'static>, String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = address
            .rsplit_once(':')
            .map_or(address, |(host, _)| host)
            .trim_start_matches('[')
            .trim_end_matches(']');
        ServerName::try_from(host.to_owned())
            .map_err(|error| format!("{host} can't be a name in a certificate: {error}"))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, NetSetupError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(file_error(file, "no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(file_error(file, error)),
    }
}

fn file_error(file: &Path, why: impl std::fmt::Display) -> NetSetupError {
    NetSetupError::File { file: file.to_owned(), why: why.to_string() }
}
