//! Reads a connection: decodes all frames of a read, has them answered or passed on, and
//! sends the answers that are there at once together.
//!
//! Calls for rows are answered on another runtime than the one that reads ([`Answerer`]):
//! a long one holds up what is asked after it over the same connection, and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::frame::{Frame, Kind, decode};
use super::link::{Link, Served};
use super::wire::{Closing, Reader};
use super::{NetError, Service, ServiceReply, Services};

/// What one read may bring: at first, and while reads are filled.
const READ_BYTES_MIN: usize = 64 * 1024;
const READ_BYTES_MAX: usize = 512 * 1024;
/// A buffer with less room than this left is exchanged for a new one.
const READ_ROOM: usize = 8 * 1024;
/// What has been read and is not being answered yet, in reads; then reading waits.
const READS_AHEAD: usize = 16;
/// Answers are sent off when they have become so large, though more requests have been
/// read.
const ANSWER_BYTES: usize = 256 * 1024;

/// What a connection takes in.
pub(super) struct Inbound {
    /// Who answers; `None` on the dialer's side, where nobody calls.
    pub(super) services: Option<Arc<dyn Services>>,
    /// Where they do; `None`: here.
    pub(super) rows_runtime: Option<Handle>,
    /// The largest body.
    pub(super) frame_bytes_max: usize,
}

/// Reads until the end, and says why it came.
pub(super) async fn read(link: &Arc<Link>, mut reader: Reader, inbound: Inbound) -> String {
    let mut buffer = BytesMut::with_capacity(READ_BYTES_MIN);
    let mut read_bytes = READ_BYTES_MIN;
    let answerer = inbound.rows_runtime.zip(inbound.services.clone());
    let answerer =
        answerer.map(|(runtime, services)| Answerer::start(link.clone(), services, &runtime));
    let mut round = Round {
        link,
        services: inbound.services,
        answers: Vec::new(),
        answer_bytes: 0,
        answered: Vec::new(),
        asked: answerer.is_some().then(Vec::new),
    };
    loop {
        if buffer.is_empty() && buffer.capacity() > 2 * READ_BYTES_MAX {
            // After a large frame, its memory is given back.
            buffer = BytesMut::new();
        }
        if buffer.capacity() - buffer.len() < READ_ROOM {
            buffer.reserve(read_bytes);
        }
        let room = buffer.capacity() - buffer.len();
        let bytes = match reader.read(&mut buffer).await {
            Ok(0) => return "the other side has ended it".to_owned(),
            Ok(bytes) => bytes,
            Err(error) => return format!("read: {error}"),
        };
        read_bytes = if bytes == room {
            (read_bytes * 2).min(READ_BYTES_MAX)
        } else {
            (read_bytes / 2).max(READ_BYTES_MIN)
        };
        link.heard.store(true, Ordering::Relaxed);
        loop {
            match decode(&mut buffer, inbound.frame_bytes_max) {
                Ok(Some(frame)) => {
                    if let Err(why) = round.take(frame) {
                        return why.to_owned();
                    }
                }
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
            if round.answer_bytes > ANSWER_BYTES {
                round.finish();
                // Who asks and does not read the answers is not asked for more.
                while let Some(room) = link.full() {
                    room.await;
                }
            }
        }
        round.finish();
        if let (Some(asked), Some(answerer)) = (&mut round.asked, &answerer) {
            answerer.take(link, std::mem::take(asked)).await;
        }
        while let Some(room) = link.full() {
            room.await;
        }
    }
}

/// What the frames of one read have led to.
struct Round<'a> {
    link: &'a Arc<Link>,
    services: Option<Arc<dyn Services>>,
    /// To the other side's calls.
    answers: Vec<(u64, Result<Bytes, String>)>,
    answer_bytes: usize,
    /// To ours.
    answered: Vec<(u64, Result<Bytes, NetError>)>,
    /// Calls that are answered elsewhere; `None`: they are answered here.
    asked: Option<Vec<Asked>>,
}

/// A call that waits to be answered elsewhere.
struct Asked {
    service: Service,
    body: Bytes,
    owed: Owed,
}

/// Answers the calls of a connection, in the order in which they came.
struct Answerer(mpsc::Sender<Vec<Asked>>);

impl Answerer {
    /// Ends with the reader that it is given to.
    fn start(link: Arc<Link>, services: Arc<dyn Services>, runtime: &Handle) -> Answerer {
        let (sender, mut reads) = mpsc::channel::<Vec<Asked>>(READS_AHEAD);
        runtime.spawn(async move {
            let _closing = Closing(&link);
            let mut served = Vec::new();
            while let Some(Some(asked)) = link.closed.run_until_cancelled(reads.recv()).await {
                let mut answer_bytes = 0;
                for Asked { service, body, mut owed } in asked {
                    match services.call(&link.peer, service, body) {
                        ServiceReply::Now(answer) => {
                            answer_bytes += answer.as_ref().map_or_else(String::len, Bytes::len);
                            served.push(owed.serve(answer));
                        }
                        ServiceReply::Later(answer) => {
                            tokio::spawn(async move {
                                let answer = answer.await;
                                owed.pay(answer);
                            });
                        }
                    }
                    if answer_bytes > ANSWER_BYTES {
                        link.end_serving_all(&mut served);
                        answer_bytes = 0;
                        // Who asks and does not read the answers is not served more.
                        while let Some(room) = link.full() {
                            room.await;
                        }
                    }
                }
                if !served.is_empty() {
                    link.end_serving_all(&mut served);
                }
            }
        });
        Answerer(sender)
    }

    /// Takes the calls of a read; waits while too many are ahead of them.
    async fn take(&self, link: &Link, asked: Vec<Asked>) {
        if asked.is_empty() {
            return;
        }
        let asked = match self.0.try_send(asked) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(asked)) => asked,
        };
        link.is_held.store(true, Ordering::Relaxed);
        // Without its task the connection is closed: nobody is to be told.
        let _ = self.0.send(asked).await;
        link.is_held.store(false, Ordering::Relaxed);
    }
}

impl Round<'_> {
    fn take(&mut self, frame: Frame) -> Result<(), &'static str> {
        let Frame { head, body } = frame;
        let link = self.link;
        match head.kind {
            Kind::Call => self.serve(head.detail, head.id, body)?,
            Kind::Answer => self.answered.push((head.id, Ok(body))),
            Kind::Refuse => self.answered.push((
                head.id,
                Err(NetError::Refused(String::from_utf8_lossy(&body).into_owned())),
            )),
            Kind::Busy => {
                let why = format!(
                    "{} has too many calls under way and did not look at this one",
                    link.peer.server
                );
                self.answered.push((head.id, Err(NetError::NotSent(why))));
            }
            Kind::Open => {
                let services =
                    self.services.as_ref().ok_or("a channel was opened by who was called")?;
                // Without a service the channel is dropped, which tells the other side.
                if let (Some(channel), Some(service)) =
                    (link.opened(head.id)?, Service::of(head.detail))
                {
                    services.channel(&link.peer, service, body, channel);
                }
            }
            Kind::Message => link.message(head.id, body)?,
            Kind::Credit => link.credit(head.id, body)?,
            Kind::End => link.ended(head.id, head.detail),
            Kind::Ping | Kind::Void => {}
            Kind::Goodbye if self.services.is_some() => link.left(),
            Kind::Goodbye => link.leave(),
        }
        Ok(())
    }

    fn serve(&mut self, service: u8, id: u64, body: Bytes) -> Result<(), &'static str> {
        let services = self.services.as_ref().ok_or("a call was made by who was called")?;
        let Some(service) = Service::of(service) else {
            self.answers.push((id, Err(format!("service {service} is not known here"))));
            return Ok(());
        };
        if !self.link.may_serve() {
            self.link.say(Kind::Busy, 0, id);
            return Ok(());
        }
        let bytes = body.len();
        if let Some(asked) = &mut self.asked {
            asked.push(Asked { service, owed: Owed::new(self.link.clone(), id, bytes), body });
            return Ok(());
        }
        match services.call(&self.link.peer, service, body) {
            ServiceReply::Now(answer) => {
                self.answer_bytes += answer.as_ref().map_or_else(String::len, Bytes::len);
                self.answers.push((id, answer));
            }
            ServiceReply::Later(answer) => {
                let mut owed = Owed::new(self.link.clone(), id, bytes);
                tokio::spawn(async move {
                    let answer = answer.await;
                    owed.pay(answer);
                });
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        if !self.answered.is_empty() {
            self.link.answered(&mut self.answered);
        }
        if !self.answers.is_empty() {
            self.link.answer(&mut self.answers);
            self.answer_bytes = 0;
        }
    }
}

/// A call that is answered even if the service panics or is stopped.
struct Owed {
    link: Arc<Link>,
    id: u64,
    bytes: usize,
    is_paid: bool,
}

impl Owed {
    fn new(link: Arc<Link>, id: u64, bytes: usize) -> Self {
        link.begin_serving(bytes);
        Owed { link, id, bytes, is_paid: false }
    }

    /// It is answered together with others.
    fn serve(&mut self, answer: Result<Bytes, String>) -> Served {
        self.is_paid = true;
        Served { id: self.id, bytes: self.bytes, answer }
    }

    fn pay(&mut self, answer: Result<Bytes, String>) {
        self.is_paid = true;
        self.link.end_serving(self.bytes, self.id, answer);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        match self.is_paid {
            true => {}
            false if std::thread::panicking() => {
                self.pay(Err("the service has broken off".to_owned()))
            }
            // The process stops: that is no answer. The connection ends, and whoever
            // asked learns that it is lost.
            false => self.link.give_up_serving(self.bytes),
        }
    }
}
