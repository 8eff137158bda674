//! Just enough of WebSocket (RFC 6455) for an echo: the opening handshake with the RFC's own
//! example key, and text frames shorter than 126 bytes.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The key and its answer, from section 1.3 of the RFC.
pub(super) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const FINAL_TEXT: u8 = 0x81;
const FINAL_CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Sends a text frame as a client: masked.
pub(super) async fn say(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> Result<()> {
    write(stream, FINAL_TEXT, text.as_bytes(), Some(MASK)).await
}

/// The next text frame; none when the other side closed, with the code that it gave.
pub(super) async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<Result<String, u16>> {
    let (kind, payload) = read(stream).await?;
    match kind {
        FINAL_TEXT => Ok(Ok(String::from_utf8(payload)?)),
        FINAL_CLOSE => {
            let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
            Ok(Err(code))
        }
        other => bail!("frame of kind {other:#x}"),
    }
}

/// Sends every text frame back until the client goes; a close is answered.
pub(super) async fn echo(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    loop {
        let (kind, payload) = read(stream).await?;
        write(stream, kind, &payload, None).await?;
        if kind == FINAL_CLOSE {
            return Ok(());
        }
    }
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<()> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).context("too long")?;
    let mut frame = vec![kind, length | if mask.is_some() { MASKED } else { 0 }];
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let [kind, length] = [stream.read_u8().await?, stream.read_u8().await?];
    let mut mask = [0; 4];
    if length & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let length = usize::from(length & !MASKED);
    ensure!(length < 126, "a frame of {length} and more");
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn text_comes_back_and_a_close_is_told() -> Result<()> {
        let (mut client, mut server) = tokio::io::duplex(256);
        let served = tokio::spawn(async move { echo(&mut server).await });
        say(&mut client, "hello").await?;
        assert_eq!(hear(&mut client).await?, Ok("hello".into()));
        write(&mut client, FINAL_CLOSE, &1001_u16.to_be_bytes(), Some(MASK)).await?;
        assert_eq!(hear(&mut client).await?, Err(1001));
        served.await?
    }
}
