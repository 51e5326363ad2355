//! The RESP port over TLS.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail here")]

mod kit;

use std::sync::Arc;
use std::time::Duration;

use proxy::Settings;
use proxy::tls::{Tls, TlsError, TlsFiles, read};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A certificate for `localhost` and its key, as files.
fn files(directory: &std::path::Path) -> (TlsFiles, rustls::pki_types::CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (TlsFiles { cert, key, authority: None }, made.cert.der().clone())
}

fn client_config(root: rustls::pki_types::CertificateDer<'static>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

#[tokio::test]
async fn commands_go_over_tls_in_any_size_and_plain_ones_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let (files, root) = files(directory.path());
    let proxy = kit::proxy(&kit::World::new(1), Settings::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving =
        tokio::spawn(proxy::serve(proxy.clone(), listener, Some(Tls::new(read(&files).unwrap()))));

    let connector = tokio_rustls::TlsConnector::from(client_config(root));
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream =
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    let value = "v".repeat(3_000_000);
    stream.write_all(kit::command(&["SET", "k", &value]).as_bytes()).await.unwrap();
    stream.write_all(b"PING\r\nGET k\r\nPING\r\n").await.unwrap();
    let expected = format!("+OK\r\n+PONG\r\n${}\r\n{value}\r\n+PONG\r\n", value.len());
    let mut got = vec![0; expected.len()];
    tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(got == expected.as_bytes());

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PING\r\n").await.unwrap();
    let mut got = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut got)).await.unwrap();
    assert!(!got.starts_with(b"+PONG"), "{got:?}");

    proxy.shutdown.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_killed_client_that_does_not_read_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let (files, root) = files(directory.path());
    let proxy = kit::proxy(&kit::World::new(1), Settings::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let serving =
        tokio::spawn(proxy::serve(proxy.clone(), listener, Some(Tls::new(read(&files).unwrap()))));
    let connector = tokio_rustls::TlsConnector::from(client_config(root));
    let mut stream =
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.write_all(kit::command(&["SET", "k", &"v".repeat(8 << 20)]).as_bytes()).await.unwrap();
    stream.write_all(b"GET k\r\nGET k\r\nGET k\r\nGET k\r\n").await.unwrap();
    stream.flush().await.unwrap();
    let client = loop {
        let client = proxy.clients.all().into_iter().find(|client| client.id == 1);
        if let Some(client) = client.filter(|client| client.buffered_bytes().0 > 1 << 20) {
            break client;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    client.kill();
    // Longer than the server waits for connections that do not end.
    proxy.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("stopped").unwrap();
}

#[tokio::test]
async fn tls_handshake_counts_as_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let (files, root) = files(directory.path());
    let proxy = kit::proxy(&kit::World::new(1), Settings { clients_max: 2, ..Settings::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(proxy::serve(proxy.clone(), listener, Some(Tls::new(read(&files).unwrap()))));
    let mut silent = vec![
        TcpStream::connect(address).await.unwrap(),
        TcpStream::connect(address).await.unwrap(),
    ];
    let mut third = TcpStream::connect(address).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), third.read(&mut [0; 1]))
        .await
        .expect("it is not waited for");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert_eq!(proxy.stats.connections_rejected.get(), 1);
    silent.pop();
    let connector = tokio_rustls::TlsConnector::from(client_config(root));
    let begun = std::time::Instant::now();
    // The server notices the end of the other connection a moment later.
    while connector
        .connect(
            ServerName::try_from("localhost").unwrap(),
            TcpStream::connect(address).await.unwrap(),
        )
        .await
        .is_err()
    {
        assert!(begun.elapsed() < Duration::from_secs(5), "its place is free again");
    }
}

#[tokio::test]
async fn certificates_are_reloaded_together_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (files, old) = files(directory.path());
    let proxy = kit::proxy(&kit::World::new(1), Settings::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls::new(read(&files).unwrap());
    tokio::spawn(proxy::serve(proxy.clone(), listener, Some(tls.clone())));
    let connect = async |root: &rustls::pki_types::CertificateDer<'static>| {
        let connector = tokio_rustls::TlsConnector::from(client_config(root.clone()));
        connector
            .connect(
                ServerName::try_from("localhost").unwrap(),
                TcpStream::connect(address).await.unwrap(),
            )
            .await
    };
    let mut open = connect(&old).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let (new_files, new) = self::files(other.path());
    // The certificate is copied first, and its key a moment later.
    std::fs::copy(&new_files.cert, &files.cert).unwrap();
    let error = read(&files).unwrap_err();
    assert!(matches!(error, TlsError::Config(_)), "{error}");
    connect(&old).await.expect("nothing has changed");
    std::fs::copy(&new_files.key, &files.key).unwrap();
    tls.renew(read(&files).unwrap());
    connect(&new).await.expect("the new one is shown");
    connect(&old).await.expect_err("the old one is not");
    open.write_all(b"PING\r\n").await.unwrap();
    let mut got = [0; 7];
    open.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"+PONG\r\n", "who is connected stays so");
    proxy.shutdown.cancel();
}

#[test]
fn invalid_certificate_files_are_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let (mut files, _) = files(directory.path());
    std::fs::write(&files.cert, "nothing").unwrap();
    let error = read(&files).unwrap_err();
    assert!(matches!(&error, TlsError::File { file, .. } if *file == files.cert), "{error}");
    files.key = directory.path().join("none");
    assert!(read(&files).unwrap_err().to_string().contains("none"));
}
