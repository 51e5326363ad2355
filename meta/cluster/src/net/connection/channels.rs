//! A connection's channels: their credit and their inboxes.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, mpsc};

use super::super::Service;
use super::super::channel::{Channel, WINDOW_BYTES, cost};
use super::super::frame::{ENDS_RECEIVING, ENDS_SENDING, FrameHeader, FrameKind};
use super::{CallRefused, Connection, ConnectionState, OUTBOX_BYTES};

/// Maximum number of a dialer's channels on a connection.
const CHANNELS_MAX: usize = 4096;

/// A channel's state in its connection.
pub(super) struct ChannelState {
    /// Bytes that may still be sent; negative after a large message.
    credit: i64,
    /// Rung when there is credit again, or never will be.
    pub(super) changed: Arc<Notify>,
    may_send: bool,
    /// `None`: nothing more is taken in.
    inbox: Option<mpsc::UnboundedSender<Bytes>>,
    /// Bytes received and not yet returned as credit.
    unread: usize,
}

/// Why a message did not get into the outbox.
pub(in super::super) enum SendRefused {
    /// For ever.
    Ended(String),
    /// Wait, then try again.
    Full(OwnedNotified),
}

impl Connection {
    /// Opens a channel to the other side.
    pub(in super::super) fn open(
        self: &Arc<Self>,
        service: Service,
        hello: &Bytes,
    ) -> Result<Channel, CallRefused> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        let id = state.next_channel;
        state.next_channel += 1;
        let inbox = enter(&mut state, id);
        state.outbox.push(FrameHeader::new(FrameKind::Open, service as u8, id), hello.clone());
        drop(state);
        self.flush(false);
        Ok(Channel::new(self.clone(), id, inbox))
    }

    /// The other side opens a channel; `None`: it has enough of them. Its ids only grow,
    /// or the connection is broken.
    pub(in super::super) fn opened(
        self: &Arc<Self>,
        id: u64,
    ) -> Result<Option<Channel>, &'static str> {
        let mut state = self.state.lock();
        if id < state.next_channel {
            return Err("a channel was opened twice");
        }
        state.next_channel = id.saturating_add(1);
        if state.channels.len() >= CHANNELS_MAX {
            drop(state);
            self.send_control(FrameKind::End, ENDS_SENDING | ENDS_RECEIVING, id);
            return Ok(None);
        }
        let inbox = enter(&mut state, id);
        drop(state);
        Ok(Some(Channel::new(self.clone(), id, inbox)))
    }

    /// A message came; an error if it is more than it was allowed.
    pub(in super::super) fn message(&self, id: u64, message: Bytes) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        let Some(flow) = state.channels.get_mut(&id) else { return Ok(()) };
        if flow.unread > WINDOW_BYTES {
            return Err("a channel's window was not heeded");
        }
        if let Some(inbox) = &flow.inbox {
            flow.unread += cost(&message);
            // Its receiver is gone when this fails, and is about to say so.
            let _ = inbox.send(message);
        }
        Ok(())
    }

    /// The other side's consumer went on.
    pub(in super::super) fn credit(&self, id: u64, mut body: Bytes) -> Result<(), &'static str> {
        let bytes = body.try_get_u32_le().map_err(|_| "credit without its amount")?;
        let mut state = self.state.lock();
        if let Some(flow) = state.channels.get_mut(&id) {
            flow.credit = (flow.credit + i64::from(bytes)).min(WINDOW_BYTES as i64);
            flow.changed.notify_waiters();
        }
        Ok(())
    }

    /// The other side has ended one or both of its halves.
    pub(in super::super) fn ended(&self, id: u64, which: u8) {
        self.end(id, which & ENDS_RECEIVING != 0, which & ENDS_SENDING != 0);
    }

    /// Ends our sending or receiving; false if that had ended.
    fn end(&self, id: u64, sending: bool, receiving: bool) -> bool {
        let mut state = self.state.lock();
        let Some(flow) = state.channels.get_mut(&id) else { return false };
        let is_news = (sending && flow.may_send) || (receiving && flow.inbox.is_some());
        if sending {
            flow.may_send = false;
            flow.changed.notify_waiters();
        }
        if receiving {
            flow.inbox = None;
        }
        if !flow.may_send && flow.inbox.is_none() {
            state.channels.remove(&id);
        }
        is_news
    }

    pub(in super::super) fn end_sending(&self, id: u64) {
        if self.end(id, true, false) {
            self.send_control(FrameKind::End, ENDS_SENDING, id);
        }
    }

    pub(in super::super) fn end_receiving(&self, id: u64) {
        if self.end(id, false, true) {
            self.send_control(FrameKind::End, ENDS_RECEIVING, id);
        }
    }

    pub(in super::super) fn try_message(
        &self,
        id: u64,
        message: &Bytes,
    ) -> Result<(), SendRefused> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(why) = &state.closed {
            return Err(SendRefused::Ended(format!(
                "the connection to {} was lost: {why}",
                self.peer.server
            )));
        }
        let Some(flow) = state.channels.get_mut(&id).filter(|flow| flow.may_send) else {
            return Err(SendRefused::Ended("the other side takes no more messages".to_owned()));
        };
        if flow.credit <= 0 {
            return Err(SendRefused::Full(flow.changed.clone().notified_owned()));
        }
        if state.outbox.bytes() > OUTBOX_BYTES {
            return Err(SendRefused::Full(self.outbox_room.clone().notified_owned()));
        }
        flow.credit -= cost(message) as i64;
        state.outbox.push(FrameHeader::new(FrameKind::Message, 0, id), message.clone());
        drop(guard);
        self.flush(false);
        Ok(())
    }

    pub(in super::super) fn give_credit(&self, id: u64, bytes: usize) {
        let mut state = self.state.lock();
        let Some(flow) = state.channels.get_mut(&id).filter(|flow| flow.inbox.is_some()) else {
            return;
        };
        flow.unread = flow.unread.saturating_sub(bytes);
        let amount = u32::try_from(bytes).unwrap_or(u32::MAX);
        state.outbox.push(
            FrameHeader::new(FrameKind::Credit, 0, id),
            Bytes::copy_from_slice(&amount.to_le_bytes()),
        );
        drop(state);
        self.flush(false);
    }
}

fn enter(state: &mut ConnectionState, id: u64) -> mpsc::UnboundedReceiver<Bytes> {
    let (sender, inbox) = mpsc::unbounded_channel();
    let flow = ChannelState {
        credit: WINDOW_BYTES as i64,
        changed: Arc::new(Notify::new()),
        may_send: true,
        inbox: Some(sender),
        unread: 0,
    };
    state.channels.insert(id, flow);
    inbox
}
