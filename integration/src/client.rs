//! A plain blocking RESP client: one socket, no retries, no reconnects, so that tests see
//! exactly the server's replies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode as decode_resp2;
use redis_protocol::resp2::types::OwnedFrame as Resp2;
use redis_protocol::resp3::decode::complete::decode as decode_resp3;
use redis_protocol::resp3::types::OwnedFrame;

/// A reply of the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A null of any kind.
    Nil,
    /// `+OK`
    Status(String),
    /// `-ERR ...`
    Error(String),
    /// `:1`
    Int(i64),
    /// `$3 foo`
    Bulk(Vec<u8>),
    /// `*2 ...`, and the other aggregates of RESP3.
    Array(Vec<Value>),
}

impl Value {
    /// A bulk string.
    pub fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    /// `+OK`
    pub fn ok() -> Value {
        Value::Status("OK".to_owned())
    }

    /// The text of a status, error or bulk string.
    pub fn text(&self) -> String {
        match self {
            Value::Status(text) | Value::Error(text) => text.clone(),
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => format!("{other:?}"),
        }
    }

    /// The integer.
    ///
    /// # Panics
    /// When it is something else.
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(n) => *n,
            other => panic!("not an integer: {other:?}"),
        }
    }

    /// The reply is an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    unread: BytesMut,
    /// The protocol is RESP3: HELLO 3 was sent.
    resp3: bool,
}

impl Client {
    /// Connects to a port of 127.0.0.1.
    ///
    /// # Errors
    /// The socket's.
    pub fn connect(port: u16) -> io::Result<Client> {
        Client::of(TcpStream::connect(("127.0.0.1", port))?, Duration::from_secs(30))
    }

    /// Connects to any address; `timeout` applies to the connection and to each reply.
    ///
    /// # Errors
    /// The socket's, timeouts included.
    pub fn reach(address: SocketAddr, timeout: Duration) -> io::Result<Client> {
        Client::of(TcpStream::connect_timeout(&address, timeout)?, timeout)
    }

    fn of(socket: TcpStream, timeout: Duration) -> io::Result<Client> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        Ok(Client { socket, unread: BytesMut::new(), resp3: false })
    }

    /// Sends one command and waits for its reply.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::UnexpectedEof`] when the server closed the
    /// connection.
    pub fn call<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<Value> {
        self.send(words)?;
        self.reply()
    }

    /// The value of a setting, by CONFIG GET.
    ///
    /// # Panics
    /// When there is no such setting.
    pub fn setting(&mut self, name: &str) -> String {
        match self.run(&format!("CONFIG GET {name}")) {
            Value::Array(pair) if pair.len() == 2 => pair[1].text(),
            other => panic!("CONFIG GET {name}: {other:?}"),
        }
    }

    /// [`Client::call`] with the command on one line, arguments separated by spaces.
    ///
    /// # Panics
    /// When the connection fails: for tests in which it must not.
    pub fn run(&mut self, line: &str) -> Value {
        let words: Vec<&str> = line.split(' ').collect();
        self.call(&words).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Sends one command.
    ///
    /// # Errors
    /// The socket's.
    pub fn send<W: AsRef<[u8]>>(&mut self, words: &[W]) -> io::Result<()> {
        if let [hello, version, ..] = words
            && hello.as_ref().eq_ignore_ascii_case(b"HELLO")
        {
            self.resp3 = version.as_ref() == b"3";
        }
        let mut bytes = Vec::with_capacity(64);
        encode(&mut bytes, words);
        self.socket.write_all(&bytes)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends many commands in one write and waits for all replies.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn pipeline<W: AsRef<[u8]>>(&mut self, commands: &[Vec<W>]) -> io::Result<Vec<Value>> {
        let mut bytes = Vec::new();
        commands.iter().for_each(|words| encode(&mut bytes, words));
        self.socket.write_all(&bytes)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    /// Waits for one reply.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn reply(&mut self) -> io::Result<Value> {
        loop {
            let decoded = match self.resp3 {
                true => decode_resp3(&self.unread)
                    .map(|found| found.map(|(frame, used)| (value_of(frame), used))),
                false => decode_resp2(&self.unread)
                    .map(|found| found.map(|(frame, used)| (value_of_resp2(frame), used))),
            };
            if let Some((value, used)) =
                decoded.map_err(|error| io::Error::other(format!("{error:?}")))?
            {
                let _ = self.unread.split_to(used);
                return Ok(value);
            }
            let mut chunk = [0; 16 << 10];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                // A signal interrupts a read with a timeout.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The socket, for tests below the level of RESP.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

fn encode<W: AsRef<[u8]>>(bytes: &mut Vec<u8>, words: &[W]) {
    bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
}

fn value_of_resp2(frame: Resp2) -> Value {
    match frame {
        Resp2::Null => Value::Nil,
        Resp2::SimpleString(text) => Value::Status(String::from_utf8_lossy(&text).into_owned()),
        Resp2::Error(text) => Value::Error(text),
        Resp2::Integer(number) => Value::Int(number),
        Resp2::BulkString(bytes) => Value::Bulk(bytes),
        Resp2::Array(items) => Value::Array(items.into_iter().map(value_of_resp2).collect()),
    }
}

fn value_of(frame: OwnedFrame) -> Value {
    match frame {
        OwnedFrame::Null => Value::Nil,
        OwnedFrame::SimpleString { data, .. } => {
            Value::Status(String::from_utf8_lossy(&data).into_owned())
        }
        OwnedFrame::SimpleError { data, .. } => Value::Error(data),
        OwnedFrame::BlobError { data, .. } => {
            Value::Error(String::from_utf8_lossy(&data).into_owned())
        }
        OwnedFrame::Number { data, .. } => Value::Int(data),
        OwnedFrame::Boolean { data, .. } => Value::Int(i64::from(data)),
        OwnedFrame::Double { data, .. } => Value::bulk(&data.to_string()),
        OwnedFrame::BlobString { data, .. }
        | OwnedFrame::VerbatimString { data, .. }
        | OwnedFrame::BigNumber { data, .. } => Value::Bulk(data),
        OwnedFrame::Array { data, .. } | OwnedFrame::Push { data, .. } => {
            Value::Array(data.into_iter().map(value_of).collect())
        }
        OwnedFrame::Set { data, .. } => Value::Array(data.into_iter().map(value_of).collect()),
        OwnedFrame::Map { data, .. } => Value::Array(
            data.into_iter().flat_map(|(key, value)| [value_of(key), value_of(value)]).collect(),
        ),
        other => Value::Status(format!("{other:?}")),
    }
}
