//! Names and values of many cells, as an answer has them.

use bytes::Bytes;

/// Names and values in one buffer, so that an answer of many cells needs one allocation
/// and not two a cell.
#[derive(Debug)]
pub(crate) struct CellBuffer {
    want_values: bool,
    buffer: Vec<u8>,
    /// The ends of each cell's name and value in the buffer.
    ends: Vec<(usize, usize)>,
}

impl CellBuffer {
    pub(crate) fn new(want_values: bool) -> CellBuffer {
        CellBuffer { want_values, buffer: Vec::new(), ends: Vec::new() }
    }

    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.buffer.extend_from_slice(name);
        let name_end = self.buffer.len();
        if self.want_values {
            self.buffer.extend_from_slice(value);
        }
        self.ends.push((name_end, self.buffer.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn finish(self) -> Vec<(Bytes, Bytes)> {
        let buffer = Bytes::from(self.buffer);
        let mut start = 0;
        let cell = |(name_end, end)| {
            let cell = (buffer.slice(start..name_end), buffer.slice(name_end..end));
            start = end;
            cell
        };
        self.ends.into_iter().map(cell).collect()
    }
}
