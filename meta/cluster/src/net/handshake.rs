//! The handshake: identity of both sides, membership in this cluster, and proof of the
//! secret.
//!
//! ```text
//! dialer                                    acceptor
//!   preface (magic, version), Hello    ->
//!                                      <-    Challenge, or Refused
//!   Proof                              ->    checks it; until here it has said nothing of itself
//!                                      <-    Welcome with its proof, or Refused
//! ```
//! Before it, in front of TLS if there is any, the dialer sends one byte: the
//! connection's lane ([`Lane`](super::peer_connection::Lane)).
//!
//! Each message has its length (u16 LE) before it; its body is postcard. A proof is an
//! HMAC-SHA256 with the secret over the side's role and everything that was said before,
//! both sides' fresh random numbers among it: it proves nothing in another connection,
//! nor in the other role, nor for another version.
//!
//! # Not here
//! The secret authenticates processes; it does not encrypt or sign later traffic, and a
//! short secret can be guessed from a recorded proof. TLS protects against both.

use hmac::{Hmac, Mac};
use rand::Rng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ClusterId, Secret};
use crate::ServerId;

/// Grows when frames or the handshake change.
const VERSION: u16 = 1;
/// First bytes of a connection, before the version (u16 LE).
const MAGIC: [u8; 6] = *b"bridle";
/// A message of the handshake is no larger.
const MESSAGE_BYTES_MAX: usize = 2048;

/// A side's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PeerInfo {
    /// `None`: not known yet.
    pub(super) cluster: Option<ClusterId>,
    pub(super) server: ServerId,
    /// Address at which others reach it.
    pub(super) address: String,
    /// The largest body it takes.
    pub(super) frame_bytes_max: u32,
}

#[derive(Serialize, Deserialize)]
struct ClientHello {
    info: PeerInfo,
    /// The server that the dialer expects.
    expected: Option<ServerId>,
    has_secret: bool,
    nonce: [u8; 32],
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Challenge { has_secret: bool, nonce: [u8; 32] },
    Welcome { info: PeerInfo, proof: Option<[u8; 32]> },
    Refused(String),
}

#[derive(Serialize, Deserialize)]
struct Proof(Option<[u8; 32]>);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// It ended in the middle.
    #[error("the connection ended during the handshake ({0})")]
    Io(#[from] std::io::Error),
    /// Not one of ours.
    #[error("the other side does not speak this protocol")]
    WrongProtocol,
    /// The other side says so.
    #[error("refused by the other side: {0}")]
    Refused(String),
    /// We say so.
    #[error("{0}")]
    Mismatch(String),
}

/// One side of the handshake.
pub(super) struct Handshaker<'a> {
    pub(super) info: PeerInfo,
    pub(super) secret: Option<&'a Secret>,
}

const DIALER: &[u8] = b"bridle cluster, dialer";
const ACCEPTOR: &[u8] = b"bridle cluster, acceptor";

/// The proof's MAC, ready to be read or checked.
fn mac(secret: &Secret, role: &[u8], transcript: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.bytes()).expect("HMAC takes keys of any length");
    for part in [role].iter().chain(transcript) {
        mac.update(&(part.len() as u32).to_le_bytes());
        mac.update(part);
    }
    mac
}

/// Compares in constant time.
fn is_proof(secret: &Secret, role: &[u8], transcript: &[&[u8]], proof: Option<[u8; 32]>) -> bool {
    proof.is_some_and(|proof| mac(secret, role, transcript).verify_slice(&proof).is_ok())
}

impl Handshaker<'_> {
    /// Greets whom we have called; `expected` is who it should be, where that is known.
    pub(super) async fn dial<S>(
        &self,
        stream: &mut S,
        expected: Option<ServerId>,
    ) -> Result<PeerInfo, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = ClientHello {
            info: self.info.clone(),
            expected,
            has_secret: self.secret.is_some(),
            nonce: rand::rng().random(),
        };
        let preface = preface();
        let hello = encoded(&hello);
        stream
            .write_all(&[&preface[..], &(hello.len() as u16).to_le_bytes(), &hello].concat())
            .await?;
        stream.flush().await?;
        let (challenge, transcript) = receive::<Reply, S>(stream).await?;
        let has_secret = match challenge {
            Reply::Challenge { has_secret, .. } => has_secret,
            Reply::Refused(why) => return Err(HandshakeError::Refused(why)),
            Reply::Welcome { .. } => return Err(HandshakeError::WrongProtocol),
        };
        // Checked before this side proves anything to a peer that cannot prove itself.
        if let Some(why) = secrets_differ(self.secret.is_some(), has_secret) {
            return Err(HandshakeError::Mismatch(why));
        }
        let proof = self.secret.map(|secret| {
            mac(secret, DIALER, &[&preface, &hello, &transcript]).finalize().into_bytes().into()
        });
        let proof = encoded(&Proof(proof));
        send(stream, &proof).await?;
        let (info, their_proof) = match receive::<Reply, S>(stream).await?.0 {
            Reply::Welcome { info, proof } => (info, proof),
            Reply::Refused(why) => return Err(HandshakeError::Refused(why)),
            Reply::Challenge { .. } => return Err(HandshakeError::WrongProtocol),
        };
        if let Some(secret) = self.secret
            && !is_proof(
                secret,
                ACCEPTOR,
                &[&preface, &hello, &transcript, &proof, &encoded(&info)],
                their_proof,
            )
        {
            return Err(HandshakeError::Mismatch(
                "the other side does not know the cluster's secret".to_owned(),
            ));
        }
        match mismatch(&info, &self.info, expected, info.server) {
            Some(why) => Err(HandshakeError::Mismatch(why)),
            None => Ok(info),
        }
    }

    /// The acceptor's side.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
    ) -> Result<PeerInfo, HandshakeError> {
        let mut start = [0; 8];
        stream.read_exact(&mut start).await?;
        if start[..6] != MAGIC {
            return Err(HandshakeError::WrongProtocol);
        }
        let (hello, said_hello) = match start == preface() {
            true => receive::<ClientHello, S>(stream).await?,
            false => {
                let theirs = u16::from_le_bytes([start[6], start[7]]);
                return self
                    .refuse(
                        stream,
                        format!(
                            "version {theirs} of the cluster's protocol is not spoken here, \
                             {VERSION} is"
                        ),
                    )
                    .await;
            }
        };
        if let Some(why) = secrets_differ(hello.has_secret, self.secret.is_some()) {
            return self.refuse(stream, why).await;
        }
        let challenge = encoded(&Reply::Challenge {
            has_secret: self.secret.is_some(),
            nonce: rand::rng().random(),
        });
        send(stream, &challenge).await?;
        let (Proof(proof), said_proof) = receive::<Proof, S>(stream).await?;
        if let Some(secret) = self.secret
            && !is_proof(secret, DIALER, &[&start, &said_hello, &challenge], proof)
        {
            return self
                .refuse(stream, "the dialer does not know the cluster's secret".to_owned())
                .await;
        }
        if let Some(why) = mismatch(&self.info, &hello.info, hello.expected, self.info.server) {
            return self.refuse(stream, why).await;
        }
        let transcript = [&start[..], &said_hello, &challenge, &said_proof, &encoded(&self.info)];
        let proof = self
            .secret
            .map(|secret| mac(secret, ACCEPTOR, &transcript).finalize().into_bytes().into());
        send(stream, &encoded(&Reply::Welcome { info: self.info.clone(), proof })).await?;
        Ok(hello.info)
    }

    /// Sends the reason to the other side and returns it for the log.
    async fn refuse<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        why: String,
    ) -> Result<PeerInfo, HandshakeError> {
        send(stream, &encoded(&Reply::Refused(why.clone()))).await?;
        // Best effort: it is over either way.
        let _ = stream.shutdown().await;
        Err(HandshakeError::Mismatch(why))
    }
}

fn secrets_differ(dialer_has: bool, acceptor_has: bool) -> Option<String> {
    match (dialer_has, acceptor_has) {
        (true, false) => Some("the dialer has a cluster secret, the acceptor has none".to_owned()),
        (false, true) => {
            Some("the acceptor asks for the cluster's secret, the dialer has none".to_owned())
        }
        (true, true) | (false, false) => None,
    }
}

/// Why these two should not speak with each other.
fn mismatch(
    acceptor: &PeerInfo,
    dialer: &PeerInfo,
    expected: Option<ServerId>,
    answers: ServerId,
) -> Option<String> {
    if let (Some(acceptor), Some(dialer)) = (acceptor.cluster, dialer.cluster)
        && acceptor != dialer
    {
        return Some(format!(
            "the acceptor belongs to cluster {acceptor}, the dialer to cluster {dialer}"
        ));
    }
    let expected = expected.filter(|expected| *expected != answers)?;
    Some(format!("server {expected} was called, and server {answers} answers at this address"))
}

fn preface() -> [u8; 8] {
    let [low, high] = VERSION.to_le_bytes();
    let [a, b, c, d, e, f] = MAGIC;
    [a, b, c, d, e, f, low, high]
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("memory takes a message of the handshake")
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), std::io::Error> {
    stream.write_all(&[&(message.len() as u16).to_le_bytes(), message].concat()).await?;
    stream.flush().await
}

/// A message, and its bytes as they came.
async fn receive<T: DeserializeOwned, S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<(T, Vec<u8>), HandshakeError> {
    let length = usize::from(stream.read_u16_le().await?);
    if length > MESSAGE_BYTES_MAX {
        return Err(HandshakeError::WrongProtocol);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    let message = postcard::from_bytes(&bytes).map_err(|_| HandshakeError::WrongProtocol)?;
    Ok((message, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::Vectors;

    fn greeter(server: u64, cluster: Option<u64>, secret: Option<&Secret>) -> Handshaker<'_> {
        let info = PeerInfo {
            cluster: cluster.map(ClusterId),
            server: ServerId(server),
            address: "host:1".to_owned(),
            frame_bytes_max: 1000,
        };
        Handshaker { info, secret }
    }

    async fn meet(
        dialer: Handshaker<'_>,
        expected: Option<u64>,
        acceptor: Handshaker<'_>,
    ) -> (Result<PeerInfo, HandshakeError>, Result<PeerInfo, HandshakeError>) {
        let (mut one, mut other) = tokio::io::duplex(4096);
        let dial = async move { dialer.dial(&mut one, expected.map(ServerId)).await };
        let accept = async move { acceptor.accept(&mut other).await };
        tokio::join!(dial, accept)
    }

    #[tokio::test]
    async fn members_of_a_cluster_shake_hands() {
        let secret = Secret::new("correct horse battery").unwrap();
        for (ours, theirs) in [(None, None), (Some(5), None), (None, Some(5)), (Some(5), Some(5))] {
            for secret in [None, Some(&secret)] {
                let (dialed, accepted) =
                    meet(greeter(1, ours, secret), Some(2), greeter(2, theirs, secret)).await;
                assert_eq!(dialed.unwrap(), greeter(2, theirs, None).info);
                assert_eq!(accepted.unwrap(), greeter(1, ours, None).info);
            }
        }
    }

    #[tokio::test]
    async fn both_sides_learn_why_a_handshake_fails() {
        let (secret, other) =
            (Secret::new("correct horse battery").unwrap(), Secret::new("staple").unwrap());
        let cases = [
            (greeter(1, Some(5), None), None, greeter(2, Some(6), None), "cluster"),
            (
                greeter(1, None, None),
                Some(3),
                greeter(2, None, None),
                "server 0000000000000003 was called",
            ),
            (
                greeter(1, None, Some(&secret)),
                None,
                greeter(2, None, Some(&other)),
                "does not know the cluster's secret",
            ),
            (
                greeter(1, None, Some(&secret)),
                None,
                greeter(2, None, None),
                "the acceptor has none",
            ),
            (greeter(1, None, None), None, greeter(2, None, Some(&secret)), "the dialer has none"),
        ];
        for (dialer, expected, acceptor, why) in cases {
            let (dialed, accepted) = meet(dialer, expected, acceptor).await;
            let (dialed, accepted) =
                (dialed.unwrap_err().to_string(), accepted.unwrap_err().to_string());
            assert!(dialed.contains(why) && accepted.contains(why), "{dialed} / {accepted}");
        }
    }

    /// Somebody without the secret who hands a dialer's words back to it, or an
    /// acceptor's to another, gets nowhere.
    #[tokio::test]
    async fn reflected_proofs_prove_nothing() {
        let secret = Secret::new("correct horse battery").unwrap();
        let dialer = greeter(1, None, Some(&secret));
        let (mut one, mut wire) = tokio::io::duplex(4096);
        let mirror = async {
            let mut start = [0; 8];
            wire.read_exact(&mut start).await.unwrap();
            let (hello, _) = receive::<ClientHello, _>(&mut wire).await.unwrap();
            send(&mut wire, &encoded(&Reply::Challenge { has_secret: true, nonce: hello.nonce }))
                .await
                .unwrap();
            let (Proof(proof), _) = receive::<Proof, _>(&mut wire).await.unwrap();
            send(&mut wire, &encoded(&Reply::Welcome { info: hello.info, proof })).await.unwrap();
        };
        let (dialed, ()) = tokio::join!(dialer.dial(&mut one, None), mirror);
        assert!(dialed.unwrap_err().to_string().contains("does not know the cluster's secret"));
    }

    #[tokio::test]
    async fn another_version_is_told_so() {
        let (mut one, mut other) = tokio::io::duplex(4096);
        one.write_all(b"bridle\x07\x00").await.unwrap();
        let acceptor = greeter(2, None, None);
        let accepted = acceptor.accept(&mut other).await.unwrap_err().to_string();
        assert!(accepted.contains("version 7"), "{accepted}");
        let (Reply::Refused(why), _) = receive::<Reply, _>(&mut one).await.unwrap() else {
            panic!("refused")
        };
        assert_eq!(why, accepted);
    }

    /// Frozen: add lines for new versions, never edit these.
    #[test]
    fn the_handshake_is_frozen() {
        let secret = Secret::new("correct horse battery").unwrap();
        let (dialer, acceptor) = (greeter(1, None, None).info, greeter(300, Some(5), None).info);
        let mut vectors = Vectors::default();
        let preface = preface();
        vectors.push("preface", &preface);
        let hello = |has_secret, expected: Option<u64>| {
            encoded(&ClientHello {
                info: dialer.clone(),
                expected: expected.map(ServerId),
                has_secret,
                nonce: [7; 32],
            })
        };
        vectors.push("hello", &hello(false, None));
        let hello = hello(true, Some(300));
        vectors.push("hello.secret", &hello);
        let challenge = encoded(&Reply::Challenge { has_secret: true, nonce: [8; 32] });
        let transcript = [&preface[..], &hello, &challenge];
        let proof_of = |role, transcript: &[&[u8]]| -> [u8; 32] {
            mac(&secret, role, transcript).finalize().into_bytes().into()
        };
        vectors.push("proof.none", &encoded(&Proof(None)));
        let proof = encoded(&Proof(Some(proof_of(DIALER, &transcript))));
        vectors.push("proof", &proof);
        let info = encoded(&acceptor);
        let transcript = [&transcript[..], &[&proof, &info]].concat();
        let replies = vec![
            ("challenge", challenge.clone()),
            ("challenge-open", encoded(&Reply::Challenge { has_secret: false, nonce: [8; 32] })),
            (
                "welcome",
                encoded(&Reply::Welcome {
                    info: acceptor.clone(),
                    proof: Some(proof_of(ACCEPTOR, &transcript)),
                }),
            ),
            ("welcome-open", encoded(&Reply::Welcome { info: acceptor.clone(), proof: None })),
            ("refused", encoded(&Reply::Refused("no".to_owned()))),
        ];
        vectors.add::<Reply>("reply", 0, replies);
        vectors.hold("handshake.txt", include_str!("../../tests/vectors/handshake.txt"));
    }

    /// The bytes in the file are those that a dialer writes and reads.
    #[tokio::test]
    async fn a_dialer_speaks_the_frozen_handshake() {
        let text = include_str!("../../tests/vectors/handshake.txt");
        let line = |label: &str| -> Vec<u8> {
            let hex = text
                .lines()
                .find_map(|line| line.strip_prefix(label)?.strip_prefix(' '))
                .unwrap_or_else(|| panic!("no line {label}"));
            (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect()
        };
        let (mut one, mut wire) = tokio::io::duplex(4096);
        let acceptor = async {
            let mut start = [0; 8];
            wire.read_exact(&mut start).await.unwrap();
            assert_eq!(start[..], line("preface"));
            let length = usize::from(wire.read_u16_le().await.unwrap());
            let mut hello = vec![0; length];
            wire.read_exact(&mut hello).await.unwrap();
            // The nonce is drawn anew each time.
            let frozen = line("hello");
            let nonce_at = frozen.len() - 32;
            assert_eq!((hello.len(), &hello[..nonce_at]), (frozen.len(), &frozen[..nonce_at]));
            send(&mut wire, &line("reply.challenge-open")).await.unwrap();
            assert_eq!(receive::<Proof, _>(&mut wire).await.unwrap().1, line("proof.none"));
            send(&mut wire, &line("reply.welcome-open")).await.unwrap();
        };
        let dialer = greeter(1, None, None);
        let (dialed, ()) = tokio::join!(dialer.dial(&mut one, None), acceptor);
        assert_eq!(dialed.unwrap(), greeter(300, Some(5), None).info);
    }
}
