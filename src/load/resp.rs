//! The Redis protocol (RESP2), a client's side of it: commands out, replies of one piece in.

/// The longest line or string of a reply, in bytes.
const MAX_LENGTH: usize = 1 << 20;

/// What is wrong with a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// A reply that begins with something else than `+`, `-`, `:` or `$`.
    #[error("no reply begins with the byte {0:#04x}")]
    Kind(u8),
    /// Not a number where there must be one.
    #[error("`{0}` is no number")]
    Number(String),
    /// Longer than any reply to these clients.
    #[error("a reply of more than {MAX_LENGTH} bytes")]
    TooLong,
    /// A string that does not end where it says.
    #[error("a string goes on behind its end")]
    End,
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK` and its like.
    Simple(&'a [u8]),
    /// `-ERR …`.
    Error(&'a [u8]),
    /// A number.
    Integer(i64),
    /// A string; `None`: there is none.
    Bulk(Option<&'a [u8]>),
}

/// Appends a command.
pub fn command(words: &[&str], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// The first reply in `bytes` and its length in bytes; `None` while it is not all there.
pub fn reply(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, RespError> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    if !b"+-:$".contains(&kind) {
        return Err(RespError::Kind(kind));
    }
    let Some(length) = bytes.windows(2).take(MAX_LENGTH).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > MAX_LENGTH { Err(RespError::TooLong) } else { Ok(None) };
    };
    let (line, behind) = (&bytes[1..length], length + 2);
    let reply = match kind {
        b'+' => Reply::Simple(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number(line)?),
        _ => match number(line)? {
            -1 => Reply::Bulk(None),
            length => {
                let length = usize::try_from(length).map_err(|_| RespError::Number(length.to_string()))?;
                if length > MAX_LENGTH {
                    return Err(RespError::TooLong);
                }
                let end = behind + length;
                let Some(string) = bytes.get(behind..end + 2) else { return Ok(None) };
                let string = string.strip_suffix(b"\r\n").ok_or(RespError::End)?;
                return Ok(Some((Reply::Bulk(Some(string)), end + 2)));
            }
        },
    };
    Ok(Some((reply, behind)))
}

fn number(line: &[u8]) -> Result<i64, RespError> {
    let text = String::from_utf8_lossy(line);
    text.parse().map_err(|_| RespError::Number(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings() {
        let mut out = Vec::new();
        command(&["SET", "k", ""], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn replies_whole_and_in_pieces() {
        let all: [(&[u8], Reply); 7] = [
            (b"+OK\r\n", Reply::Simple(b"OK")),
            (b"-ERR no\r\n", Reply::Error(b"ERR no")),
            (b":-12\r\n", Reply::Integer(-12)),
            (b"$5\r\nab\r\nc\r\n", Reply::Bulk(Some(b"ab\r\nc"))),
            (b"$0\r\n\r\n", Reply::Bulk(Some(b""))),
            (b"$-1\r\n", Reply::Bulk(None)),
            (b"+\r\n", Reply::Simple(b"")),
        ];
        for (bytes, expected) in all {
            for end in 0..bytes.len() {
                assert_eq!(reply(&bytes[..end]), Ok(None), "{:?}", &bytes[..end]);
            }
            let with_more = [bytes, b"+next\r\n"].concat();
            assert_eq!(reply(&with_more), Ok(Some((expected, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_reply_has_a_name() {
        assert_eq!(reply(b"*1\r\n"), Err(RespError::Kind(b'*')));
        assert_eq!(reply(b":1x\r\n"), Err(RespError::Number("1x".into())));
        assert_eq!(reply(b"$-2\r\n"), Err(RespError::Number("-2".into())));
        assert_eq!(reply(b"$2\r\nabcd"), Err(RespError::End));
        assert_eq!(reply(b"$9999999999\r\n"), Err(RespError::TooLong));
        assert_eq!(reply(&vec![b'+'; MAX_LENGTH + 2]), Err(RespError::TooLong));
    }
}
