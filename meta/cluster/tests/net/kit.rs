//! Processes for tests: services that echo, count and stall, and a wire that can be cut.

#![allow(unreachable_pub, reason = "a module of several test binaries")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::ServerId;
use cluster::net::{
    Channel, Destination, Net, NetError, NetOptions, Peer, Service, ServiceError, ServiceReply,
    Services,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for anything that should happen.
pub const LONG: Duration = Duration::from_secs(20);

/// Answers by the first byte of what is asked: `n`ow, `l`ater the same bytes; `w`aits so
/// many ms (u16 LE) before, or `h`olds the thread for so long; `r`efuses; `s`tays silent;
/// `p`anics later; answers so many `b`ytes (u32 LE); says `m`y name: what it knows of the
/// caller. Channels go to the test.
pub struct Echo {
    pub calls: AtomicUsize,
    channels: mpsc::UnboundedSender<(Service, Bytes, Channel)>,
}

impl Services for Echo {
    fn call(&self, from: &Peer, service: Service, body: Bytes) -> ServiceReply {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match body.first() {
            Some(b'n') => ServiceReply::Now(Ok(body)),
            Some(b'l') => ServiceReply::Later(Box::pin(async move { Ok(body) })),
            Some(b'w') => ServiceReply::Later(Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(u64::from(u16::from_le_bytes([
                    body[1], body[2],
                ]))))
                .await;
                Ok(body)
            })),
            Some(b'h') => {
                std::thread::sleep(Duration::from_millis(u64::from(u16::from_le_bytes([
                    body[1], body[2],
                ]))));
                ServiceReply::Now(Ok(body))
            }
            Some(b's') => ServiceReply::Later(Box::pin(std::future::pending())),
            Some(b'p') => ServiceReply::Later(Box::pin(async { panic!("on purpose") })),
            Some(b'b') => ServiceReply::Now(Ok(Bytes::from(vec![
                7;
                u32::from_le_bytes([body[1], body[2], body[3], body[4]])
                    as usize
            ]))),
            Some(b'm') => ServiceReply::Now(Ok(Bytes::from(format!(
                "{} {:?} {} {service:?}",
                from.server, from.cluster, from.address
            )))),
            _ => ServiceReply::Now(Err(ServiceError::NotOpen("refused on purpose"))),
        }
    }

    fn channel(&self, _: &Peer, service: Service, hello: Bytes, channel: Channel) {
        let _ = self.channels.send((service, hello, channel));
    }
}

/// A process that serves.
pub struct Served {
    pub net: Arc<Net>,
    pub echo: Arc<Echo>,
    pub address: String,
    pub channels: mpsc::UnboundedReceiver<(Service, Bytes, Channel)>,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

pub async fn serve(options: NetOptions) -> Served {
    serve_at(options, "127.0.0.1:0").await
}

pub async fn serve_at(options: NetOptions, address: &str) -> Served {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let net = Net::new(options).unwrap();
    let (sender, channels) = mpsc::unbounded_channel();
    let echo = Arc::new(Echo { calls: AtomicUsize::new(0), channels: sender });
    let stop = CancellationToken::new();
    let (serving_net, services, stopped) = (net.clone(), echo.clone(), stop.clone());
    let serving = tokio::spawn(async move { serving_net.serve(listener, services, stopped).await });
    Served { net, echo, address, channels, stop, serving }
}

/// Options of a server of this number, which says a made-up address of itself.
pub fn options(server: u64) -> NetOptions {
    NetOptions::new(ServerId(server), &format!("host{server}:1"))
}

/// Two processes, the first of which knows the second as server 2.
pub async fn pair() -> (Arc<Net>, Served) {
    let served = serve(options(2)).await;
    let net = Net::new(options(1)).unwrap();
    net.set_address(ServerId(2), &served.address);
    (net, served)
}

pub fn two() -> Destination {
    Destination::Server(ServerId(2))
}

pub async fn ask(net: &Arc<Net>, body: impl Into<Bytes>) -> Result<Bytes, NetError> {
    net.call(two(), Service::Rows, body.into(), LONG).await
}

/// A port where nobody listens.
pub async fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} does not come true"));
}

/// A wire to an address. It passes bytes on, until it is cut (connections are reset) or
/// frozen (nothing passes and nothing is closed).
pub struct Wire {
    pub address: String,
    mood: Arc<Mutex<Mood>>,
    cut: Arc<Mutex<CancellationToken>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Passing,
    Frozen,
}

impl Wire {
    pub async fn to(target: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire {
            address: listener.local_addr().unwrap().to_string(),
            mood: Arc::new(Mutex::new(Mood::Passing)),
            cut: Arc::default(),
        };
        let (target, mood, cut) = (target.to_owned(), wire.mood.clone(), wire.cut.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                let cut = cut.lock().clone();
                for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                    let (mood, cut) = (mood.clone(), cut.clone());
                    let pass = async move {
                        let mut buffer = vec![0; 64 * 1024];
                        loop {
                            let Ok(bytes @ 1..) = from.read(&mut buffer).await else { return };
                            while *mood.lock() == Mood::Frozen {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                            if to.write_all(&buffer[..bytes]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::spawn(async move { cut.run_until_cancelled(pass).await });
                }
            }
        });
        wire
    }

    pub fn freeze(&self) {
        *self.mood.lock() = Mood::Frozen;
    }

    pub fn thaw(&self) {
        *self.mood.lock() = Mood::Passing;
    }

    /// Ends the connections that are open.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }
}
