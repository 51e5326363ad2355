//! Reads a connection: decodes all frames of a read, has them answered or passed on, and
//! sends the answers that are there at once together.
//!
//! Calls for rows are answered on another runtime than the one that reads
//! ([`CallQueue`]): a long one holds up what is asked after it over the same connection,
//! and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::connection::{Connection, ServedCall};
use super::frame::{Frame, FrameKind, decode};
use super::socket::{CloseOnDrop, SocketReader};
use super::{NetError, Service, ServiceReply, Services};

/// Size of the read buffer: at first, and its maximum while reads fill it.
const READ_BYTES_MIN: usize = 64 * 1024;
const READ_BYTES_MAX: usize = 512 * 1024;
/// A buffer with less room than this left is exchanged for a new one.
const READ_ROOM: usize = 8 * 1024;
/// Maximum number of reads whose calls are queued; then reading waits.
const READS_QUEUED_MAX: usize = 16;
/// Answers are sent off when they have become so large, though more requests have been
/// read.
const ANSWER_BYTES: usize = 256 * 1024;

/// Options of a connection's reader.
pub(super) struct ReaderOptions {
    /// The services that answer; `None` on the dialer's side, which receives no calls.
    pub(super) services: Option<Arc<dyn Services>>,
    /// The runtime of the services; `None`: the reader's.
    pub(super) rows_runtime: Option<Handle>,
    /// The largest body.
    pub(super) frame_bytes_max: usize,
}

/// Reads until the end, and says why it came.
pub(super) async fn read(
    connection: &Arc<Connection>,
    mut reader: SocketReader,
    inbound: ReaderOptions,
) -> String {
    let mut buffer = BytesMut::with_capacity(READ_BYTES_MIN);
    let mut read_bytes = READ_BYTES_MIN;
    let call_queue = inbound.rows_runtime.zip(inbound.services.clone());
    let call_queue = call_queue
        .map(|(runtime, services)| CallQueue::start(connection.clone(), services, &runtime));
    let mut batch = ReadBatch {
        connection,
        services: inbound.services,
        answers: Vec::new(),
        answer_bytes: 0,
        complete_calls: Vec::new(),
        queued: call_queue.is_some().then(Vec::new),
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
        connection.has_received.store(true, Ordering::Relaxed);
        loop {
            match decode(&mut buffer, inbound.frame_bytes_max) {
                Ok(Some(frame)) => {
                    if let Err(why) = batch.take(frame) {
                        return why.to_owned();
                    }
                }
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
            if batch.answer_bytes > ANSWER_BYTES {
                batch.finish();
                // Back-pressure: a peer that does not read its answers is not read
                // either.
                while let Some(room) = connection.outbox_full() {
                    room.await;
                }
            }
        }
        batch.finish();
        if let (Some(queued), Some(call_queue)) = (&mut batch.queued, &call_queue) {
            call_queue.take(connection, std::mem::take(queued)).await;
        }
        while let Some(room) = connection.outbox_full() {
            room.await;
        }
    }
}

/// Results of the frames of one read.
struct ReadBatch<'a> {
    connection: &'a Arc<Connection>,
    services: Option<Arc<dyn Services>>,
    /// To the other side's calls.
    answers: Vec<(u64, Result<Bytes, String>)>,
    answer_bytes: usize,
    /// To ours.
    complete_calls: Vec<(u64, Result<Bytes, NetError>)>,
    /// Calls that are answered elsewhere; `None`: they are answered here.
    queued: Option<Vec<QueuedCall>>,
}

/// A call that waits to be answered elsewhere.
struct QueuedCall {
    service: Service,
    body: Bytes,
    pending: PendingReply,
}

/// Answers the calls of a connection, in the order in which they came.
struct CallQueue(mpsc::Sender<Vec<QueuedCall>>);

impl CallQueue {
    /// Ends with the reader that it is given to.
    fn start(
        connection: Arc<Connection>,
        services: Arc<dyn Services>,
        runtime: &Handle,
    ) -> CallQueue {
        let (sender, mut reads) = mpsc::channel::<Vec<QueuedCall>>(READS_QUEUED_MAX);
        runtime.spawn(async move {
            let _closing = CloseOnDrop(&connection);
            let mut served = Vec::new();
            while let Some(Some(queued)) = connection.closed.run_until_cancelled(reads.recv()).await
            {
                let mut answer_bytes = 0;
                for QueuedCall { service, body, mut pending } in queued {
                    match services.call(&connection.peer, service, body) {
                        ServiceReply::Now(answer) => {
                            let answer = answer.map_err(|error| error.to_string());
                            answer_bytes += answer.as_ref().map_or_else(String::len, Bytes::len);
                            served.push(pending.serve(answer));
                        }
                        ServiceReply::Later(answer) => {
                            tokio::spawn(async move {
                                let answer = answer.await.map_err(|error| error.to_string());
                                pending.reply(answer);
                            });
                        }
                    }
                    if answer_bytes > ANSWER_BYTES {
                        connection.finish_serving_all(&mut served);
                        answer_bytes = 0;
                        // Back-pressure: a peer that does not read its answers is not
                        // served.
                        while let Some(room) = connection.outbox_full() {
                            room.await;
                        }
                    }
                }
                if !served.is_empty() {
                    connection.finish_serving_all(&mut served);
                }
            }
        });
        CallQueue(sender)
    }

    /// Takes the calls of a read; waits while too many are ahead of them.
    async fn take(&self, connection: &Connection, queued: Vec<QueuedCall>) {
        if queued.is_empty() {
            return;
        }
        let queued = match self.0.try_send(queued) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(queued)) => queued,
        };
        connection.reading_is_paused.store(true, Ordering::Relaxed);
        // Without its task the connection is closed, so a failure needs no handling.
        let _ = self.0.send(queued).await;
        connection.reading_is_paused.store(false, Ordering::Relaxed);
    }
}

impl ReadBatch<'_> {
    fn take(&mut self, frame: Frame) -> Result<(), &'static str> {
        let Frame { header, body } = frame;
        let connection = self.connection;
        match header.kind {
            FrameKind::Call => self.serve(header.detail, header.id, body)?,
            FrameKind::Answer => self.complete_calls.push((header.id, Ok(body))),
            FrameKind::Refuse => self.complete_calls.push((
                header.id,
                Err(NetError::Refused(String::from_utf8_lossy(&body).into_owned())),
            )),
            FrameKind::Busy => {
                let why = format!(
                    "{} has too many calls under way and did not look at this one",
                    connection.peer.server
                );
                self.complete_calls.push((header.id, Err(NetError::NotSent(why))));
            }
            FrameKind::Open => {
                let services =
                    self.services.as_ref().ok_or("a channel was opened by who was called")?;
                // Without a service the channel is dropped, which tells the other side.
                if let (Some(channel), Some(service)) =
                    (connection.opened(header.id)?, Service::of(header.detail))
                {
                    services.channel(&connection.peer, service, body, channel);
                }
            }
            FrameKind::Message => connection.message(header.id, body)?,
            FrameKind::Credit => connection.credit(header.id, body)?,
            FrameKind::End => connection.ended(header.id, header.detail),
            FrameKind::Ping | FrameKind::Cancelled => {}
            FrameKind::GoAway if self.services.is_some() => connection.on_go_away_reply(),
            FrameKind::GoAway => connection.on_go_away(),
        }
        Ok(())
    }

    fn serve(&mut self, service: u8, id: u64, body: Bytes) -> Result<(), &'static str> {
        let services = self.services.as_ref().ok_or("a call was made by who was called")?;
        let Some(service) = Service::of(service) else {
            self.answers.push((id, Err(format!("service {service} is not known here"))));
            return Ok(());
        };
        if !self.connection.may_serve() {
            self.connection.send_control(FrameKind::Busy, 0, id);
            return Ok(());
        }
        let bytes = body.len();
        if let Some(queued) = &mut self.queued {
            queued.push(QueuedCall {
                service,
                pending: PendingReply::new(self.connection.clone(), id, bytes),
                body,
            });
            return Ok(());
        }
        match services.call(&self.connection.peer, service, body) {
            ServiceReply::Now(answer) => {
                let answer = answer.map_err(|error| error.to_string());
                self.answer_bytes += answer.as_ref().map_or_else(String::len, Bytes::len);
                self.answers.push((id, answer));
            }
            ServiceReply::Later(answer) => {
                let mut pending = PendingReply::new(self.connection.clone(), id, bytes);
                tokio::spawn(async move {
                    let answer = answer.await.map_err(|error| error.to_string());
                    pending.reply(answer);
                });
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        if !self.complete_calls.is_empty() {
            self.connection.complete_calls(&mut self.complete_calls);
        }
        if !self.answers.is_empty() {
            self.connection.answer(&mut self.answers);
            self.answer_bytes = 0;
        }
    }
}

/// A call that is answered even if the service panics or is stopped.
struct PendingReply {
    connection: Arc<Connection>,
    id: u64,
    bytes: usize,
    is_replied: bool,
}

impl PendingReply {
    fn new(connection: Arc<Connection>, id: u64, bytes: usize) -> Self {
        connection.begin_serving(bytes);
        PendingReply { connection, id, bytes, is_replied: false }
    }

    /// It is answered together with others.
    fn serve(&mut self, answer: Result<Bytes, String>) -> ServedCall {
        self.is_replied = true;
        ServedCall { id: self.id, bytes: self.bytes, answer }
    }

    fn reply(&mut self, answer: Result<Bytes, String>) {
        self.is_replied = true;
        self.connection.finish_serving(self.bytes, self.id, answer);
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        match self.is_replied {
            true => {}
            false if std::thread::panicking() => {
                self.reply(Err("the service has broken off".to_owned()))
            }
            // The process stops, which is no answer. The connection ends, and the caller
            // gets `NetError::Lost`.
            false => self.connection.abandon_serving(self.bytes),
        }
    }
}
