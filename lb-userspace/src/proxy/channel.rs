//! What agent and proxy say to each other over their socket pair, and how it is framed.
//!
//! A frame is its length (four bytes, little endian) and that many bytes: a head in postcard,
//! and behind a head of [`ToProxy::Updates`] the updates, one after the other. A large table
//! goes in several frames, each about [`CHUNK`] long, and counts once the last is there. No
//! frame is longer than [`LONGEST`], whatever the other side says. Private keys pass through
//! here: a frame's memory is cleared when it is done with.

use crate::model::routes::Update;
use postcard::experimental::serialized_size;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

/// The longest frame. One update has to fit in: a host with some 100,000 rules does.
pub const LONGEST: usize = 16 << 20;
/// Where a batch of updates is cut into frames.
pub const CHUNK: usize = 256 << 10;
/// More than the head of a frame takes.
const HEAD: usize = 64;
/// The largest table, in bytes: more is no table of ours.
const LARGEST_TABLE: usize = 1 << 30;

/// Names what is spoken here: a digest of the text that defines it. Postcard does not describe
/// itself, so two builds that differ in it must not be linked to each other.
pub const PROTOCOL: u64 = digest(&[
    include_bytes!("channel.rs"),
    include_bytes!("../model/routes.rs"),
    include_bytes!("../problem.rs"),
]);

/// FNV-1a (RFC 9923), 64 bits.
const fn digest(texts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut text = 0;
    while text < texts.len() {
        let mut at = 0;
        while at < texts[text].len() {
            hash = (hash ^ texts[text][at] as u64).wrapping_mul(0x100_0000_01b3);
            at += 1;
        }
        text += 1;
    }
    hash
}

/// From the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToProxy {
    /// Comes first.
    Hello { protocol: u64 },
    /// The updates follow in the same frame. `whole`: what is not among them goes.
    Updates { generation: u64, whole: bool, last: bool },
    /// Asks for the metrics' text.
    Metrics,
}

/// From the proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromProxy {
    /// Comes first.
    Hello { protocol: u64, version: String },
    /// Requests are routed by that generation of the table, or a newer one.
    Applied { generation: u64 },
    /// OpenMetrics text without its end mark.
    Metrics { text: String },
}

/// A frame as it goes over the socket.
pub type Frame = Zeroizing<Vec<u8>>;

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A frame of a head alone.
///
/// # Errors
/// When it would be too long.
pub fn frame(head: &impl Serialize) -> io::Result<Frame> {
    written::<_, ()>(head, &[])
}

/// A head and what follows it, as a frame.
///
/// The length is computed first, so that each byte is written once, to its place: a buffer that
/// grew would leave pieces of private keys behind in memory that is free (H30).
fn written<H: Serialize, T: Serialize>(head: &H, body: &[T]) -> io::Result<Frame> {
    let mut length = serialized_size(head).map_err(broken)?;
    for item in body {
        length += serialized_size(item).map_err(broken)?;
    }
    if length > LONGEST {
        return Err(broken(format!("a message of {length} bytes is longer than {LONGEST}")));
    }
    let mut frame = Zeroizing::new(vec![0; 4 + length]);
    let (start, mut rest) = frame.split_at_mut(4);
    start.copy_from_slice(&(length as u32).to_le_bytes());
    rest = put(head, rest)?;
    for item in body {
        rest = put(item, rest)?;
    }
    debug_assert!(rest.is_empty(), "the length was computed");
    Ok(frame)
}

/// Writes one value and returns the room behind it.
fn put<'a>(value: &impl Serialize, room: &'a mut [u8]) -> io::Result<&'a mut [u8]> {
    let used = postcard::to_slice(value, room).map_err(broken)?.len();
    Ok(&mut room[used..])
}

/// The frames that carry `updates`; at least one, so that an empty table is told too.
pub fn frames(updates: &[Update], generation: u64, whole: bool) -> impl Iterator<Item = io::Result<Frame>> {
    let mut rest = updates;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let built = batch(&mut rest, generation, whole);
        done = rest.is_empty() || built.is_err();
        Some(built)
    })
}

/// What an update is for.
fn name(update: &Update) -> String {
    match update {
        Update::Host(host, _) | Update::Name(host, _) => host.to_string(),
        Update::Pool(pool, _) => pool.to_string(),
        Update::Certificate(secret, _) => secret.to_string(),
    }
}

/// The next frame; what it holds is taken off `rest`.
fn batch(rest: &mut &[Update], generation: u64, whole: bool) -> io::Result<Frame> {
    // What is too long by itself comes first, if at all: it ends the frame before.
    while let Some((update, more)) = rest.split_first() {
        let bytes = serialized_size(update).map_err(broken)?;
        if bytes <= LONGEST - HEAD {
            break;
        }
        // The model's budgets keep every value far below that.
        tracing::error!(what = name(update), bytes, "too long for the proxy: left out");
        *rest = more;
    }
    let (mut count, mut length) = (0, 0);
    for update in rest.iter() {
        length += serialized_size(update).map_err(broken)?;
        // One that is long by itself has a frame by itself.
        if count > 0 && length > CHUNK {
            break;
        }
        count += 1;
    }
    let (updates, more) = rest.split_at(count);
    *rest = more;
    let head = ToProxy::Updates { generation, whole, last: rest.is_empty() };
    written(&head, updates)
}

/// Reads frames off a stream. A call that is dropped half-way loses nothing.
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    header: [u8; 4],
    header_filled: usize,
    payload: Frame,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, header: [0; 4], header_filled: 0, payload: Frame::default() }
    }

    /// The next frame's payload; `None` at the end of the stream.
    ///
    /// # Errors
    /// When the stream fails, ends inside a frame, or announces too long a one.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        while self.header_filled < self.header.len() {
            let read = self.stream.read(&mut self.header[self.header_filled..]).await?;
            if read == 0 {
                let clean = self.header_filled == 0;
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.header_filled += read;
        }
        let length = u32::from_le_bytes(self.header) as usize;
        if length > LONGEST {
            return Err(broken(format!("a message of {length} bytes is announced")));
        }
        // In one piece, so that growing leaves no copy behind.
        let missing = length - self.payload.len();
        self.payload.reserve_exact(missing);
        while self.payload.len() < length {
            let missing = (length - self.payload.len()) as u64;
            if (&mut self.stream).take(missing).read_buf(&mut *self.payload).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.header_filled = 0;
        Ok(Some(std::mem::take(&mut self.payload)))
    }
}

/// A head, and what follows it in its frame.
///
/// # Errors
/// When the payload is none of ours.
pub fn open<T: DeserializeOwned>(payload: &[u8]) -> io::Result<(T, &[u8])> {
    postcard::take_from_bytes(payload).map_err(broken)
}

/// A table, or a step of it, that is complete.
#[derive(PartialEq, Eq, Debug)]
pub struct Batch {
    pub generation: u64,
    pub whole: bool,
    pub updates: Vec<Update>,
}

/// Puts the frames of a batch together again.
#[derive(Debug, Default)]
pub struct Assembly {
    partial: Option<Batch>,
    bytes: usize,
}

impl Assembly {
    /// Takes one frame's updates; the batch when they were the last.
    ///
    /// # Errors
    /// When they are none, belong to another batch, or are too many.
    pub fn take(
        &mut self,
        generation: u64,
        whole: bool,
        last: bool,
        mut body: &[u8],
    ) -> io::Result<Option<Batch>> {
        self.bytes += body.len();
        if self.bytes > LARGEST_TABLE {
            return Err(broken("a table that is too large"));
        }
        let mut batch = self.partial.take().unwrap_or(Batch { generation, whole, updates: Vec::new() });
        if (batch.generation, batch.whole) != (generation, whole) {
            return Err(broken("a batch inside another"));
        }
        while !body.is_empty() {
            let (update, rest) = postcard::take_from_bytes(body).map_err(broken)?;
            batch.updates.push(update);
            body = rest;
        }
        if last {
            self.bytes = 0;
            return Ok(Some(batch));
        }
        self.partial = Some(batch);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::model::routes::{Certificate, HostPattern, Pool, PoolKey, Routes, VirtualHost};
    use crate::problem::ObjectKey;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// Gives its bytes in pieces of those sizes, over and over.
    struct Pieces<'a> {
        bytes: &'a [u8],
        sizes: Vec<usize>,
        turn: usize,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let size = self.sizes[self.turn % self.sizes.len()].max(1);
            self.turn += 1;
            let (now, later) = self.bytes.split_at(size.min(buffer.remaining()).min(self.bytes.len()));
            buffer.put_slice(now);
            self.bytes = later;
            Poll::Ready(Ok(()))
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn pool(service: &str, endpoints: u8) -> Update {
        let key = PoolKey { service: Arc::new(ObjectKey::new("default", service)), port: 80 };
        let endpoints = (0..endpoints).map(|n| ([10, 0, 0, n], 8080).into()).collect();
        Update::Pool(key, Some(Arc::new(Pool { endpoints, ..Pool::default() })))
    }

    fn certificate(name: &str, size: usize) -> Update {
        let certificate = Certificate {
            chain: vec![vec![7; size]],
            key: Zeroizing::new(vec![9; 121]),
            names: vec![name.into()],
            not_before: 0,
            not_after: 1,
        };
        Update::Certificate(ObjectKey::new("default", name), Some(Arc::new(certificate)))
    }

    /// What a reader makes of these bytes.
    async fn received(reader: impl AsyncRead + Unpin) -> io::Result<Vec<Batch>> {
        let (mut reader, mut assembly, mut batches) = (Reader::new(reader), Assembly::default(), Vec::new());
        while let Some(payload) = reader.next().await? {
            let (head, body) = open::<ToProxy>(&payload)?;
            let ToProxy::Updates { generation, whole, last } = head else { panic!("{head:?}") };
            batches.extend(assembly.take(generation, whole, last, body)?);
        }
        Ok(batches)
    }

    fn encoded(updates: &[Update], generation: u64, whole: bool) -> Vec<u8> {
        frames(updates, generation, whole).flat_map(|frame| frame.unwrap().to_vec()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_split_of_the_stream_gives_the_same_batches(
            sizes in prop::collection::vec(prop_oneof![1 => 1_usize..9, 3 => 1_000_usize..70_000], 1..8),
            lengths in prop::collection::vec(prop_oneof![1 => 0_usize..2_000, 1 => 100_000_usize..400_000], 0..8),
            whole: bool,
        ) {
            let updates: Vec<Update> =
                lengths.iter().enumerate().map(|(n, size)| certificate(&format!("c{n}"), *size)).collect();
            let mut bytes = encoded(&updates, 7, whole);
            bytes.extend(encoded(&[pool("web", 3)], 8, false));
            let batches = block_on(received(Pieces { bytes: &bytes, sizes, turn: 0 })).unwrap();
            prop_assert_eq!(batches, [
                Batch { generation: 7, whole, updates },
                Batch { generation: 8, whole: false, updates: vec![pool("web", 3)] },
            ]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_and_never_kept_beyond_a_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            // Whatever it is, reading it ends.
            let mut reader = Reader::new(&*bytes);
            while let Ok(Some(payload)) = block_on(reader.next()) {
                if let Ok((ToProxy::Updates { generation, whole, last }, body)) = open(&payload) {
                    let _any = Assembly::default().take(generation, whole, last, body);
                }
            }
            prop_assert!(reader.payload.capacity() <= LONGEST);
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for length in [LONGEST as u32 + 1, u32::MAX] {
            let error = block_on(Reader::new(&length.to_le_bytes()[..]).next()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
        }
        let mut short = encoded(&[pool("web", 1)], 1, true);
        short.pop();
        assert_eq!(block_on(received(&short[..])).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // A list inside an update that claims to be endless.
        let mut lying =
            postcard::to_allocvec(&ToProxy::Updates { generation: 1, whole: true, last: true }).unwrap();
        lying.extend_from_slice(&[0, 0, 1, b'x', 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        let (_, body) = open::<ToProxy>(&lying).unwrap();
        assert!(Assembly::default().take(1, true, true, body).is_err());
    }

    #[test]
    fn a_large_table_passes_in_frames_of_bounded_length() {
        let mut routes = Routes::default();
        for n in 0..10_000 {
            let name: Arc<str> = format!("host-{n}.example.com").into();
            routes.apply(Update::Host(
                HostPattern::Exact(name.clone()),
                Some(Arc::new(VirtualHost::default())),
            ));
            routes.apply(certificate(&name, 2_500));
            routes.apply(Update::Name(
                HostPattern::Exact(name.clone()),
                Some(ObjectKey::new("default", &*name)),
            ));
        }
        let updates = routes.updates();
        let mut longest = 0;
        let mut bytes = Vec::new();
        for frame in frames(&updates, 3, true) {
            let frame = frame.unwrap();
            longest = longest.max(frame.len());
            bytes.extend_from_slice(&frame);
        }
        assert!(longest < CHUNK + 64, "{longest}");
        assert!(bytes.len() > 20 << 20, "{}", bytes.len());
        let batches = block_on(received(&bytes[..])).unwrap();
        assert_eq!(batches, [Batch { generation: 3, whole: true, updates }]);
    }

    #[test]
    fn an_update_beyond_the_longest_frame_costs_only_itself_and_an_empty_table_is_told() {
        let updates = [pool("a", 1), certificate("huge", LONGEST), pool("b", 2)];
        let batches = block_on(received(&encoded(&updates, 1, false)[..])).unwrap();
        assert_eq!(batches[0].updates, [pool("a", 1), pool("b", 2)]);
        let batches = block_on(received(&encoded(&[], 1, true)[..])).unwrap();
        assert_eq!(batches, [Batch { generation: 1, whole: true, updates: Vec::new() }]);
    }

    #[test]
    fn a_batch_inside_another_is_refused() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(1, true, false, &[]).unwrap(), None);
        assert!(assembly.take(2, false, true, &[]).is_err());
    }
}
